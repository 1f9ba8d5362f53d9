"""``hako-runtime exec``: one more process in a running container."""

from __future__ import annotations

import contextlib
import os
import signal

from hako import ids
from hako.errors import ConfigError, HakoError, StateError
from hako.linux import syscalls
from hako.oci import capabilities, check, environment
from hako.runtime import command, console, containers, foreground, hostcgroup, standin
from hako.runtime.containers import Container
from hako.runtime.making import refuse_fds, write_pid
from hako.runtime.verbs import Call
from hako.sandbox import client, requests
from hako.wire import jsontext

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_MAX_PROCESS = 1 << 20
_INTERRUPTS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


def main(call: Call) -> int:
    """Run it; returns its exit status, or 0 when detached. Raises HakoError."""
    container = containers.find(call.root, call.args[0])
    status = containers.status(container)
    if status == "paused" and not call.options.get("ignore-paused"):
        raise StateError("cannot exec in a paused container (use --ignore-paused to override)")
    if status not in ("running", "created", "paused"):
        raise StateError("cannot exec in a stopped container")
    if call.options.get("cgroup"):
        raise ConfigError("--cgroup: processes in the virtual machine are in their container's cgroup; leave it out.")
    refuse_fds(call)
    process = _process(call, container)
    detach = call.options.get("detach") is True
    console.check(process, call.options.get("console-socket", ""), detach=detach)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, _INTERRUPTS)
    try:
        with contextlib.ExitStack() as undo:
            terminal = None
            if process.get("terminal") is True:
                terminal = console.Terminal(console.wanted_size(process))
                undo.callback(terminal.close)
                if call.options.get("console-socket"):
                    terminal.send(call.options["console-socket"])
            standing = _start(container, process, terminal, undo)
            if call.options.get("pid-file"):
                write_pid(call.options["pid-file"], standing.pid)
            undo.pop_all()
            if detach:
                return 0
            return foreground.wait(standing, terminal)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _start(
    container: Container, process: dict[str, Any], terminal: console.Terminal | None, undo: contextlib.ExitStack
) -> standin.StandIn:
    def enter() -> None:
        hostcgroup.join(container.cgroup)
        if containers.is_its(container):
            fd = os.open(f"/proc/{container.pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
            syscalls.setns(fd, syscalls.CLONE_NEWNET)
            os.close(fd)

    slave = None if terminal is None else terminal.slave
    standing = standin.fork(enter=enter, own_namespaces=False, terminal=slave)
    undo.callback(standing.kill)
    stdio = {"stdin": 0, "stdout": 1, "stderr": 2}
    if terminal is not None:
        stdio = {"stdin": terminal.slave, "stdout": terminal.slave}
    exec_id = ids.new_id()
    params = requests.exec(container.guest_id, exec_id, process, list(stdio), console.wanted_size(process))
    with command.faults_in_engines_words(process["args"][0]):
        client.call(container.sandbox, "Exec", params, list(stdio.values()))
    # Until somebody stands for it, nobody would end it.
    undo.callback(_end, container, exec_id)
    standing.go(container.sandbox, container.guest_id, exec_id, " ".join(process["args"]), None)
    return standing


def _end(container: Container, exec_id: str) -> None:
    with contextlib.suppress(HakoError):
        client.call(container.sandbox, "Kill", requests.target(container.guest_id, exec_id, signal=int(signal.SIGKILL)))


def _process(call: Call, container: Container) -> dict[str, Any]:
    """The OCI process object: that of --process, or the container's own with what the flags change."""
    options = call.options
    if options.get("process"):
        return _read(options["process"])
    if len(call.args) < 2:
        raise ConfigError("process args cannot be empty")
    base = containers.record_of(container).get("process")
    process: dict[str, Any] = dict(base) if isinstance(base, dict) else {}
    process |= {"args": list(call.args[1:]), "terminal": options.get("tty") is True}
    process.pop("consoleSize", None)
    if options.get("cwd"):
        process["cwd"] = options["cwd"]
    process["env"] = environment.merge([str(entry) for entry in process.get("env") or []], options.get("env") or ())
    if options.get("user"):
        process["user"] = _user(options["user"])
    if options.get("additional-gids"):
        user = dict(process.get("user") or {"uid": 0, "gid": 0})
        user["additionalGids"] = [*(user.get("additionalGids") or ()), *options["additional-gids"]]
        process["user"] = user
    if options.get("no-new-privs"):
        process["noNewPrivileges"] = True
    if options.get("apparmor"):
        process["apparmorProfile"] = options["apparmor"]
    if options.get("process-label"):
        process["selinuxLabel"] = options["process-label"]
    if options.get("cap"):
        process["capabilities"] = _capabilities(process.get("capabilities") or {}, options["cap"])
    return check.check_process(process)


def _read(path: str) -> dict[str, Any]:
    try:
        with open(path, "rb") as file:
            return check.check_process(jsontext.loads(file.read(_MAX_PROCESS)))
    except OSError as error:
        raise ConfigError(f"Cannot read {path}: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not JSON: {error}.") from error


def _user(text: str) -> dict[str, int]:
    """UID[:GID]. Raises ConfigError: names are the engine's to look up."""
    uid, colon, gid = text.partition(":")
    if not uid.isdecimal() or (colon and not gid.isdecimal()):
        raise ConfigError(f"--user {text!r}: give a number, or two as UID:GID.")
    return {"uid": int(uid), "gid": int(gid) if gid else 0}


def _capabilities(have: dict[str, Any], more: list[str]) -> dict[str, list[str]]:
    for name in more:
        if name not in capabilities.ALL:
            raise ConfigError(f"--cap: there is no capability {name!r}; they are named as in CAP_NET_RAW.")
    names = ("bounding", "effective", "inheritable", "permitted", "ambient")
    # Those that are inheritable are what an unprivileged program can be given as ambient ones.
    grown = {name: [*dict.fromkeys([*(have.get(name) or ()), *more])] for name in names}
    return {**grown, "inheritable": list(have.get("inheritable") or ()), "ambient": list(have.get("ambient") or ())}
