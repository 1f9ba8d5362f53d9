"""``hako attach``: joins the user's terminal or streams to the first process of a running container."""

from __future__ import annotations

from hako.cli import containers, options
from hako.cli.main import complain
from hako.sandbox import client, requests


def parser() -> options.Parser:
    """The command line of this verb."""
    about = (
        "Join a running container's terminal, or its streams. The exit code is the container's. With a terminal, "
        "ctrl-p ctrl-q leaves it; without, signals are passed on to the container."
    )
    parser = options.Parser("attach", about, "[OPTIONS] CONTAINER")
    parser.add_argument("--no-stdin", action="store_true", help="do not pass standard input on")
    parser.add_argument("--sig-proxy", choices=("true", "false"), default="true",
        help="false: a signal ends hako attach and not the container (default: true)")  # fmt: skip
    parser.add_argument("container", metavar="CONTAINER")
    return parser


def main(args: list[str]) -> int:
    """Stay attached until the container ends or the user leaves."""
    asked = parser().parse_args(args)
    target = containers.find_running(asked.container)
    tty = target.record.get("terminal") is True
    options.check_terminal(tty=tty, interactive=not asked.no_stdin)

    from hako.cli.session import Session, exit_code, with_reason

    sandbox_id, container_id = target.sandbox_id, target.container_id
    session = Session(sandbox_id, container_id, stdin=not asked.no_stdin, tty=tty)
    session.proxy = asked.sig_proxy == "true"
    with session, with_reason(sandbox_id), client.connect(sandbox_id) as sock:
        stdio = session.stdio()
        params = requests.target(container_id, stdio=list(stdio))
        call = client.PendingCall(sock, "Attach", params, list(stdio.values()))
        session.join()
        session.resize()
        end = session.wait(call)
        if end is not None and target.is_whole:
            session.leave()
            client.wait_end(sock)
    return exit_code(end, complain) if end else 0
