"""The virtiofs driver around its helper process: which program, with which options, and every way it can end."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hako.config.settings import Config
from hako.errors import HakoError, HostError
from hako.hypervisor.base import ShareVirtiofs
from hako.storage import shares, virtiofs
from hako.storage.base import NAME, TAG
from hako.storage.ninep import NinePShare
from hako.storage.virtiofs import Program, VirtiofsShare, arguments, find_program, private_socket

root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


def program(path: Path, script: str) -> str:
    """An executable at ``path``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


def test_the_configuration_chooses_the_driver() -> None:
    assert isinstance(shares.make(Config({"share.driver": "9p"}).share), NinePShare)
    made = shares.make(Config({"share.driver": "virtiofs"}).share)
    assert isinstance(made, VirtiofsShare)
    assert made.sharing == "shared"
    assert made.device("/run/shared") is None
    assert made.plugged() == ShareVirtiofs(TAG)
    request = made.mount_request()
    assert request.params() == {"driver": "virtiofs", "tag": TAG, "name": NAME, "options": ""}


def test_options_of_the_program_that_comes_with_qemu() -> None:
    assert arguments(Program("/usr/lib/qemu/virtiofsd", rust=False), "/run/s", 7, "auto", 1000) == [
        "/usr/lib/qemu/virtiofsd",
        "--fd=7",
        "--rlimit-nofile=1000",
        "--thread-pool-size=0",
        "-f",
        "-o",
        "sandbox=namespace,cache=auto,xattr,posix_acl,modcaps=-mknod,"
        "killpriv_v2,no_flock,no_posix_lock,no_writeback,log_level=warn",
        "-o",
        "source=/run/s",
    ]


def test_options_of_its_successor() -> None:
    assert arguments(Program("/usr/libexec/virtiofsd", rust=True), "/run/s", 7, "none", 0) == [
        "/usr/libexec/virtiofsd",
        "--fd=7",
        "--rlimit-nofile=0",
        "--thread-pool-size=0",
        "--cache=never",
        "--xattr",
        "--posix-acl",
        "--inode-file-handles=never",
        "--killpriv-v2",
        "--modcaps=-mknod",
        "--log-level=warn",
        "--sandbox=namespace",
        "--shared-dir=/run/s",
    ]


def test_which_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = program(tmp_path / "libexec" / "old", "echo virtiofsd version 7.2.1; echo Copyright the QEMU Project")
    new = program(tmp_path / "libexec" / "new", "echo virtiofsd 1.13.0")
    beside = program(tmp_path / "qemu" / "virtiofsd", "exit 1")
    assert find_program(old) == Program(old, rust=False)
    assert find_program(new) == Program(new, rust=True)
    monkeypatch.setattr(virtiofs, "PLACES", (str(tmp_path / "missing"), str(tmp_path), beside, new))
    assert find_program() == Program(beside, rust=False)
    with pytest.raises(HostError, match=r"There is no program /nowhere, which the setting share\.virtiofsd names"):
        find_program("/nowhere")
    monkeypatch.setattr(virtiofs, "PLACES", ())
    monkeypatch.setitem(virtiofs.BASE_ENV, "PATH", str(tmp_path))
    with pytest.raises(HostError, match="Install the package qemu-system-common"):
        find_program()


def test_nobody_else_gets_into_the_socket() -> None:
    listener, ours = private_socket()
    with listener, ours, socket.socket(socket.AF_UNIX) as other:
        other.setblocking(False)
        with pytest.raises(BlockingIOError):
            other.connect(listener.getsockname())
        accepted = listener.accept()[0]
        with accepted:
            ours.sendall(b"ours")
            assert accepted.recv(10) == b"ours"


def _lost(share: VirtiofsShare, path: str) -> tuple[HakoError, HakoError | None]:
    """What the owner is told when the helper ends by itself, and what it can ask for."""

    async def body() -> HakoError:
        told: asyncio.Future[HakoError] = asyncio.get_running_loop().create_future()
        share.on_exit = told.set_result
        try:
            assert await share.start(path) is not None
            return await asyncio.wait_for(told, 20)
        finally:
            await share.close()

    return asyncio.run(body()), share.lost


@root
@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("echo 'cannot do it.' >&2; exit 3", "failed with status 3: cannot do it."),
        ("kill -9 $$", "was ended by signal SIGKILL: it said nothing."),
        ("printf 'a\\033[2Jb\\n'; exit 1", "failed with status 1: a\\x1b[2Jb."),
    ],
)
def test_a_helper_that_ends_is_reported_in_one_sentence(script: str, words: str, tmp_path: Path) -> None:
    binary = program(tmp_path / "qemu" / "virtiofsd", script)
    told, lost = _lost(VirtiofsShare(binary), "/srv")
    assert str(told) == f"virtiofsd, which serves the files of the VM, {words}"
    assert lost is told


@root
def test_the_real_program_says_what_is_wrong(tmp_path: Path) -> None:
    told, _ = _lost(VirtiofsShare(), str(tmp_path / "missing"))
    assert "failed with status 1" in str(told)
    assert "No such file or directory" in str(told)


@root
def test_a_helper_that_ends_in_peace_is_no_failure(tmp_path: Path) -> None:
    async def body() -> None:
        share = VirtiofsShare(program(tmp_path / "qemu" / "virtiofsd", "exit 0"))
        told: list[HakoError] = []
        share.on_exit = told.append
        await share.start("/srv")
        while share.pid is not None:
            await asyncio.sleep(0.01)
        await share.close()
        assert told == []
        assert share.lost is None

    asyncio.run(body())


@root
def test_closing_ends_it_with_all_it_started(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    script = f"trap '' TERM HUP; sleep 1000 & echo $! > {pids}.new; mv {pids}.new {pids}; wait"

    async def body() -> int:
        share = VirtiofsShare(program(tmp_path / "qemu" / "virtiofsd", script))
        told: list[HakoError] = []
        share.on_exit = told.append
        fd = await share.start("/srv")
        assert fd is not None
        while not pids.exists():
            await asyncio.sleep(0.01)
        pid = share.pid
        assert pid is not None
        await share.close()
        await share.close()
        assert share.pid is None
        assert told == []
        assert not os.path.exists(f"/proc/{pid}")
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)
        return int(pids.read_text())

    child = asyncio.run(body())
    # It is somebody else's child by now, so its end can only be looked for.
    deadline = time.monotonic() + 20
    while os.path.exists(f"/proc/{child}/fd/0"):
        assert time.monotonic() < deadline
        time.sleep(0.01)


_OWNER = """
import asyncio, sys, time
from pathlib import Path
from hako.storage.virtiofs import VirtiofsShare

async def main():
    share = VirtiofsShare()
    await share.start(sys.argv[1])
    children = Path(f"/proc/{share.pid}/task/{share.pid}/children")
    while not (found := children.read_text().split()):
        await asyncio.sleep(0.01)
    print(share.pid, *found, flush=True)
    await asyncio.sleep(1000)

asyncio.run(main())
"""


@root
def test_the_real_program_ends_with_a_killed_owner(tmp_path: Path) -> None:
    argv = [sys.executable, "-c", _OWNER, str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, env=environment) as owner:
        assert owner.stdout is not None
        pids = owner.stdout.readline().split()
        owner.kill()
    assert len(pids) == 2
    deadline = time.monotonic() + 20
    while any(os.path.exists(f"/proc/{pid}/fd/0") for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.01)


@root
def test_what_cannot_be_shared(tmp_path: Path) -> None:
    async def body(share: VirtiofsShare, path: str) -> None:
        try:
            await share.start(path)
        finally:
            await share.close()

    with pytest.raises(HostError, match="whose name contains a comma"):
        asyncio.run(body(VirtiofsShare(), str(tmp_path / "a,b")))
    with pytest.raises(HostError, match="There is no program"):
        asyncio.run(body(VirtiofsShare(str(tmp_path / "missing")), "/srv"))


def test_closing_what_was_never_started() -> None:
    async def body() -> None:
        for share in (VirtiofsShare(), NinePShare(8192)):
            await share.close()
            assert share.pid is None

    asyncio.run(body())
