"""KVM or TCG: what decides, what is remembered, and that ten processes make one probe."""

from __future__ import annotations

import json
import os
import struct
import threading
from collections.abc import Callable
from typing import Any

import pytest

from hako.errors import ConfigError, HostError
from hako.hypervisor import accelerator, probe_guest
from hako.hypervisor.base import VmSpec

Choose = Callable[..., accelerator.Accelerator]


class Probe:
    """Stands for the boot of a guest: counts the calls and gives ``answer``."""

    def __init__(self) -> None:
        self.answer = ""
        self.specs: list[VmSpec] = []
        self.overlaps = 0
        self._running = threading.Lock()

    def __call__(self, spec: VmSpec, **options: Any) -> str:
        if not self._running.acquire(blocking=False):
            self.overlaps += 1
            return "two probes at once"
        try:
            self.specs.append(spec)
            threading.Event().wait(0.05)  # time for others to come
            return self.answer
        finally:
            self._running.release()


@pytest.fixture
def probe(monkeypatch: pytest.MonkeyPatch, tmp_path: os.PathLike[str]) -> Probe:
    """A host whose /dev/kvm looks fine, with an empty memory."""
    fake = Probe()
    monkeypatch.setenv("HAKO_DATA_ROOT", os.path.join(tmp_path, "data"))
    monkeypatch.setattr(accelerator, "device_problem", lambda: "")
    monkeypatch.setattr(accelerator, "probe", fake)
    return fake


@pytest.fixture
def choose(tmp_path: os.PathLike[str]) -> Choose:
    """``accelerator.choose`` with a kernel and a QEMU that exist."""
    kernel, qemu = os.path.join(tmp_path, "vmlinux"), os.path.join(tmp_path, "qemu")
    for path in (kernel, qemu):
        with open(path, "wb") as file:
            file.write(b"one")
        os.chmod(path, 0o755)
    return lambda wanted: accelerator.choose(wanted, kernel=kernel, qemu=qemu)


def test_tcg_is_taken_as_said(probe: Probe, choose: Choose) -> None:
    assert choose("tcg") == ("tcg", "the configuration says tcg")
    assert not probe.specs


def test_an_unknown_wish_is_refused(probe: Probe, choose: Choose) -> None:
    with pytest.raises(ConfigError, match="'hvf'"):
        choose("hvf")


@pytest.mark.parametrize("wanted", ["auto", "kvm"])
def test_kvm_when_a_guest_boots(probe: Probe, choose: Choose, wanted: str) -> None:
    assert choose(wanted) == ("kvm", "the guest kernel boots on KVM")
    (spec,) = probe.specs
    assert spec.accelerator == "kvm"
    assert spec.checked().devices == ()


def test_tcg_with_the_reason_when_none_boots(probe: Probe, choose: Choose) -> None:
    probe.answer = "it fell over"
    chosen = choose("auto")
    assert chosen == ("tcg", "/dev/kvm opens but a guest does not boot on it: it fell over")
    with pytest.raises(HostError, match=r"it fell over\. Set accelerator = auto"):
        choose("kvm")
    assert len(probe.specs) == 1


def test_no_probe_when_the_device_is_of_no_use(probe: Probe, choose: Choose, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accelerator, "device_problem", lambda: "/dev/kvm does not exist")
    assert choose("auto") == ("tcg", "/dev/kvm does not exist")
    with pytest.raises(HostError, match="/dev/kvm does not exist"):
        choose("kvm")
    assert not probe.specs


@pytest.mark.parametrize("answer", ["", "it fell over"])
def test_the_result_is_remembered(probe: Probe, choose: Choose, answer: str) -> None:
    probe.answer = answer
    first = choose("auto")
    probe.answer = "another answer"
    assert choose("auto") == first
    assert len(probe.specs) == 1


@pytest.mark.parametrize("changed", ["vmlinux", "qemu"])
def test_another_kernel_or_qemu_is_tried_again(
    probe: Probe, choose: Choose, tmp_path: os.PathLike[str], changed: str
) -> None:
    choose("auto")
    with open(os.path.join(tmp_path, changed), "ab") as file:
        file.write(b"two")
    choose("auto")
    choose("auto")
    assert len(probe.specs) == 2


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"key": 1}', b'{"key": null, "problem": []}', b"\xff"])
def test_a_damaged_memory_is_no_memory(probe: Probe, choose: Choose, damage: bytes) -> None:
    choose("auto")
    with open(accelerator.cache_file(), "wb") as file:
        file.write(damage)
    assert choose("auto").name == "kvm"
    assert len(probe.specs) == 2


def test_another_boot_of_the_host_is_tried_again(probe: Probe, choose: Choose) -> None:
    choose("auto")
    with open(accelerator.cache_file(), encoding="utf-8") as file:
        saved = json.load(file)
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        assert file.read().strip() == saved["key"][0]
    saved["key"][0] = "another boot"
    with open(accelerator.cache_file(), "w", encoding="utf-8") as file:
        json.dump(saved, file)
    choose("auto")
    assert len(probe.specs) == 2


def test_ten_at_once_make_one_probe(probe: Probe, choose: Choose) -> None:
    chosen: list[str] = []
    threads = [threading.Thread(target=lambda: chosen.append(choose("auto").name)) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert chosen == ["kvm"] * 10
    assert len(probe.specs) == 1
    assert probe.overlaps == 0


def test_without_a_place_to_remember_it_works_still(
    probe: Probe, choose: Choose, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HAKO_DATA_ROOT", "/proc/nonexistent")
    assert choose("auto").name == "kvm"


def test_a_missing_kernel_is_named(probe: Probe, tmp_path: os.PathLike[str]) -> None:
    with pytest.raises(HostError, match="vmlinux: No such file"):
        accelerator.choose("auto", kernel=os.path.join(tmp_path, "vmlinux"), qemu="/bin/sh")


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("/nonexistent/kvm", "/nonexistent/kvm does not exist"),
        ("/dev/null", "/dev/null opens but creates no VM (Inappropriate ioctl for device)"),
        ("/proc", "/proc cannot be opened (Is a directory)"),
    ],
)
def test_devices_that_are_of_no_use(path: str, says: str) -> None:
    assert accelerator.device_problem(path) == says


def _entries(archive: bytes) -> list[tuple[str, int, bytes]]:
    """The (name, mode, data) of a newc archive."""
    found, at = [], 0
    while at < len(archive):
        assert archive[at : at + 6] == b"070701"
        fields = [int(archive[at + 6 + 8 * n : at + 14 + 8 * n], 16) for n in range(13)]
        mode, size, name_size = fields[1], fields[6], fields[11]
        name = archive[at + 110 : at + 110 + name_size]
        assert name.endswith(b"\0")
        start = at + 110 + name_size + -(110 + name_size) % 4
        found.append((name[:-1].decode(), mode, archive[start : start + size]))
        at = start + size + -size % 4
    return found


def test_the_probes_initrd() -> None:
    (name, mode, program), (last, _, rest) = _entries(probe_guest.initrd())
    assert (name, mode, last, rest) == ("init", 0o100755, "TRAILER!!!", b"")
    assert program.startswith(b"\x7fELF\x02\x01\x01")
    kind, machine, _, entry = struct.unpack_from("<HHIQ", program, 16)
    offset, address, _, file_size = struct.unpack_from("<QQQQ", program, 64 + 8)
    assert (kind, machine, offset, file_size) == (2, 62, 0, len(program))
    code = program[entry - address :]
    # mov eax, 1; mov edi, 1; mov esi, text; mov edx, length; syscall
    (text,) = struct.unpack_from("<I", code, 11)
    (length,) = struct.unpack_from("<I", code, 16)
    assert code[20:22] == b"\x0f\x05"
    assert program[text - address :][:length].decode() == probe_guest.MARKER + "\n"
