"""The entry point of ``hako``: looks up the verb, imports that verb's module alone, and words what went wrong.

A verb's module has ``parser()`` and ``main(args)``; ``args`` are the words after the verb, the result is the exit
code. Nothing heavy is imported before the verb is known: every call of every verb pays for it.
"""

from __future__ import annotations

import os
import sys
import time

from hako import streams

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

#: When hako's own code began to run, on the monotonic clock.
RUNNING_SINCE = time.monotonic_ns()

EXIT_INTERRUPTED = 130
EXIT_BROKEN_PIPE = 141

#: Verb: its module in this package, and what it does. In the order of the help.
VERBS = {
    "run": ("run", "Run a command in a new container, in a VM of its own"),
    "exec": ("execute", "Run one more command in a running container"),
    "ps": ("ps", "List containers"),
    "logs": ("logs", "Show what a container has written"),
    "attach": ("attach", "Join the terminal or the streams of a running container"),
    "stop": ("stop", "Ask containers to end, then kill them"),
    "kill": ("kill", "Send a signal to containers"),
    "pause": ("pause", "Freeze all processes of containers"),
    "unpause": ("unpause", "Let frozen containers go on"),
    "rm": ("remove", "Remove containers with everything they left"),
    "update": ("update", "Change the limits of running containers"),
    "inspect": ("inspect", "Show all that is known of containers, as JSON"),
    "stats": ("stats", "Show what running containers use"),
    "trace": ("trace", "Show what a container's start took its time for"),
    "cp": ("cp", "Copy files between a container and the host"),
    "images": ("images", "List container images"),
    "pull": ("pull", "Fetch a container image, or a newer one"),
    "rmi": ("rmi", "Remove container images"),
    "image": ("guest", "Build, list, inspect, verify or remove guest images (kernel and initrd of the VMs)"),
    "template": ("template", "Make, list, inspect, verify or remove templates, which VMs are cloned from"),
    "pool": ("pool", "List, fill or drain the pool of VMs that are ready before they are asked for"),
    "check": ("check", "Tell whether this host can run VMs, and what to do if not"),
    "completion": ("completion", "Print the completion script for bash"),
    "version": ("version", "Show the version"),
}

_USAGE = """\
Usage: hako [--debug] [--config FILE] VERB [ARGUMENTS]

Every container runs in a virtual machine of its own.
"""


def help_text() -> str:
    """What ``hako --help`` says."""
    width = max(map(len, VERBS))
    lines = [_USAGE, "Verbs:", *(f"  {verb:<{width}}  {about}" for verb, (_, about) in VERBS.items())]
    lines += ["", "Options:", "  --config FILE  read this configuration file instead of /etc/hako/config.toml"]
    lines += ["  --debug        show where an error comes from", "", "hako VERB --help tells about a verb."]
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Run ``hako`` with the words ``argv`` (by default those of the command line); returns the exit code."""
    streams.open_missing()
    words = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in words[: _verb_at(words)]
    try:
        status = _dispatch(words)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        streams.silence_stdout()
        return EXIT_BROKEN_PIPE
    except SystemExit as stop:  # argparse, after --help
        return _after_help(stop)
    except Exception as error:
        return _report(error, debug=debug)
    return status


def load_verb(verb: str) -> Callable[[list[str]], int]:
    """The function that does ``verb``, its module imported just now."""
    import importlib

    module = importlib.import_module(f"hako.cli.{VERBS[verb][0]}")
    function: Callable[[list[str]], int] = module.main
    return function


def _verb_at(words: list[str]) -> int:
    """Where the verb stands: after the global options."""
    at = 0
    while at < len(words) and words[at].startswith("-"):
        at += 2 if words[at] == "--config" else 1
    return at


def _dispatch(words: list[str]) -> int:
    from hako.errors import ConfigError

    at = _verb_at(words)
    for option in _global_options(words[:at]):
        if option in ("-h", "--help"):
            print(help_text())
            return 0
        if option == "--version":
            return load_verb("version")([])
    if at >= len(words):
        if words:
            raise ConfigError("There is no verb after the options; see hako --help.")
        print(help_text(), file=sys.stderr)
        return ConfigError.exit_code
    verb = words[at]
    if verb == "help":
        return _help(words[at + 1 :])
    if verb not in VERBS:
        raise ConfigError(f"hako has no verb {verb!r}{_closest(verb)}; see hako --help.")
    return load_verb(verb)(words[at + 1 :])


def _help(words: list[str]) -> int:
    if words and words[0] in VERBS:
        return load_verb(words[0])(["--help"])
    print(help_text())
    return 0


def _global_options(words: list[str]) -> list[str]:
    """Apply the options before the verb; return those that take the verb's place."""
    from hako.errors import ConfigError

    instead = []
    at = 0
    while at < len(words):
        name, equals, value = words[at].partition("=")
        if name == "--config":
            if not equals:
                at += 1
                value = words[at] if at < len(words) else ""
            if not value:
                raise ConfigError("--config needs the name of a file; see hako --help.")
            # Through the environment, so that every process this one starts reads the same file.
            os.environ["HAKO_CONFIG"] = os.path.abspath(value)
        elif name in ("-h", "--help", "--version"):
            instead.append(name)
        elif name != "--debug":
            raise ConfigError(f"hako has no option {name}; options of a verb follow the verb; see hako --help.")
        at += 1
    return instead


def _closest(verb: str) -> str:
    import difflib

    match = difflib.get_close_matches(verb, VERBS, n=1, cutoff=0.5)
    return f"; did you mean {match[0]}?" if match else ""


def _after_help(stop: SystemExit) -> int:
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        streams.silence_stdout()
    return stop.code if isinstance(stop.code, int) else 0


def _report(error: Exception, *, debug: bool) -> int:
    """One line on standard error, whatever happened; returns the exit code."""
    from hako.errors import EXIT_FAILURE, HakoError

    status = EXIT_FAILURE
    if isinstance(error, HakoError):
        text, status = str(error), error.exit_code
    elif isinstance(error, OSError) and error.strerror:
        text = f"{error.strerror}: {error.filename}." if error.filename else f"{error.strerror}."
    else:
        text = f"This is a defect of hako: {type(error).__name__}: {error}; hako --debug shows where."
    if debug:
        import traceback

        traceback.print_exception(error)
    if text:
        complain(text)
    return status


def complain(text: str) -> None:
    """Say ``text`` as one line on standard error. Control characters, which an image may bring, are shown escaped."""
    streams.complain(f"hako: {streams.one_line(text)}")
