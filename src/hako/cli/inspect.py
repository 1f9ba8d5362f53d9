"""``hako inspect``: all that is known of containers, as JSON."""

from __future__ import annotations

import os
from typing import Any

from hako.cli import containers, options, tables
from hako.sandbox import records


def parser() -> options.Parser:
    """The command line of this verb."""
    parser = options.Parser("inspect", "Show all that is known of containers, as JSON.", "CONTAINER...")
    parser.add_argument("containers", metavar="CONTAINER", nargs="+")
    return parser


def main(args: list[str]) -> int:
    """Print an array with an object for each container."""
    import json

    found = [describe(containers.find(ref)) for ref in parser().parse_args(args).containers]
    print(json.dumps(found, indent=2))
    return 0


def describe(target: containers.Target) -> dict[str, Any]:
    """The object for one container."""
    state, record = target.state, target.record
    spec = state["spec"]
    times = {
        name: tables.timestamp(record.get(f"{name}_ns", 0)) or None
        for name in ("created", "started", "exited")
        if record
    }
    return {
        "id": target.id,
        "name": target.name,
        "status": target.status,
        "error": record.get("error") or state["error"],
        **times,
        "exit_status": record.get("exit_status") if target.status == "stopped" else None,
        "oom": record.get("oom", False),
        "image": record.get("image", ""),
        "command": record.get("command", []),
        "process": record.get("process", {}),
        "mounts": record.get("mounts", []),
        "terminal": record.get("terminal", False),
        "rootfs": record.get("lower", ""),
        "log": log_path(target) if record else "",
        "labels": spec["labels"],
        "sandbox": {
            "id": target.sandbox_id,
            "status": state["status"],
            "created": tables.timestamp(state["created_ns"]),
            "pid": state["pid"],
            "vm_pid": state["vm_pid"],
            "memory": spec["memory"],
            "vcpus": spec["vcpus"],
            "info": state["info"],
            "network": {"name": spec.get("network", "none"), "addresses": [], "ports": [], **state.get("network", {})},
            "console_log": os.path.join(records.run_dir(target.sandbox_id), "console.log") if target.is_live else "",
        },
    }


def log_path(target: containers.Target) -> str:
    """The file that holds what the container has written."""
    return os.path.join(records.data_dir(target.sandbox_id), "containers", target.container_id, "log")
