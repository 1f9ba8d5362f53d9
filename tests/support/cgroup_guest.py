"""What tests/system/test_cgroups.py has run inside a VM, which has cgroup version 2 alone. Failures are tracebacks.

python cgroup_guest.py plain      in a container that may write to its cgroups
python cgroup_guest.py systemd    in one whose first process is systemd
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable

sys.path.insert(0, "/src")

from hako.cgroup import dbus, files
from hako.cgroup.api import Cgroup, Overhead, path_for
from hako.errors import HakoError
from hako.linux import syscalls

MOUNT = "/sys/fs/cgroup"
MIB = 1 << 20
RESOURCES = {
    "memory": {"limit": 64 * MIB, "swap": 96 * MIB, "reservation": 32 * MIB},
    "cpu": {"shares": 512, "quota": 50_000, "period": 100_000, "cpus": "0", "mems": "0"},
    "pids": {"limit": 50},
    "unified": {"memory.high": str(60 * MIB)},
}
EXPECTED = {
    "memory.max": str(576 * MIB),
    "memory.swap.max": str(32 * MIB),
    "memory.low": str(544 * MIB),
    "memory.high": str(572 * MIB),
    "cpu.weight": "20",
    "cpu.max": "150000 100000",
    "cpuset.cpus": "0",
    "cpuset.mems": "0",
    "pids.max": "178",
}


def sleeper() -> int:
    """A process to put somewhere. To import subprocess would take a second here."""
    if pid := os.fork():
        return pid
    while True:
        signal.pause()


def ended(pid: int) -> bool:
    """Wait for the end of a process; whether it was killed."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL


def where(pid: int) -> str:
    """The cgroup of a process."""
    with open(f"/proc/{pid}/cgroup", encoding="ascii") as file:
        return file.read().strip().removeprefix("0::")


def values(directory: str) -> dict[str, str]:
    """The limits of a cgroup."""
    return {name: files.read(directory, name) for name in EXPECTED}


def refusal(call: Callable[[], object]) -> str:
    """Why a call is refused."""
    try:
        call()
    except HakoError as error:
        return str(error)
    raise AssertionError("it was not refused")


def wait_for(condition: Callable[[], bool]) -> None:
    """Wait until something is so."""
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def check_oom(group: Cgroup, directory: str, process: int) -> None:
    """An event is seen, and nothing else is."""
    before, events = values(directory), files.table(directory, "memory.events")
    if not group.report_oom():
        raise AssertionError(files.read(directory, "memory.events"))
    now = files.table(directory, "memory.events")
    assert (now["oom_kill"], now["oom"]) == (events["oom_kill"] + 1, events["oom"] + 1), now
    assert now["oom_group_kill"] == 0, now
    assert os.waitpid(process, os.WNOHANG) == (0, 0)
    assert group.pids() == [process]
    assert values(directory) == before


def fill_cache(group: Cgroup) -> None:
    """Give the cgroup a page cache of more than report_oom() has its child use."""
    with open("/large", "wb") as file:
        file.truncate(96 * MIB)
    ready, go = os.pipe()
    reader = os.fork()
    if reader == 0:
        os.read(ready, 1)
        with open("/large", "rb") as file:
            while file.read(MIB):
                pass
        os._exit(0)
    group.add(reader)
    os.write(go, b"!")
    assert os.waitpid(reader, 0)[1] == 0


def plain() -> None:
    """The whole life of a cgroup."""
    syscalls.mount("none", MOUNT, flags=syscalls.MS_REMOUNT | syscalls.MS_BIND)
    os.mkdir(f"{MOUNT}/me")
    files.write(f"{MOUNT}/me", "cgroup.procs", "0")  # a cgroup with processes cannot have others below it
    process = sleeper()
    group = Cgroup.create(path_for("/deep/down/x", "id", systemd=False), RESOURCES, Overhead())
    directory = f"{MOUNT}/deep/down/x"
    group.add(process)
    assert where(process) == "/deep/down/x"
    assert values(directory) == EXPECTED, values(directory)

    files.write(directory, "memory.oom.group", "1")  # as systemd sets it for some
    check_oom(group, directory, process)
    assert files.read(directory, "memory.oom.group") == "1"
    fill_cache(group)
    assert files.table(directory, "memory.stat")["file"] > 90 * MIB
    check_oom(group, directory, process)

    group.update({"memory": {"limit": -1, "swap": -1}, "pids": {"limit": -1}})
    assert [files.read(directory, name) for name in ("memory.max", "memory.swap.max", "pids.max")] == ["max"] * 3
    check_oom(group, directory, process)
    assert str(process) in refusal(group.delete)
    group = Cgroup.open(group.to_json())
    group.kill()
    assert ended(process)
    group.delete()
    group.delete()
    assert not os.path.exists(directory)
    assert os.path.exists(f"{MOUNT}/deep/down")

    # This process's own cgroup is /me, and relative paths are beside that.
    group = Cgroup.create(path_for("", "id", systemd=False), {}, Overhead())
    assert group.directories == {"": f"{MOUNT}/id"}
    group.delete()
    # Processes in the cgroup above keep the controllers away, which is told when a limit needs them.
    path = path_for("/me/x", "id", systemd=False)
    assert "a cgroup above has processes of its own" in refusal(
        lambda: Cgroup.create(path, {"pids": {"limit": 5}}, Overhead())
    )
    assert not os.path.exists(f"{MOUNT}/me/x")


def has_all_controllers() -> bool:
    """Have all controllers given to the cgroups below the top one, which a host's real top one always can."""
    try:
        files.write(f"{MOUNT}/init.scope", "cgroup.procs", "0")
        files.write(MOUNT, "cgroup.subtree_control", "+cpu +cpuset +io +memory +pids")
    except OSError:
        return False  # systemd has not left it yet
    return True


def with_systemd() -> None:
    """The life of a scope, and of another one with its name."""
    wait_for(lambda: os.path.exists("/run/systemd/private"))
    wait_for(has_all_controllers)
    resources = {**RESOURCES, "unified": {}}
    path = path_for("hakotest-sub.slice:hako:one", "id", systemd=True)
    directory = f"{MOUNT}/hakotest.slice/hakotest-sub.slice/hako-one.scope"
    expected = {**EXPECTED, "memory.high": "max"}
    process = sleeper()
    group = Cgroup.open(Cgroup.create(path, resources, Overhead()).to_json())
    assert not os.path.exists(directory)
    group.add(process)
    assert where(process) == directory.removeprefix(MOUNT)
    assert values(directory) == expected, values(directory)
    # systemd has a unit of that name: the cgroup was not just made beside it.
    body = dbus.Writer()
    body.text("hako-one.scope")
    dbus.call("GetUnit", "s", body, seconds=60)

    group = Cgroup.open(group.to_json())
    group.update({"memory": {"limit": 128 * MIB, "swap": 128 * MIB}, "cpu": {"shares": 1024}})
    changed = expected | {"memory.max": str(640 * MIB), "memory.swap.max": "0", "cpu.weight": "39"}
    assert values(directory) == changed, values(directory)
    dbus.call("Reload", "", dbus.Writer(), seconds=60)  # it writes all limits that it knows anew
    assert values(directory) == changed, values(directory)
    group.kill()
    assert ended(process)
    group.delete()
    assert not os.path.exists(directory)

    # systemd has forgotten the scope, or it would refuse another one.
    process = sleeper()
    group = Cgroup.create(path, {}, Overhead())
    group.add(process)
    assert group.pids() == [process]
    group.kill()
    assert ended(process)
    group.delete()


if __name__ == "__main__":
    {"plain": plain, "systemd": with_systemd}[sys.argv[1]]()
