"""QEMU's command line, compared whole. After a wanted change run these tests once with HAKO_UPDATE_GOLDEN=1."""

from __future__ import annotations

import os

import pytest

from hako.hypervisor.base import (
    AgentChannel,
    Backends,
    Balloon,
    MemoryDevice,
    Nic,
    Rng,
    Share9p,
    ShareVirtiofs,
    VmSpec,
)
from hako.hypervisor.qemu_args import backend_fds, build_argv

GOLDEN = os.path.join(os.path.dirname(__file__), "golden")
FDS = {"qmp": 10, "console": 11, "agent": 12, "kernel": 13, "initrd": 14}
BASE = VmSpec("pod1", "/images/vmlinux", "/images/initrd", "console=ttyS0 quiet", 512 << 20)

CASES = {
    "tcg": BASE,
    "kvm": BASE._replace(accelerator="kvm", vcpus=4, memory=(2 << 30) + 4096),
    "bare": BASE._replace(initrd=None, devices=()),
    "shares": BASE._replace(
        devices=(
            AgentChannel("other.port"),
            Rng(),
            Share9p("hako", "/run/hako/sandboxes/pod1/shared"),
            Share9p("data", "/srv/a,b,,c=d", readonly=True),
        )
    ),
    "own-cpu-and-machine": BASE._replace(cpu="Nehalem,-vmx", machine="q35"),
    "odd-cmdline": BASE._replace(cmdline='a="b c",d -kernel\ne'),
    "clone-private": BASE._replace(
        sharing="private",
        max_vcpus=4,
        devices=(
            AgentChannel(),
            Rng(),
            Balloon(),
            MemoryDevice(8 << 30),
            Nic("02:00:00:00:00:01"),
            Share9p("hako", "/run/shared"),
        ),
    ),
    "clone-shared": BASE._replace(
        sharing="shared", devices=(AgentChannel(), Rng(), Balloon(), MemoryDevice(128 << 20), Nic("02:00:00:00:00:01"))
    ),
    "virtiofs": BASE._replace(sharing="shared", devices=(AgentChannel(), ShareVirtiofs("a,b"))),
    "own-memory-grows": BASE._replace(vcpus=2, max_vcpus=2, devices=(MemoryDevice(1 << 30),)),
}
BACKENDS = {
    "clone-private": Backends(memory=20, state=21, clone=True, nic=(22,)),
    "clone-shared": Backends(memory=20, state=21, clone=True, share=23, nic=(22,)),
    "virtiofs": Backends(memory=20, share=23),
}


@pytest.mark.parametrize("name", CASES)
def test_command_line(name: str) -> None:
    fds = FDS | backend_fds(BACKENDS.get(name, Backends()))
    actual = "".join(f"{argument!r}\n" for argument in build_argv(CASES[name].checked(), fds))
    path = os.path.join(GOLDEN, f"{name}.txt")
    if os.environ.get("HAKO_UPDATE_GOLDEN"):
        with open(path, "w", encoding="utf-8") as file:
            file.write(actual)
    with open(path, encoding="utf-8") as file:
        assert actual == file.read()


def test_each_golden_file_has_a_case() -> None:
    assert {name.removesuffix(".txt") for name in os.listdir(GOLDEN)} == set(CASES)


def test_the_same_description_gives_the_same_command_line() -> None:
    assert build_argv(CASES["shares"], FDS) == build_argv(CASES["shares"]._replace(), dict(FDS))


def test_the_program_can_be_named() -> None:
    assert build_argv(BASE, FDS, "/opt/qemu")[0] == "/opt/qemu"


@pytest.mark.parametrize("tag", ["a,id=x", "path=/etc", ",", "a,,b"])
def test_commas_cannot_add_options(tag: str) -> None:
    argv = build_argv(BASE._replace(devices=(Share9p(tag, f"/srv/{tag}"),)), FDS)
    (fsdev,) = [argv[i + 1] for i, argument in enumerate(argv) if argument == "-fsdev"]
    assert fsdev.replace(",,", "").count(",") == 4
    device = argv[-1]
    assert device.replace(",,", "").count(",") == 3
