"""The default config.json under the real crun: a container starts, and what it must not do fails as it should."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hako.oci import check, seccomp_bpf, spec
from hako.oci.spec import RunOptions

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(shutil.which("crun") is None, reason="needs crun on the host"),
]

Run = Callable[[RunOptions], str]

# The host's own programs, so that Python can make system calls that no shell command makes.
_HOST = [(path, path, True) for path in ("/usr", "/lib", "/lib64") if os.path.exists(path)]

# Name, number on x86-64, arguments, what comes back: an errno, or an empty text for success.
CALLS: list[tuple[str, int, tuple[int, ...], str]] = [
    ("getpid", 39, (), ""),
    ("openat2, reached", 437, (-100, 0, 0, 0), "EINVAL"),
    ("statx, reached", 332, (-100, 0, 0, 0, 0), "EFAULT"),
    ("ptrace traceme", 101, (0, 0, 0, 0), ""),
    ("socket inet", 41, (2, 1, 0), ""),
    ("socket vsock", 41, (40, 1, 0), "EPERM"),
    ("personality, asked", 135, (0xFFFFFFFF,), ""),
    ("personality, other", 135, (0x0100000,), "ENOSYS"),
    ("clone, new user namespace", 56, (0x10000011, 0, 0, 0, 0), "EPERM"),
    ("clone, new network namespace", 56, (0x40000011, 0, 0, 0, 0), "EPERM"),
    ("clone3", 435, (0, 0), "ENOSYS"),
    ("unshare", 272, (0x10000000,), "EPERM"),
    ("setns", 308, (0, 0), "EPERM"),
    ("mount", 165, (0, 0, 0, 0, 0), "EPERM"),
    ("fsopen", 430, (0, 0), "EPERM"),
    ("pivot_root", 155, (0, 0), "EPERM"),
    ("keyctl", 250, (0, 0), "EPERM"),
    ("add_key", 248, (0, 0, 0, 0, 0), "EPERM"),
    ("bpf", 321, (0, 0, 0), "EPERM"),
    ("perf_event_open", 298, (0, 0, 0, 0, 0), "EPERM"),
    ("io_uring_setup", 425, (0, 0), "EPERM"),
    ("userfaultfd", 323, (0,), "EPERM"),
    ("kexec_load", 246, (0, 0, 0, 0), "EPERM"),
    ("init_module", 175, (0, 0, 0), "EPERM"),
    ("reboot", 169, (0, 0, 0, 0), "EPERM"),
    ("swapon", 167, (0, 0), "EPERM"),
    ("settimeofday", 164, (0, 0), "EPERM"),
    ("open_by_handle_at", 304, (0, 0, 0), "EPERM"),
    ("not yet invented", 2000, (), "ENOSYS"),
]

_PROBE = """
import ctypes, errno, json, sys
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
for name, number, args, _ in json.loads(sys.argv[1]):
    result = libc.syscall(ctypes.c_long(number), *(ctypes.c_long(arg) for arg in args))
    print(name, "=", errno.errorcode[ctypes.get_errno()] if result < 0 else "", flush=True)
"""


@pytest.fixture(params=["by crun", "by hako"])
def run(request: pytest.FixtureRequest, tmp_path: Path, busybox_image: Any) -> Run:
    """Run a container of the sample image; its seccomp filter is compiled by crun or beforehand."""
    bundle = tmp_path / "bundle"
    shutil.copytree(busybox_image.rootfs, bundle / "rootfs", symlinks=True)

    def start(options: RunOptions) -> str:
        made = spec.build(busybox_image.config, options, rootfs=busybox_image.rootfs, container_id="hako-test")
        made = check.check(json.loads(json.dumps(made)))
        if request.param == "by hako":
            made = seccomp_bpf.precompile(made)
            assert seccomp_bpf.ANNOTATION in made["annotations"]
        (bundle / "config.json").write_text(json.dumps(made))
        name = f"hako-test-{uuid.uuid4().hex[:8]}"
        # crun refuses a host where a cgroup v2 hierarchy is mounted among those of v1.
        script = "umount /sys/fs/cgroup/unified 2>/dev/null; exec crun --root $1 --cgroup-manager=disabled run $2"
        done = subprocess.run(
            ["unshare", "-m", "sh", "-c", script, "sh", str(tmp_path / "crun"), name],
            cwd=bundle, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert "crun" not in done.stderr, done.stderr
        return done.stdout + done.stderr

    return start


def test_system_calls(run: Run) -> None:
    output = run(RunOptions(args=["/usr/bin/python3", "-I", "-c", _PROBE, json.dumps(CALLS)], mounts=_HOST))
    assert output.splitlines() == [f"{name} = {outcome}" for name, _, _, outcome in CALLS]


def test_a_capability_opens_its_system_calls(run: Run) -> None:
    script = "unshare -m true && mount -t tmpfs none /mnt && hostname other && hostname"
    assert run(RunOptions(args=["sh", "-c", script], cap_add=["SYS_ADMIN"])) == "other\n"


def test_what_a_process_finds(run: Run) -> None:
    script = (
        "id; hostname; pwd; echo $HOME $FOO; touch /x; echo 1 >/proc/sys/kernel/pid_max; ls /sys/firmware /mnt; df /t"
    )
    options = RunOptions(
        args=["sh", "-c", f"({script}) 2>&1"], user="hako", hostname="box", cwd="/tmp", env=["FOO=bar"], readonly=True,
        tmpfs=["/t:size=1m"],
    )  # fmt: skip
    lines = run(options).splitlines()
    assert lines[:4] == ["uid=1000(hako) gid=1000(hako) groups=100(users),1000(hako)", "box", "/tmp", "/home/hako bar"]
    assert lines[4:6] == [
        "touch: /x: Read-only file system",
        "sh: can't create /proc/sys/kernel/pid_max: Read-only file system",
    ]
    assert lines[-1].split()[:2] == ["tmpfs", "1024"]


def test_capabilities_of_root_and_others(run: Run) -> None:
    show = ["sh", "-c", "grep -E 'Cap(Eff|Bnd)|Seccomp:' /proc/self/status"]
    default = "00000000a80425fb"
    assert run(RunOptions(args=show)).split() == ["CapEff:", default, "CapBnd:", default, "Seccomp:", "2"]
    assert run(RunOptions(args=show, user="1000")).split() == ["CapEff:", "0" * 16, "CapBnd:", default, "Seccomp:", "2"]
