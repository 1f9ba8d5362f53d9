"""Clones of one template: each is another machine, and none of them can change what they come from."""

from __future__ import annotations

import errno
import itertools
import json
import os
import subprocess
import time
from typing import Any

import pytest

from conftest import Roots, RunHako
from hako.config.settings import TemplateSettings
from hako.template import api, keeper
from support import clones

pytestmark = [pytest.mark.system, pytest.mark.slow, pytest.mark.usefixtures("guest_image", "busybox_image")]

#: What a container finds out about its machine, as one line of JSON; then the time, for each line that it reads.
_ASK = r"""
import os, sys, time, _socket
def read(path):
    with open(path) as file:
        return file.read().strip()
def sequence(port):
    raw = _socket.socket(_socket.AF_INET, _socket.SOCK_RAW, 6)
    one = _socket.socket()
    one.bind(("127.0.0.1", port))
    try:
        one.connect(("127.0.0.1", port + 1))
    except OSError:
        pass
    # 250,000 a second are added to what a secret makes of the addresses (RFC 6528); Linux adds one in 64 ns.
    return (int.from_bytes(raw.recv(100)[24:28], "big") - (time.time_ns() >> 6)) % 2**32
maps = {line.split()[-1]: line.split("-")[0] for line in read("/proc/self/maps").split("\n") if line.endswith("]")}
auxv = open("/proc/self/auxv", "rb").read()
vectors = {}
for at in range(0, len(auxv), 16):
    vectors[int.from_bytes(auxv[at:at + 8], "little")] = int.from_bytes(auxv[at + 8:at + 16], "little")
with open("/proc/self/mem", "rb", 0) as memory:
    memory.seek(vectors[25])
    at_random = memory.read(16).hex()
nets = [name for name in os.listdir("/sys/class/net") if name != "lo"]
print(repr({
    "random": os.getrandom(32).hex(),
    "urandom": open("/dev/urandom", "rb").read(32).hex(),
    "uuid": read("/proc/sys/kernel/random/uuid"),
    "boot_id": read("/proc/sys/kernel/random/boot_id"),
    "hostname": os.uname().nodename,
    "at_random": at_random,
    "stack": maps["[stack]"],
    "vdso": maps["[vdso]"],
    "heap": maps["[heap]"],
    "mac": read(f"/sys/class/net/{nets[0]}/address"),
    "sequences": [sequence(port) for port in (4000, 5000, 6000)],
}))
for line in sys.stdin:
    print(time.time_ns())
"""
#: Leaves nothing of the guest's memory untouched, with content that is nowhere in the template, and frees all of it.
_FILL = r"""
yes "$0" | head -c 16m > /fill/pattern
n=0
while cat /fill/pattern > /fill/$n 2>/dev/null; do n=$((n + 1)); done
ls /fill | wc -l
rm -r /fill/*
sleep 4
head -c 8m /dev/zero | md5sum
"""
_COUNT = 20
_AT_ONCE = 10


def _key(run_hako: RunHako, driver: str) -> str:
    """The template of a driver, in memory."""
    run_hako("run", "--rm", *clones.with_driver(driver), "busybox", "true")
    wanted = "shared" if driver == "virtiofs" else "private"
    found = [
        key
        for key, template in api.list_templates(TemplateSettings({}))
        if template is not None and template.identity["sharing"] == wanted and keeper.pid_of(key)
    ]
    assert len(found) == 1
    return found[0]


def _meet(hako_cmd: list[str], count: int) -> list[dict[str, Any]]:
    """Start ``count`` clones that live at the same time, and ask each who it is and what time it has."""
    options, command = clones.python(_ASK)
    argv = [*hako_cmd, "run", "-i", "--rm", *options, *clones.with_driver("9p"), "busybox", *command]
    found = []
    with clones.alive([argv] * count) as children:
        for child in children:
            assert child.stdin is not None
            assert child.stdout is not None
            line = child.stdout.readline()
            assert line, child.communicate()[1]
            found.append(eval(line, {"__builtins__": {}}))
            offsets = []
            for _ in range(5):
                before = time.time_ns()
                child.stdin.write("?\n")
                child.stdin.flush()
                guest = int(child.stdout.readline())
                after = time.time_ns()
                # How far it is outside of the time in which it was asked.
                offsets.append(max(before - guest, guest - after, 0))
            found[-1]["offset"] = min(offsets)
        for child in children:
            child.communicate(timeout=60)
            assert child.returncode == 0
    return found


@pytest.fixture(scope="module")
def machines(hako_cmd: list[str], run_hako: RunHako) -> list[dict[str, Any]]:
    """What twenty clones say of themselves."""
    _key(run_hako, "9p")
    return [one for _ in range(_COUNT // _AT_ONCE) for one in _meet(hako_cmd, _AT_ONCE)]


@pytest.mark.parametrize(
    "what", ["random", "urandom", "uuid", "boot_id", "hostname", "at_random", "stack", "vdso", "heap", "mac"]
)
def test_no_two_clones_are_equal(machines: list[dict[str, Any]], what: str) -> None:
    values = [machine[what] for machine in machines]
    assert len(values) == _COUNT
    assert len(set(values)) == _COUNT, values


def test_no_two_clones_number_their_connections_alike(machines: list[dict[str, Any]]) -> None:
    # With the same secret all would be within a moment of each other; that three are so by chance does not happen.
    for one, other in itertools.combinations(machines, 2):
        distances = [(a - b) % 2**32 for a, b in zip(one["sequences"], other["sequences"], strict=True)]
        assert any(min(distance, 2**32 - distance) > 2**23 for distance in distances)


def test_clocks_are_the_hosts(machines: list[dict[str, Any]]) -> None:
    assert max(machine["offset"] for machine in machines) < 50_000_000


def _fill(run_hako: RunHako, driver: str, number: int) -> str:
    fill = ["--tmpfs", "/fill:size=90%", *clones.with_driver(driver)]
    done = run_hako("run", "--rm", *fill, "busybox", "sh", "-c", _FILL, f"clone {number} of {driver}", timeout=240)
    written, digest = done.stdout.split("\n")[:2]
    # All there is: as many pieces of 16 MiB as a guest of 512 MiB has room for.
    assert int(written) * 16 >= 350, done.stdout
    return digest


@pytest.mark.parametrize(("driver", "count"), [("9p", _COUNT), ("virtiofs", 6)])
def test_no_clone_changes_the_template(run_hako: RunHako, driver: str, count: int) -> None:
    key = _key(run_hako, driver)
    template = api.get(TemplateSettings({}), key)
    holder, before = keeper.pid_of(key), clones.checksum(key)
    digests = clones.each(list(range(count)), lambda number: _fill(run_hako, driver, number))
    assert len(set(digests)) == 1
    assert keeper.pid_of(key) == holder
    assert clones.checksum(key) == before
    template.check()
    assert api.verify(TemplateSettings({}), key).memory == template.memory
    # And what comes from it afterwards is sound.
    assert run_hako("run", "--rm", *clones.with_driver(driver), "busybox", "echo", "fine").stdout == "fine\n"
    assert keeper.pid_of(key) == holder


_ATTACK = r"""
import ctypes, mmap, os, sys
fd = int(sys.argv[1])
libc = ctypes.CDLL(None, use_errno=True)
libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
def punch(number):
    if libc.fallocate(number, 3, 0, 1 << 20) != 0:
        raise OSError(ctypes.get_errno(), "punch")
tries = {
    "write": lambda number: os.pwrite(number, b"x", 4096),
    "punch": punch,
    "truncate": lambda number: os.ftruncate(number, 0),
    "grow": lambda number: os.ftruncate(number, 1 << 32),
    "map": lambda number: mmap.mmap(number, 4096, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE),
}
writable = os.open(f"/proc/self/fd/{fd}", os.O_RDWR)
private = mmap.mmap(writable, 1 << 20, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE)
private[:] = b"x" * (1 << 20)
for name, attempt in tries.items():
    for number in (fd, writable):
        try:
            attempt(number)
            print(name, "works")
        except (OSError, ValueError) as error:
            print(name, getattr(error, "errno", error))
try:
    private.madvise(mmap.MADV_REMOVE)
    print("remove works")
except OSError as error:
    print("remove", error.errno)
"""


def test_whoever_breaks_qemu_cannot_change_the_template(run_hako: RunHako) -> None:
    """With QEMU's user, and the capabilities that it has for a share of 9p, and the same descriptor."""
    from hako.hypervisor import confine

    key = _key(run_hako, "9p")
    before = clones.checksum(key)
    held = keeper.find(key)
    assert held is not None
    try:
        account = confine.find_account(confine.DEFAULT_USER, "tcg")
        prefix = confine.launch_prefix(account, confine.SHARE_CAPABILITIES, root=True)
        argv = [*prefix, "/usr/bin/python3", "-IS", "-c", _ATTACK, str(held.memory)]
        done = subprocess.run(argv, pass_fds=[held.memory], capture_output=True, text=True, timeout=60, check=False)
    finally:
        held.close()
    assert done.returncode == 0, done.stderr
    results = [line.split(maxsplit=1) for line in done.stdout.splitlines()]
    assert len(results) == 11
    for name, outcome in results:
        assert outcome in (str(errno.EPERM), str(errno.EACCES), str(errno.EBADF), str(errno.EINVAL)), name
    assert [outcome for name, outcome in results if name == "punch"][1] == str(errno.EPERM)
    assert clones.checksum(key) == before


def test_a_clone_is_one_and_says_so(run_hako: RunHako, roots: Roots) -> None:
    key = _key(run_hako, "9p")
    for template, more in ((key, []), ("", ["--annotation", "dev.hako.template=false"])):
        options = ["-d", "--rm", "--name", "cloned", *clones.with_driver("9p"), *more]
        run_hako("run", *options, "busybox", "sleep", "1000")
        try:
            (found,) = json.loads(run_hako("inspect", "cloned").stdout)
            assert found["sandbox"]["info"]["template"] == template
            console = os.path.join(roots.state, "sandboxes", found["sandbox"]["id"], "console.log")
            assert os.path.getsize(console) == 0
        finally:
            run_hako("rm", "-f", "cloned")
