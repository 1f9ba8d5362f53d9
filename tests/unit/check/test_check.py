"""`hako check`: each finding with its remedy, the table, the JSON, and the exit code."""

from __future__ import annotations

import io
import json
import os
from typing import Any

import pytest

from hako.check import findings as checks
from hako.check import report
from hako.check.findings import ERROR, NOTE, OK, SEVERITIES, WARNING, Finding
from hako.config import Config
from hako.errors import HostError, ImageError
from hako.guestimage import api as guestimage
from hako.hypervisor import accelerator

CONFIG = Config()


@pytest.mark.parametrize(
    ("severities", "code"),
    [
        ([], 0),
        ([OK], 0),
        ([OK, NOTE], 0),
        ([NOTE, WARNING, OK], 1),
        ([ERROR, WARNING, OK], 2),
    ],
)
def test_exit_code(severities: list[str], code: int) -> None:
    found = [Finding("x", severity, "text") for severity in severities]
    assert report.exit_code(found) == code


def test_table() -> None:
    long = "word " * 40
    found = [
        Finding("qemu", OK, "QEMU 7.2"),
        Finding("accelerator", NOTE, long, "do\nthis"),
        Finding("image", ERROR, "none", "run: hako image build"),
    ]
    lines = report.as_table(found).splitlines()
    assert lines[0] == "qemu         ok       QEMU 7.2"
    assert lines[-2:] == ["image        ERROR    none", " " * 22 + "→ run: hako image build"]
    assert all(len(line) <= 100 and line == line.rstrip() for line in lines)
    assert " ".join(lines).count("word") == 40


def test_json() -> None:
    found = [Finding("qemu", OK, "é"), Finding("tun", WARNING, "no", "modprobe tun")]
    assert json.loads(report.as_json(found)) == {
        "severity": "warning",
        "findings": [
            {"name": "qemu", "severity": "ok", "text": "é", "remedy": ""},
            {"name": "tun", "severity": "warning", "text": "no", "remedy": "modprobe tun"},
        ],
    }


@pytest.mark.parametrize("as_json", [False, True])
def test_the_whole_report_on_this_host(monkeypatch: pytest.MonkeyPatch, as_json: bool) -> None:
    monkeypatch.setattr(accelerator, "probe", lambda *args, **options: "it was not tried")
    out = io.StringIO()
    code = report.run_check(as_json, out)
    text = out.getvalue()
    names = ["accelerator", "qemu", "kernel", "image", "9p", "virtiofs", "vsock", "cgroups", "tun", "network"]
    names += ["disk", "memory"]
    if as_json:
        found = json.loads(text)["findings"]
        assert set(names) <= {finding["name"] for finding in found}
        assert all(finding["severity"] in SEVERITIES and finding["text"] for finding in found)
        assert all(finding["remedy"] for finding in found if finding["severity"] in (WARNING, ERROR))
        assert code == {OK: 0, NOTE: 0, WARNING: 1, ERROR: 2}[json.loads(text)["severity"]]
    else:
        assert all(f"\n{name}" in f"\n{text}" for name in names)


@pytest.mark.parametrize(
    ("error", "severity"),
    [(HostError("No luck."), ERROR), (PermissionError(13, "Permission denied"), WARNING)],
)
def test_a_check_that_fails_is_a_finding(monkeypatch: pytest.MonkeyPatch, error: Exception, severity: str) -> None:
    def fail(config: Config) -> Finding:
        raise error

    for name in [name for name in dir(checks) if name.startswith("check_")]:
        monkeypatch.setattr(checks, name, fail)
    found = checks.findings(CONFIG)
    assert len(found) >= 11
    assert {finding.severity for finding in found} == {severity}


def _config(**values: object) -> Config:
    return Config({key.replace("__", "."): value for key, value in values.items()})


class Image:
    """A guest image as far as the checks look at it."""

    digest = "0123456789abcdef" * 4
    kernel = "/images/vmlinux"
    kernel_version = "6.1.0"


def _no_image(name: str | None = None) -> Image:
    raise ImageError("There is no guest image yet.")


@pytest.mark.parametrize(
    ("wanted", "image", "device", "outcome", "severity", "says"),
    [
        ("auto", True, "", ("kvm", "the guest kernel boots on KVM"), OK, "kvm: the guest kernel boots on KVM"),
        ("auto", True, "", ("tcg", "it did not boot"), NOTE, "tcg (software emulation): it did not boot"),
        ("tcg", True, "", ("tcg", "the configuration says tcg"), OK, "tcg: the configuration says tcg"),
        ("kvm", True, "", HostError("KVM does not work here."), ERROR, "KVM does not work here."),
        ("auto", False, "/dev/kvm does not exist", None, NOTE, "/dev/kvm does not exist"),
        ("auto", False, "", None, NOTE, "not decided yet"),
    ],
)
def test_accelerator(
    monkeypatch: pytest.MonkeyPatch, wanted: str, image: bool, device: str, outcome: Any, severity: str, says: str
) -> None:
    def choose(*args: object, **options: object) -> accelerator.Accelerator:
        if isinstance(outcome, Exception):
            raise outcome
        return accelerator.Accelerator(*outcome)

    monkeypatch.setattr(guestimage, "find", (lambda name: Image()) if image else _no_image)
    monkeypatch.setattr(accelerator, "device_problem", lambda: device)
    monkeypatch.setattr(accelerator, "choose", choose)
    finding = checks.check_accelerator(_config(hypervisor__accelerator=wanted))
    assert finding.severity == severity
    assert says in finding.text
    assert bool(finding.remedy) is (severity != OK)


@pytest.mark.parametrize(
    ("script", "severity", "says"),
    [
        ("echo 'QEMU emulator version 7.2.22 (Debian 1:7.2)'", OK, "QEMU emulator version 7.2.22 at"),
        ("echo 'QEMU emulator version 10.0.1'", OK, "10.0.1"),
        ("echo 'QEMU emulator version 6.9.9'", ERROR, "7.2 or newer"),
        ("echo nonsense", ERROR, "nonsense"),
        ("true", ERROR, "it said nothing"),
        ("echo broken >&2; exit 1", ERROR, "broken"),
    ],
)
def test_qemu(tmp_path: os.PathLike[str], script: str, severity: str, says: str) -> None:
    binary = os.path.join(tmp_path, "qemu")
    with open(binary, "w", encoding="utf-8") as file:
        file.write(f"#!/bin/sh\n{script}\n")
    os.chmod(binary, 0o755)
    finding = checks.check_qemu(_config(hypervisor__qemu=binary))
    assert (finding.severity, bool(finding.remedy)) == (severity, severity != OK)
    assert says in finding.text


def test_a_missing_qemu() -> None:
    finding = checks.check_qemu(_config(hypervisor__qemu="no-such-qemu"))
    assert (finding.severity, finding.remedy) == (ERROR, "apt-get install qemu-system-x86")


@pytest.mark.parametrize(("user", "severity"), [("nobody", OK), ("root", WARNING), ("no-such-user-here", WARNING)])
def test_qemu_user(user: str, severity: str) -> None:
    finding = checks.check_qemu_user(_config(hypervisor__user=user))
    assert (finding.severity, bool(finding.remedy)) == (severity, severity != OK)


@pytest.mark.parametrize(
    ("release", "severity"),
    [("6.1.0-56-amd64", OK), ("5.10.1", OK), ("5.9.0", ERROR), ("4.19", ERROR), ("strange", ERROR)],
)
def test_kernel(monkeypatch: pytest.MonkeyPatch, release: str, severity: str) -> None:
    here = os.uname()
    monkeypatch.setattr(checks.os, "uname", lambda: os.uname_result((here[0], here[1], release, here[3], here[4])))
    finding = checks.check_kernel(CONFIG)
    assert (finding.severity, bool(finding.remedy)) == (severity, severity != OK)


def test_image(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guestimage, "find", _no_image)
    finding = checks.check_image(CONFIG)
    assert (finding.severity, finding.remedy) == (ERROR, "run: hako image build")
    monkeypatch.setattr(guestimage, "find", lambda name: Image())
    assert checks.check_image(CONFIG) == Finding("image", OK, "0123456789ab, Linux 6.1.0")
    assert checks.check_image(_config(guest__kernel="/nonexistent/vmlinuz")).severity == ERROR


def test_a_full_disk_and_a_full_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    small = os.statvfs_result((4096, 4096, 1 << 20, 1000, 1000, 10, 10, 10, 0, 255))
    monkeypatch.setattr(checks.os, "statvfs", lambda path: small)
    assert checks.check_disk(CONFIG).severity == WARNING
    assert checks.check_memory(_config(sandbox__memory=1 << 60)).severity == WARNING
    assert checks.check_memory(_config(sandbox__memory=1 << 20)).severity == OK
