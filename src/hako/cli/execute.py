"""``hako exec``: one more process in a running container."""

from __future__ import annotations

import argparse
import contextlib
import signal

from hako import ids
from hako.cli import containers, options
from hako.cli.main import complain
from hako.errors import HakoError
from hako.sandbox import client, records, requests


def parser() -> options.Parser:
    """The command line of this verb."""
    about = "Run one more command in a running container. The exit code is the command's."
    parser = options.Parser("exec", about, "[OPTIONS] CONTAINER COMMAND [ARGUMENT...]")
    options.add_process_options(parser)
    parser.add_argument("-d", "--detach", action="store_true", help="start it and do not wait")
    parser.add_argument("container", metavar="CONTAINER")
    options.add_command(parser, "what to run, with its arguments")
    return parser


def main(args: list[str]) -> int:
    """Run the command; returns its exit code."""
    asked = parser().parse_args(args)
    if not asked.detach:
        options.check_terminal(tty=asked.tty, interactive=asked.interactive)
    variables = options.parse_env(asked.env, asked.env_file)
    target = containers.find_running(asked.container)
    process = requests.exec_process(
        target.record,
        asked.command,
        env=[f"{name}={value}" for name, value in variables.items()],
        cwd=asked.workdir,
        user=asked.user,
        terminal=asked.tty,
        rootfs=records.live_rootfs(target.sandbox_id, target.container_id),
    )
    exec_id = ids.new_id()
    if asked.detach:
        client.call(target.sandbox_id, "Exec", requests.exec(target.container_id, exec_id, process, []))
        return 0
    return _run(target, exec_id, process, asked)


def _run(target: containers.Target, exec_id: str, process: dict[str, object], asked: argparse.Namespace) -> int:
    from hako.cli.session import Interrupted, Session, exit_code, with_reason

    sandbox_id, container_id = target.sandbox_id, target.container_id
    session = Session(sandbox_id, container_id, exec_id, stdin=asked.interactive, tty=asked.tty)
    with session, with_reason(sandbox_id), client.connect(sandbox_id) as sock:
        stdio = session.stdio()
        params = requests.exec(container_id, exec_id, process, list(stdio), session.size())
        session.start(client.PendingCall(sock, "Exec", params, list(stdio.values())))
        session.join()
        try:
            end = session.wait(client.PendingCall(sock, "Wait", requests.target(container_id, exec_id)))
        except Interrupted:
            # The user's terminal is gone, so a shell on its other side has nobody left.
            with contextlib.suppress(HakoError):
                hangup = requests.target(container_id, exec_id, signal=int(signal.SIGHUP))
                client.call(sandbox_id, "Kill", hangup)
            raise
    return 0 if end is None else exit_code(end, complain)
