"""``hako ps``: lists containers."""

from __future__ import annotations

from typing import Any

from hako.cli import containers, options, tables
from hako.errors import ConfigError

_HEADER = ("CONTAINER ID", "IMAGE", "COMMAND", "CREATED", "STATUS", "PORTS", "NAME")


def parser() -> options.Parser:
    """The command line of this verb."""
    about = "List containers. One of a sandbox with several is called SANDBOX/CONTAINER."
    parser = options.Parser("ps", about, "[OPTIONS]")
    parser.add_argument("-a", "--all", action="store_true", help="also those that have ended")
    parser.add_argument("-q", "--quiet", action="store_true", help="ids only")
    parser.add_argument("--no-trunc", action="store_true", help="whole ids and commands")
    parser.add_argument("--format", default="table", metavar="FORMAT", help="table, or json for an object per line")
    return parser


def main(args: list[str]) -> int:
    """Print the list."""
    asked = parser().parse_args(args)
    if asked.format not in ("table", "json"):
        raise ConfigError(f"--format {asked.format!r} is not known; it can be table or json.")
    shown = [target for target in containers.all_targets() if asked.all or _is_shown(target)]
    shown.reverse()
    if asked.quiet:
        lines = [target.id if asked.no_trunc else target.short_id for target in shown]
    elif asked.format == "json":
        import json

        lines = [json.dumps(describe(target)) for target in shown]
    else:
        lines = [tables.table(_HEADER, [_row(target, whole=asked.no_trunc) for target in shown])]
    for line in lines:
        print(line)
    return 0


def _is_shown(target: containers.Target) -> bool:
    return target.is_live and target.status != "stopped"


def _row(target: containers.Target, *, whole: bool) -> tuple[str, ...]:
    import shlex

    command = shlex.join(target.record.get("command", []))
    image = str(target.record.get("image", ""))
    return (
        target.id if whole else target.short_id,
        image if whole else tables.shorten(image, 40),
        command if whole else tables.shorten(command, 30),
        f"{tables.since(_created(target))} ago",
        status(target),
        ", ".join(map(_text, _runs(published(target)))),
        target.name,
    )


def published(target: containers.Target) -> list[dict[str, Any]]:
    """The ports that the container has on the host now, as its sandbox's state has them."""
    return list(target.state.get("network", {}).get("ports", [])) if _is_shown(target) else []


def _runs(ports: list[dict[str, Any]]) -> list[tuple[dict[str, Any], int]]:
    """Each port that follows on no other, with the number of those that follow on it."""
    runs: list[tuple[dict[str, Any], int]] = []
    for port in ports:
        if runs:
            first, more = runs[-1]
            following = {name: first[name] + more + 1 for name in ("host_port", "container_port")}
            if port == first | following:
                runs[-1] = (first, more + 1)
                continue
        runs.append((port, 0))
    return runs


def _text(run: tuple[dict[str, Any], int]) -> str:
    """Published ports as docker writes them: ``0.0.0.0:8080-8081->80-81/tcp``."""
    port, more = run
    ip = port["host_ip"] or "0.0.0.0"  # noqa: S104 (it is shown only)
    host, guest = (
        f"{number}-{number + more}" if more else str(number) for number in (port["host_port"], port["container_port"])
    )
    return f"{f'[{ip}]' if ':' in ip else ip}:{host}->{guest}/{port['protocol']}"


def _created(target: containers.Target) -> int:
    return int(target.record.get("created_ns") or target.state["created_ns"])


def status(target: containers.Target) -> str:
    """The state of a container as people read it: ``Up 5 minutes``."""
    record = target.record
    if not record:
        return {"starting": "Starting", "running": "Up, without containers"}.get(target.status, "Stopped")
    if target.status == "stopped":
        return f"Exited ({record['exit_status']}) {tables.since(record['exited_ns'])} ago"
    if target.status == "created":
        return "Created"
    up = f"Up {tables.since(record['started_ns'])}"
    return f"{up} (Paused)" if target.status == "paused" else up


def describe(target: containers.Target) -> dict[str, Any]:
    """One container for programs: what ``ps --format json`` prints."""
    record = target.record
    return {
        "id": target.id,
        "sandbox": target.sandbox_id,
        "name": target.name,
        "image": record.get("image", ""),
        "command": record.get("command", []),
        "created": tables.timestamp(_created(target)),
        "status": target.status,
        "exit_status": record.get("exit_status") if target.status == "stopped" else None,
        "state": status(target),
        "ports": published(target),
    }
