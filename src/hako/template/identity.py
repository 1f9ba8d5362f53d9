"""What must be the same for a VM to be a clone of a template, and the name that follows from it.

The largest part is QEMU's own command line: whatever changes the virtual hardware changes it.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from hako import arch, store
from hako.hypervisor.base import Nic, Share9p, VmSpec
from hako.hypervisor.qemu import find_qemu
from hako.hypervisor.qemu_args import build_argv
from hako.version import __version__
from hako.wire.calls import PROTOCOL_VERSION

#: Changes when a template of an earlier hako must not be used any more, for reasons that show nowhere else.
FORMAT = 2

KEY_LENGTH = 32

_TSC = "tsc_early_khz="

#: Back ends have these numbers in the command line, so that it does not depend on the process.
_NAMES = ("qmp", "console", "agent", "kernel", "initrd", "memory", *(f"nic{queue}" for queue in range(64)))
_FDS = {name: 100 + i for i, name in enumerate(_NAMES)}


def as_template(spec: VmSpec, share: str = "/") -> VmSpec:
    """``spec`` as the template's VM has it: nothing that is a clone's own. ``share`` is what a 9p share shows."""
    devices = tuple(_neutral(device, share) for device in spec.devices)
    return spec._replace(id="template", sharing="shared", devices=devices)


def _words(cmdline: str) -> str:
    """The kernel's command line, without the last digits of a frequency that each boot of a host measures anew."""
    words = cmdline.split(" ")
    for number, word in enumerate(words):
        khz = word.removeprefix(_TSC)
        if khz != word and khz.isdecimal():
            words[number] = f"{_TSC}{round(int(khz), -2)}"
    return " ".join(words)


def _neutral(device: Any, share: str) -> Any:
    match device:
        case Share9p():
            return device._replace(path=share)
        case Nic():
            return device._replace(mac="02:00:00:00:00:01")
    return device


def describe(spec: VmSpec, image: str, qemu: str = "") -> dict[str, Any]:
    """Everything that must match, as JSON. ``image`` is the guest image's digest. Raises HostError without QEMU."""
    binary = find_qemu(qemu)
    return {
        "format": FORMAT,
        "hako": __version__,
        "protocol": PROTOCOL_VERSION,
        "image": image,
        "qemu": store.identity(binary),
        "accelerator": spec.accelerator,
        "processor": _processor() if spec.accelerator == "kvm" else "",
        "memory": spec.memory,
        "sharing": spec.sharing,
        "argv": build_argv(as_template(spec._replace(cmdline=_words(spec.cmdline))), _FDS, binary),
    }


def key(identity: dict[str, Any]) -> str:
    """The name of the template with this identity."""
    text = json.dumps(identity, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:KEY_LENGTH]


def _processor() -> str:
    """What the guest sees of the host's processor under KVM: model, features and microcode."""
    wanted = ("model name", "flags", "microcode", "Features", "CPU part")
    with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
        block = file.read().partition("\n\n")[0]
    lines = [line for line in block.splitlines() if line.partition("\t")[0].strip(": ") in wanted]
    return hashlib.sha256("\n".join([arch.current().name, *lines]).encode()).hexdigest()[:16]
