"""``hako run``: one container in a VM of its own, in the foreground or in the background."""

from __future__ import annotations

import argparse
import contextlib
import signal
import socket
from typing import Any

from hako.cli import options
from hako.cli.main import RUNNING_SINCE, complain
from hako.config.load import load
from hako.errors import HakoError
from hako.sandbox import client, daemon, records, requests
from hako.sandbox.build import Build, Built, build
from hako.sandbox.spec import SandboxSpec
from hako.sandbox.trace import of_process

#: Label under which the image's stop signal is kept for ``hako stop``.
STOP_SIGNAL = "dev.hako.stop-signal"

_INTERRUPTS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)

_EPILOG = (
    "Networks: bridge, the default, is hako's own; others are CNI configuration lists in /etc/hako/cni; with none the "
    "container has the loopback interface and nothing else, and starts a little sooner. "
    "The exit code is the command's; 125 means that hako failed, 126 that the command cannot be executed, 127 that "
    "there is no such command. With -i -t, ctrl-p ctrl-q detaches and leaves the container running. Three "
    "interrupts within three seconds kill a container that does not heed them."
)


def parser() -> options.Parser:
    """The command line of this verb."""
    about = "Run a command in a new container, in a virtual machine of its own."
    parser = options.Parser("run", about, "[OPTIONS] IMAGE [COMMAND [ARGUMENT...]]", _EPILOG)
    options.add_process_options(parser)
    add = parser.add_argument
    add("-d", "--detach", action="store_true", help="run in the background and print the container's id")
    add("--rm", action="store_true", help="remove the container when it ends")
    add("--name", default="", help="a name to find the container by")
    add("-v", "--volume", action="append", default=[], metavar="SOURCE:DESTINATION[:ro]",
        help="a directory or file of the host for the container")  # fmt: skip
    add("--tmpfs", action="append", default=[], metavar="PATH[:OPTIONS]", help="a file system in memory")
    add("--read-only", action="store_true", help="the container cannot write to its root file system")
    add("--hostname", default="", metavar="NAME", help="the container's host name; by default its id")
    add("-m", "--memory", default=None, metavar="SIZE", help="limit of the memory, for example 512m; sizes the VM")
    add("--cpus", default=None, metavar="NUMBER", help="limit of CPU time, for example 1.5; sizes the VM")
    add("--annotation", action="append", default=[], metavar="KEY=VALUE",
        help="change a setting for this sandbox, for example dev.hako.template=false")  # fmt: skip
    add("--entrypoint", default=None, metavar="COMMAND", help="replaces the image's; an empty one takes it away")
    add("--pull", default="missing", choices=("always", "missing", "never"),
        help="when to ask the registry for the image (default: missing)")  # fmt: skip
    add("--network", default="", metavar="NAME", help="bridge, none, or another network (default: bridge)")
    add("-p", "--publish", action="append", default=[], metavar="[IP:][HOST:]GUEST[/PROTOCOL]",
        help="a port, or a range, of the container that the host passes on; tcp, udp or sctp")  # fmt: skip
    add("--dns", action="append", default=[], metavar="ADDRESS", help="a name server, instead of the host's")
    add("--dns-search", action="append", default=[], metavar="DOMAIN",
        help="a domain to look names up in, instead of the host's; . for none")  # fmt: skip
    add("--add-host", action="append", default=[], metavar="NAME:ADDRESS", help="an entry of /etc/hosts")
    add("--trace", default="", metavar="FILE", help="write the phases of the start to FILE, as Chrome trace JSON")
    add("image", metavar="IMAGE", help="a name, or the path of an archive, OCI layout or root directory")
    options.add_command(parser, "replaces the image's command")
    return parser


def main(args: list[str]) -> int:
    """Run the container; returns its exit code."""
    trace = of_process("command", RUNNING_SINCE)
    trace.mark("imports", "command")
    asked = parser().parse_args(args)
    check(asked)
    config = load()
    trace.mark("options", "command")
    # Sizes and names are checked before an image is fetched, which may take long.
    spec = requests.sandbox_spec(
        config,
        name=asked.name,
        memory=asked.memory,
        cpus=None if asked.cpus is None else options.parse_cpus(asked.cpus),
        annotations=options.parse_annotations(asked.annotation),
        retain=not asked.rm,
        network=asked.network or config.network.default,
        ports=asked.publish,
        dns=asked.dns,
        dns_search=asked.dns_search,
        hosts=asked.add_host,
    )
    built = build(to_build(asked), config, progress, container_id=spec.id)
    trace.mark("image", "command")
    stop_signal = built.image_config.get("StopSignal")
    if isinstance(stop_signal, str) and stop_signal:
        spec = spec._replace(labels={STOP_SIGNAL: stop_signal})
    # Owned at first even with -d: if this process is killed before it can name the container, nothing is left.
    # An interrupt in the middle of it would leave a sandbox that nobody knows of.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, _INTERRUPTS)
    try:
        owner = daemon.fork(spec, config, trace)
    except BaseException:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        raise
    try:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        with owner:
            return (_run_detached if asked.detach else _run)(owner, spec, built, asked)
    except BaseException:
        _discard(spec.id)
        raise


def check(asked: argparse.Namespace) -> None:
    """Refuse options that do not go together. Raises ConfigError."""
    if not asked.detach:
        options.check_terminal(tty=asked.tty, interactive=asked.interactive)
    if asked.trace:
        from hako.cli.trace import check_writable

        check_writable(asked.trace, "--trace")


def to_build(asked: argparse.Namespace) -> Build:
    """The container that the options describe. Raises ConfigError."""
    return Build(
        image=asked.image,
        args=asked.command,
        env=options.parse_env(asked.env, asked.env_file),
        cwd=asked.workdir,
        user=asked.user,
        hostname=asked.hostname,
        memory=asked.memory,
        cpus=None if asked.cpus is None else options.parse_cpus(asked.cpus),
        mounts=[options.parse_volume(text) for text in asked.volume],
        tmpfs=asked.tmpfs,
        read_only=asked.read_only,
        tty=asked.tty,
        entrypoint=asked.entrypoint,
        pull=asked.pull,
    )


def progress(line: str) -> None:
    """A step on the way to the image, for people."""
    import sys

    print(line, file=sys.stderr, flush=True)


def _create(
    spec: SandboxSpec, built: Built, asked: argparse.Namespace, stdio: list[str], size: tuple[int, int] | None
) -> dict[str, Any]:
    return requests.create(
        spec.id,
        built.spec,
        lower=built.lower,
        digest=built.digest,
        stdio=stdio,
        start=True,
        main=True,
        log=True,
        keep_stdin=asked.interactive,
        image=built.image,
        size=size,
    )


def _run_detached(owner: socket.socket, spec: SandboxSpec, built: Built, asked: argparse.Namespace) -> int:
    from hako.cli.session import with_reason

    with with_reason(spec.id):
        made = client.exchange(owner, "Create", _create(spec, built, asked, [], None))
    with contextlib.suppress(client.GoneError):  # a short command has ended already
        client.exchange(owner, "Disown", {})
    print(spec.id, flush=True)
    _write_trace(asked, spec, made)
    return 0


def _run(owner: socket.socket, spec: SandboxSpec, built: Built, asked: argparse.Namespace) -> int:
    # Not before the fork: the sandbox process needs neither these modules nor the pipes that a session makes.
    from hako.cli.session import Session, exit_code, with_reason

    session = Session(spec.id, spec.id, stdin=asked.interactive, tty=asked.tty)
    with session, with_reason(spec.id):
        stdio = session.stdio()
        params = _create(spec, built, asked, list(stdio), session.size())
        made = session.start(client.PendingCall(owner, "Create", params, list(stdio.values())))
        with client.connect(spec.id) as sock:
            session.join()
            target = requests.target(spec.id, trace=bool(asked.trace))
            end = session.wait(client.PendingCall(sock, "Wait", target))
        if end is None:
            client.exchange(owner, "Disown", {})
            _write_trace(asked, spec, made)
            return 0
        session.leave()
        client.wait_end(owner)
    _write_trace(asked, spec, end)
    return exit_code(end, complain)


def _write_trace(asked: argparse.Namespace, spec: SandboxSpec, answer: dict[str, Any]) -> None:
    """Write the trace in the sandbox process's ``answer``, if the user wants it."""
    if asked.trace:
        from hako.cli import trace

        trace.write_answer(asked.trace, answer.get("trace"), spec.name or spec.id)


def _discard(sandbox_id: str) -> None:
    """End a sandbox that is of no use and wait until nothing of it is left, but what its container has written."""
    with contextlib.suppress(HakoError, OSError):
        with contextlib.suppress(client.GoneError), client.connect(sandbox_id) as sock:
            client.exchange(sock, "Stop", {})
            client.wait_end(sock)
        state = records.read(sandbox_id)
        if not state["containers"]:
            records.remove(state)
