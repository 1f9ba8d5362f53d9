"""The warm pool through the real command: starts take from it, it is filled again, and it never stands in the way."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import hako
from conftest import Roots, RunHako
from hako.sandbox import pool
from support import leaks, settings

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.usefixtures("guest_image", "busybox_image")]

_SIZE = 2

#: What differs between any two machines, a line each.
_WHO = """
hostname
cat /sys/class/net/eth0/address
cat /proc/sys/kernel/random/boot_id /proc/sys/kernel/random/uuid
head -c 16 /dev/urandom | od -An -tx1
date +%s
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("etc")
    settings.without_network(directory)
    return directory / "config.toml"


@pytest.fixture(autouse=True)
def full(config: Path, roots: Roots, run_hako: RunHako, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A pool that is full; nothing of it, nor of what was started from it, is left afterwards."""
    configure(config)
    monkeypatch.setenv("HAKO_CONFIG", str(config))
    run_hako("pool", "fill")
    yield
    configure(config, size=0)
    for name in run_hako("ps", "-a", "-q").stdout.split():
        run_hako("rm", "-f", name)
    run_hako("pool", "drain")
    assert leaks.wait_gone(roots.base, 10) == {}
    assert leaks.mounts(roots.base) == []
    for directory in ("pool", "sandboxes"):
        assert leaks.files(os.path.join(roots.state, directory)) == []
        assert [name for name in os.listdir(os.path.join(roots.state, directory)) if name != "lock"] == []


def configure(config: Path, size: int = _SIZE, more: str = "") -> None:
    config.write_text(f"[pool]\nsize = {size}\n{more}")


def listed(run_hako: RunHako) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(run_hako("pool", "list", "--format", "json").stdout)
    return found


def ready(run_hako: RunHako) -> set[str]:
    return {entry["id"] for entry in listed(run_hako) if entry["status"] == "ready"}


def until(condition: Callable[[], object], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.1)


def sandbox_of(run_hako: RunHako, ref: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(run_hako("inspect", ref).stdout)[0]["sandbox"]
    return found


def is_warm(run_hako: RunHako, ref: str) -> bool:
    return sandbox_of(run_hako, ref)["info"].get("pool") is True


def start(run_hako: RunHako, *options: str) -> str:
    return run_hako("run", "-d", *options, "busybox", "sleep", "1000").stdout.strip()


def test_a_start_takes_a_warm_one_and_another_is_made(run_hako: RunHako) -> None:
    before = listed(run_hako)
    assert len(before) == _SIZE
    name = start(run_hako)
    sandbox = sandbox_of(run_hako, name)
    assert sandbox["info"]["pool"] is True
    (taken,) = [entry for entry in before if (entry["pid"], entry["vm_pid"]) == (sandbox["pid"], sandbox["vm_pid"])]
    phases = [line.split("  ")[0] for line in run_hako("trace", name).stdout.splitlines()]
    assert "pool" in phases
    assert "QEMU" not in phases
    until(lambda: len(ready(run_hako)) == _SIZE)
    assert taken["id"] not in ready(run_hako)
    assert sandbox_of(run_hako, name)["status"] == "running"


def test_each_is_another_machine_with_the_right_time(run_hako: RunHako) -> None:
    def ask(_: int) -> list[str]:
        done = run_hako("run", "--rm", "busybox", "sh", "-c", _WHO)
        assert abs(int(done.stdout.split()[-1]) - time.time()) < 10
        return done.stdout.splitlines()[:-1]

    answers = [ask(0), ask(1)]
    until(lambda: len(ready(run_hako)) == _SIZE)
    answers += [ask(2), ask(3)]
    assert all(len(set(same)) == len(answers) for same in zip(*answers, strict=True)), answers


def test_the_clock_is_right_after_a_wait(run_hako: RunHako) -> None:
    name = start(run_hako)
    assert is_warm(run_hako, name)
    before = time.time()
    guest = float(run_hako("exec", name, "sh", "-c", "date +%s; cut -d' ' -f1 /proc/uptime").stdout.split()[0])
    assert before - 1 <= guest <= time.time()


def test_what_comes_from_the_pool_is_like_any_other(run_hako: RunHako, tmp_path: Path) -> None:
    (tmp_path / "in").write_text("from the host")
    name = start(run_hako, "-v", f"{tmp_path}:/volume", "--memory", "1g", "--name", "any")
    assert is_warm(run_hako, name)
    assert sandbox_of(run_hako, "any")["info"]["memory"] >= 1 << 30
    total = run_hako("exec", "any", "sh", "-c", "grep MemTotal /proc/meminfo").stdout.split()[1]
    assert int(total) << 10 > 1 << 30
    assert run_hako("exec", "any", "cat", "/sys/fs/cgroup/memory.max").stdout.strip() == str(1 << 30)
    assert run_hako("exec", "any", "cat", "/volume/in").stdout == "from the host"
    run_hako("exec", "any", "sh", "-c", "echo changed > /volume/out; echo inside > /file")
    assert (tmp_path / "out").read_text() == "changed\n"
    run_hako("cp", "any:/file", str(tmp_path / "copied"))
    assert (tmp_path / "copied").read_text() == "inside\n"
    run_hako("cp", str(tmp_path / "in"), "any:/copied")
    assert run_hako("exec", "any", "cat", "/copied").stdout == "from the host"
    run_hako("exec", "-u", "nobody:1000", "any", "id", check=False)
    assert os.path.exists(sandbox_of(run_hako, "any")["console_log"])
    run_hako("update", "--memory", "512m", "any")
    run_hako("stop", "-t", "0", "any")
    assert run_hako("cp", "any:/file", "-").stdout
    until(lambda: sandbox_of(run_hako, "any")["status"] == "stopped")


def test_small_and_large_ones(run_hako: RunHako) -> None:
    name = start(run_hako, "--memory", "64m", "--cpus", "2")
    info = sandbox_of(run_hako, name)["info"]
    assert info["pool"] is True
    assert info["vcpus"] == 2
    assert run_hako("exec", name, "nproc").stdout == "2\n"


def test_the_library_takes_from_it_too(run_hako: RunHako) -> None:
    with hako.Sandbox(image="busybox") as sandbox:
        assert sandbox.wait_ready()["pool"] is True
        assert sandbox.run(["echo", "hello"]).stdout == "hello\n"


def test_its_vm_is_killed(run_hako: RunHako) -> None:
    name = start(run_hako)
    assert is_warm(run_hako, name)
    os.kill(sandbox_of(run_hako, name)["vm_pid"], signal.SIGKILL)
    until(lambda: sandbox_of(run_hako, name)["status"] == "stopped")
    (found,) = json.loads(run_hako("inspect", name).stdout)
    assert found["exit_status"] == 137
    assert f"The VM of {name} ended" in found["error"]


def test_its_process_is_killed(run_hako: RunHako, roots: Roots) -> None:
    name = start(run_hako)
    assert is_warm(run_hako, name)
    os.kill(sandbox_of(run_hako, name)["pid"], signal.SIGKILL)
    # Nobody asks: the guardian alone cleans up.
    until(lambda: name not in os.listdir(os.path.join(roots.state, "sandboxes")))
    assert "Exited (137)" in run_hako("ps", "-a").stdout


@pytest.mark.parametrize("what", ["pid", "vm_pid"])
def test_a_warm_one_is_killed(run_hako: RunHako, what: str) -> None:
    first, second = listed(run_hako)
    os.kill(first[what], signal.SIGKILL)
    # The guardian cleans up, though nobody asks.
    until(lambda: not os.path.exists(pool.entry_dir(first["id"])))
    assert ready(run_hako) == {second["id"]}
    assert is_warm(run_hako, start(run_hako))
    # A VM that dies while it waits is a failure: for a while no start makes another one, but the user may.
    run_hako("pool", "fill")
    assert len(ready(run_hako)) == _SIZE


@pytest.mark.parametrize("what", ["pid", "vm_pid"])
def test_warm_ones_that_hang_hold_up_nothing(run_hako: RunHako, what: str) -> None:
    victims = [entry[what] for entry in listed(run_hako)]
    for pid in victims:
        os.kill(pid, signal.SIGSTOP)
    try:
        name = start(run_hako)
        assert not is_warm(run_hako, name)
        assert run_hako("exec", name, "echo", "fine").stdout == "fine\n"
    finally:
        for pid in victims:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
    # Those that were only too slow are of use again.
    until(lambda: len(ready(run_hako)) == _SIZE)


def test_a_hanging_one_can_be_drained(run_hako: RunHako) -> None:
    os.kill(listed(run_hako)[0]["pid"], signal.SIGSTOP)
    run_hako("pool", "drain")
    assert listed(run_hako) == []


def test_ten_starts_at_once(run_hako: RunHako) -> None:
    def run(number: int) -> str:
        return run_hako("run", "--rm", "busybox", "echo", str(number), timeout=300).stdout

    with ThreadPoolExecutor(10) as threads:
        assert list(threads.map(run, range(10))) == [f"{number}\n" for number in range(10)]
    until(lambda: len(ready(run_hako)) == _SIZE)
    assert len(listed(run_hako)) == _SIZE


def test_one_that_does_not_fit_is_not_taken(run_hako: RunHako, config: Path) -> None:
    assert not is_warm(run_hako, start(run_hako, "--annotation", "dev.hako.template=false"))
    assert not is_warm(run_hako, start(run_hako, "--annotation", "dev.hako.share-msize=64k"))
    before = ready(run_hako)
    configure(config, more='[share]\nmsize = "64k"\n')
    assert not is_warm(run_hako, start(run_hako))
    run_hako("pool", "fill")
    assert not ready(run_hako) & before
    assert is_warm(run_hako, start(run_hako))


@pytest.mark.parametrize("driver", ["9p", "virtiofs"])
def test_share_drivers(run_hako: RunHako, config: Path, tmp_path: Path, driver: str) -> None:
    configure(config, more=f'[share]\ndriver = "{driver}"\n')
    run_hako("pool", "fill")
    name = start(run_hako, "-v", f"{tmp_path}:/volume", "--memory", "1g")
    assert sandbox_of(run_hako, name)["info"]["share"] == driver
    assert is_warm(run_hako, name)
    run_hako("exec", name, "sh", "-c", "echo it > /volume/works; mkdir /dir; ls / > /volume/root")
    assert (tmp_path / "works").read_text() == "it\n"
    assert "dir\n" in (tmp_path / "root").read_text()


def test_fewer_are_wanted(run_hako: RunHako, config: Path) -> None:
    configure(config, size=1)
    run_hako("pool", "fill")
    assert len(listed(run_hako)) == 1


def test_it_is_switched_off(run_hako: RunHako, config: Path) -> None:
    taken = start(run_hako)
    assert is_warm(run_hako, taken)
    until(lambda: len(ready(run_hako)) == _SIZE)
    configure(config, size=0)
    assert not is_warm(run_hako, start(run_hako))
    refused = run_hako("pool", "fill", check=False)
    assert refused.returncode == 125
    assert "pool.size" in refused.stderr
    assert "2 virtual machines ended." in run_hako("pool", "drain").stderr
    assert "0 virtual machines ended." in run_hako("pool", "drain").stderr
    assert run_hako("exec", taken, "echo", "goes on").stdout == "goes on\n"


def test_the_starter_is_killed_in_the_middle(hako_cmd: list[str], run_hako: RunHako, roots: Roots) -> None:
    for milliseconds in range(20, 140, 10):
        with subprocess.Popen([*hako_cmd, "run", "--rm", "busybox", "true"]) as child:
            time.sleep(milliseconds / 1000)
            child.kill()
    # What a starter had claimed and not handed over yet, the next one who looks removes.
    until(lambda: run_hako("ps", "-a") and not os.listdir(os.path.join(roots.state, "sandboxes")))
    until(lambda: not [entry for entry in listed(run_hako) if entry["status"] != "ready"])
    assert run_hako("run", "--rm", "busybox", "echo", "fine").stdout == "fine\n"


def test_makers_are_killed_at_any_moment(hako_cmd: list[str], run_hako: RunHako) -> None:
    for milliseconds in (50, 150, 250, 400, 600, 900):
        run_hako("pool", "drain")
        with subprocess.Popen([*hako_cmd, "pool", "fill"], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
            time.sleep(milliseconds / 1000)
            child.kill()
        for entry in pool.entries():
            with contextlib.suppress(ProcessLookupError):
                if entry.pid:
                    os.kill(entry.pid, signal.SIGKILL)
    run_hako("pool", "fill")
    assert len(ready(run_hako)) == _SIZE
    assert is_warm(run_hako, start(run_hako))
