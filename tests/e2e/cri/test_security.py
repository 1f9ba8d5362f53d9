"""The security context: users, capabilities, system calls, what is read-only or hidden, kernel parameters."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from support import cri_messages as m
from support.engines import differs
from support.pods import Node, Pod, either, fails

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

PRIVILEGED = differs(
    "a privileged container",
    runc="can reach the host's kernel and devices",
    hako="can do to its VM what it likes, and to nothing else",
    why="the kernel and the devices are the VM's",
)

#: What containerd lets containers have, by number: include/uapi/linux/capability.h.
_USUAL = {0, 1, 3, 4, 5, 6, 7, 8, 10, 13, 18, 27, 29, 31}
_CHOWN, _NET_ADMIN, _SYS_ADMIN = 0, 12, 21


def status(pod: Pod, **options: Any) -> dict[str, str]:
    """Lines of /proc/self/status in a new container."""
    lines = pod.shell("status", "cat /proc/self/status", **options).splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def capabilities(pod: Pod, **options: Any) -> set[int]:
    """The numbers of the capabilities that are in effect in a new container."""
    mask = int(status(pod, **options)["CapEff"], 16)
    return {number for number in range(64) if mask >> number & 1}


def test_user_and_group(pod: Pod) -> None:
    found = status(pod, run_as_user=1234, run_as_group=567, supplemental_groups=[2000, 3000])
    assert found["Uid"].split() == ["1234"] * 4
    assert found["Gid"].split() == ["567"] * 4
    assert {"2000", "3000"} <= set(found["Groups"].split())


def test_user_by_name(pod: Pod) -> None:
    found = status(pod, run_as_username="hako")
    assert found["Uid"].split()[0] == "1000"
    assert found["Gid"].split()[0] == "1000"
    assert "100" in found["Groups"].split()  # as the image's /etc/group has it


def test_user_that_is_not_in_the_image(pod: Pod) -> None:
    assert "no users found" in fails(pod.create, "nobody", run_as_username="no-such-user")


def test_exec_is_the_containers_user(pod: Pod) -> None:
    made = pod.start("user", "sleep", "1000", run_as_user=1000, run_as_group=1000)
    assert made.sh("grep -E '^(Uid|CapEff)' /proc/self/status").split() == [
        *("Uid:", "1000", "1000", "1000", "1000"),
        *("CapEff:", "0" * 16),
    ]
    made.stop()
    made.remove()


def test_capabilities(pod: Pod) -> None:
    assert capabilities(pod) == _USUAL
    more = m.Capability(add_capabilities=["NET_ADMIN"], drop_capabilities=["CHOWN"])
    assert capabilities(pod, capabilities=more) == (_USUAL | {_NET_ADMIN}) - {_CHOWN}
    assert capabilities(pod, capabilities=m.Capability(drop_capabilities=["ALL"])) == set()
    only = m.Capability(add_capabilities=["NET_BIND_SERVICE"], drop_capabilities=["ALL"])
    assert capabilities(pod, capabilities=only) == {10}


def test_capabilities_in_use(pod: Pod) -> None:
    add = "ip addr add 10.255.0.7/32 dev lo && ip addr del 10.255.0.7/32 dev lo"
    more = m.Capability(add_capabilities=["NET_ADMIN"])
    assert pod.shell("admin", f"{add} && echo fine", capabilities=more) == "fine\n"
    assert pod.shell("usual", f"{add} 2>/dev/null || echo refused") == "refused\n"
    owner = "touch /tmp/f && chown 7 /tmp/f 2>/dev/null || echo refused"
    assert pod.shell("owner", owner, capabilities=m.Capability(drop_capabilities=["CHOWN"])) == "refused\n"


def test_system_calls(pod: Pod, tmp_path: Path) -> None:
    usual = m.SecurityProfile(profile_type=m.RUNTIME_DEFAULT)
    assert status(pod, seccomp=usual)["Seccomp"] == "2"
    assert status(pod, seccomp=m.SecurityProfile(profile_type=m.UNCONFINED))["Seccomp"] == "0"
    assert status(pod)["Seccomp"] == "0"
    denied = {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO"}
    profile = tmp_path / "profile.json"
    profile.write_text(json.dumps({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [denied]}))
    own = m.SecurityProfile(profile_type=m.LOCALHOST, localhost_ref=str(profile))
    script = "mkdir /tmp/new 2>&1; touch /tmp/file && echo others work"
    said = pod.shell("profile", script, seccomp=own)
    assert "Operation not permitted" in said
    assert said.endswith("others work\n")
    missing = m.SecurityProfile(profile_type=m.LOCALHOST, localhost_ref="/no/such/profile")
    assert "no such file" in fails(pod.create, "missing", seccomp=missing)


def test_read_only_root(pod: Pod) -> None:
    script = "touch /file 2>&1; touch /etc/hosts 2>&1; touch /dev/shm/file && echo memory is writable"
    said = pod.shell("readonly", script, readonly_rootfs=True).splitlines()
    assert len(said) == 3
    assert said[2] == "memory is writable"
    assert all("Read-only file system" in line for line in said[:2])
    assert pod.shell("writable", "touch /file /etc/hosts && echo fine") == "fine\n"


def test_no_new_privileges(pod: Pod) -> None:
    assert status(pod, no_new_privs=True)["NoNewPrivs"] == "1"
    assert status(pod)["NoNewPrivs"] == "0"


def test_masked_and_read_only_paths(pod: Pod) -> None:
    masked = ["/etc/passwd", "/usr/share", "/proc/timer_list", "/no/such/path"]
    script = "cat /etc/passwd; ls /usr/share; ls /tmp; touch /tmp/file 2>&1; touch /var/tmp/file && echo others work"
    said = pod.shell("paths", script, masked_paths=masked, readonly_paths=["/tmp", "/proc/sys"]).splitlines()
    assert len(said) == 2
    assert "Read-only file system" in said[0]
    assert said[1] == "others work"
    usual = pod.shell("usual", "grep -c root /etc/passwd; ls /usr/share; touch /tmp/file && echo fine")
    assert usual == "1\ndoc\nfine\n"


def test_kernel_parameters(node: Node, handler: str) -> None:
    wanted = {"kernel.shm_rmid_forced": "1", "net.ipv4.tcp_fin_timeout": "33"}
    wanted |= {"net.ipv4.ip_unprivileged_port_start": "80"}
    with node.pod(handler, "sysctls", sysctls=wanted) as pod:
        made = pod.start("main")
        for name, value in wanted.items():
            assert made.sh(f"cat /proc/sys/{name.replace('.', '/')}") == value
        # Who is not root may listen from that port on.
        script = "httpd -p 80 -h /tmp && echo 80; httpd -p 79 -h /tmp 2>/dev/null || echo not 79"
        assert pod.shell("user", script, run_as_user=1000) == "80\nnot 79\n"


def test_apparmor(pod: Pod) -> None:
    """A host without AppArmor has no profiles, and containerd says so; to be unconfined is no profile."""
    profile = m.SecurityProfile(profile_type=m.LOCALHOST, localhost_ref="some-profile")
    assert "apparmor is not supported" in fails(pod.create, "profile", apparmor=profile)
    assert pod.shell("unconfined", "echo fine", apparmor=m.SecurityProfile(profile_type=m.UNCONFINED)) == "fine\n"


def test_privileged(node: Node, handler: str, pod: Pod) -> None:
    script = "mount -t tmpfs none /mnt && touch /mnt/file && echo mounted; cat /proc/sys/kernel/random/boot_id"
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        host = file.read().strip()
    with node.pod(handler, "privileged", privileged=True) as privileged:
        mounted, kernel = privileged.shell("main", script, privileged=True).splitlines()
        assert mounted == "mounted"
        assert (kernel == host) is either(handler, PRIVILEGED, runc=True, hako=False)
        assert _SYS_ADMIN in capabilities(privileged, privileged=True)
        devices = privileged.shell("devices", "ls /dev", privileged=True).split()
        assert {"null", "zero", "full", "random", "urandom", "tty"} <= set(devices)
        # Others in the pod are as they are everywhere.
        assert privileged.shell("other", "mount -t tmpfs none /mnt 2>/dev/null || echo refused") == "refused\n"
    assert "no privileged container" in fails(pod.create, "refused", privileged=True)
