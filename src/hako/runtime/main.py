"""The entry point of ``hako-runtime``: reads the command line as runc does, imports the verb's module alone, and
reports what went wrong where container engines look for it.

A verb's module has ``main(call)``, whose result is the exit code. Nothing heavy is imported before the verb is known:
engines start this command several times for each container.
"""

from __future__ import annotations

import os
import sys

from hako import paths, streams
from hako.errors import ConfigError
from hako.runtime import flags
from hako.runtime.reporting import Report, sentence
from hako.runtime.verbs import FAILED, GLOBAL_FLAGS, HELP, VERBS, Call, Verb

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, NoReturn

EXIT_UNKNOWN_VERB = 3
EXIT_INTERRUPTED = 130
EXIT_BROKEN_PIPE = 141


def command() -> NoReturn:
    """The program ``hako-runtime``. The interpreter's own tidying up would take longer than many a verb."""
    status = main()
    try:
        sys.stderr.flush()
    finally:
        os._exit(status)


def main(argv: list[str] | None = None) -> int:
    """Run ``hako-runtime`` with the words ``argv`` (by default those of the command line); returns the exit code."""
    streams.open_missing()
    command = _Command(Report())
    try:
        status = command.run(list(sys.argv[1:] if argv is None else argv))
        sys.stdout.flush()
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        streams.silence_stdout()
        return EXIT_BROKEN_PIPE
    except Exception as error:
        return command.fail(error)
    return status


def load_verb(verb: Verb) -> Callable[[Call], int]:
    """The function that does ``verb``, its module imported just now."""
    import importlib

    module = importlib.import_module(f"hako.runtime.{verb.module}")
    function: Callable[[Call], int] = module.main
    return function


class _Command:
    """One command line, as far as it is understood: an error is reported by what is known by then."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._debug = False
        self._failed = FAILED

    def run(self, words: list[str]) -> int:
        """Do what ``words`` ask for; returns the exit code."""
        try:
            options, rest = flags.parse(GLOBAL_FLAGS, words, passes_on=True)
        except flags.UsageError as error:
            return self._misused(error, "")
        self._debug = options["debug"]
        if options["version"] and not options["help"]:
            from hako.runtime import version

            sys.stdout.write(version.text())
            return 0
        if options["help"] or not rest:
            return _show("")
        self._report.configure(options["log"], options["log-format"])
        name, *rest = rest
        if name in ("help", "h"):
            if not rest:
                return _show("")
            name, rest = rest[0], ["--help"]
        if name not in VERBS:
            self._failed = EXIT_UNKNOWN_VERB
            raise ConfigError(f"No help topic for '{name}'")
        return self._verb(name, rest, options)

    def _verb(self, name: str, words: list[str], options: dict[str, Any]) -> int:
        verb = VERBS[name]
        if verb.refused:
            raise ConfigError(f"hako-runtime has no {name}: {verb.refused}.")
        try:
            given, args = flags.parse((*verb.flags, HELP), words, name, passes_on=verb.passes_on)
            if given.pop("help"):
                return _show(name)
            _check_count(name, len(args))
        except flags.UsageError as error:
            return self._misused(error, name)
        self._failed = verb.failed
        root = os.path.abspath(options["root"] or os.path.join(paths.state_root(), "runtime"))
        return load_verb(verb)(Call(root, given, args, options))

    def fail(self, error: Exception) -> int:
        """Report ``error``; returns the exit code.

        A command that is missing or cannot be executed has no code of its own, as with runc: engines tell that by
        the words.
        """
        if self._debug:
            import traceback

            traceback.print_exception(error)
        self._report.error(sentence(error))
        return self._failed

    def _misused(self, error: flags.UsageError, verb: str) -> int:
        from hako.runtime import helptext

        reason = "" if isinstance(error, _CountError) else f" {error}"
        mark = ":" if verb and reason else "."
        sys.stdout.write(f"Incorrect Usage{mark}{reason}\n\n{helptext.of_verb(verb) if verb else helptext.whole()}")
        sys.stdout.flush()
        return self.fail(error)


class _CountError(flags.UsageError):
    """Too few or too many arguments."""


def _check_count(name: str, count: int) -> None:
    """Raise _CountError, in runc's words, unless the verb ``name`` takes ``count`` arguments."""
    verb = VERBS[name]
    if verb.least == verb.most and count != verb.least:
        raise _CountError(f'hako-runtime: "{name}" requires exactly {verb.least} argument(s)')
    if count < verb.least:
        raise _CountError(f'hako-runtime: "{name}" requires a minimum of {verb.least} argument(s)')
    if verb.most is not None and count > verb.most:
        raise _CountError(f'hako-runtime: "{name}" requires a maximum of {verb.most} argument(s)')


def _show(verb: str) -> int:
    from hako.runtime import helptext

    sys.stdout.write(helptext.of_verb(verb) if verb else helptext.whole())
    return 0
