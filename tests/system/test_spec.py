"""config.json as a whole against a real guest: what docs/conformance.md says is honoured there is, in one VM."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import hako
from hako import arch
from hako.errors import AgentError, ConfigError
from hako.oci import capabilities, seccomp
from hako.ociimage import api as ociimage
from support import enginespecs
from support.specguest import Guest, Spec, mount, namespaces

pytestmark = [pytest.mark.system, pytest.mark.usefixtures("guest_image", "busybox_image")]

_SAFE = ["nosuid", "noexec", "nodev"]
_OWNER = 100_000


@pytest.fixture(scope="module")
def guest(guest_image: object, busybox_image: object, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guest]:
    rootfs = tmp_path_factory.mktemp("rootfs")
    shutil.copytree(ociimage.resolve("busybox").rootfs, rootfs, symlinks=True, dirs_exist_ok=True)
    rootfs.chmod(0o755)
    with hako.Sandbox(image="busybox", memory="512m") as sandbox:
        yield Guest(sandbox, rootfs)


def test_the_process_is_as_described(guest: Guest) -> None:
    def change(spec: Spec) -> None:
        spec["process"] |= {
            "user": {"uid": 1000, "gid": 1001, "additionalGids": [5, 6], "umask": 0o027},
            "env": [*spec["process"]["env"], "A=b c"],
            "cwd": "/tmp",
            "capabilities": {
                key: ["CAP_KILL"] for key in ("bounding", "permitted", "inheritable", "ambient", "effective")
            },
            "rlimits": [{"type": "RLIMIT_NOFILE", "soft": 100, "hard": 200}],
            "noNewPrivileges": True,
            "oomScoreAdj": 500,
            "apparmorProfile": "docker-default",
            "selinuxLabel": "system_u:system_r:container_t:s0:c1,c2",
        }
        spec["domainname"] = "example.org"

    script = (
        "id -u; id -g; id -G; umask; echo $A; pwd; ulimit -Sn; ulimit -Hn; cat /proc/self/oom_score_adj; hostname;"
        "cat /proc/sys/kernel/domainname; uname -m; grep -E 'NoNewPrivs|CapBnd|CapAmb' /proc/self/status"
    )
    said = guest.shell(script, change, personality={"domain": "LINUX32"}).split("\n")
    expected = "1000|1001|1001 5 6|0027|b c|/tmp|100|200|500|box|example.org|i686"
    assert "|".join(said[:12]) == expected
    assert " ".join(said[12:]).split() == ["CapBnd:", f"{1 << 5:016x}", "CapAmb:", f"{1 << 5:016x}", "NoNewPrivs:", "1"]


def test_mounts_of_the_guests_kernel(guest: Guest) -> None:
    def change(spec: Spec) -> None:
        spec["root"]["readonly"] = True
        mount(spec, "/etc", "tmpfs", "tmpfs", "nosuid", "size=1m", "mode=0751", "tmpcopyup", "rprivate")
        mount(spec, "/mnt", "tmpfs", "tmpfs", "noexec", "ro")

    script = (
        "grep -oE '^[^ ]+ (/proc|/sys|/dev/pts|/dev/mqueue|/sys/fs/cgroup|/mnt) [^ ]+' /proc/mounts | cut -d' ' -f3;"
        "stat -c %a /etc; ls /etc/passwd;"
        "touch /etc/x /dev/x; touch /x 2>&1; touch /mnt/x 2>&1; touch /sys/fs/cgroup/x 2>&1;"
        "cat /proc/kcore /sys/firmware/* 2>/dev/null | wc -c; (echo 1 > /proc/sys/kernel/panic) 2>&1;"
        "cat /proc/self/cgroup"
    )
    more = {"maskedPaths": ["/proc/kcore", "/sys/firmware", "/nonexistent"], "readonlyPaths": ["/proc/sys", "/missing"]}
    said = guest.shell(script, change, **more).splitlines()
    assert said[:6] == ["proc", "devpts", "sysfs", "cgroup2", "mqueue", "tmpfs"]
    assert said[6:8] == ["751", "/etc/passwd"]
    assert sum("Read-only file system" in line for line in said[8:]) == 4
    assert "0" in said[8:]
    assert said[-1] == "0::/"


def test_files_of_the_host(guest: Guest, tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "file").write_text("text\n")
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", tmp_path / "sub"], check=True)
    try:
        (tmp_path / "sub" / "inner").touch()

        def change(spec: Spec) -> None:
            mount(spec, "/flat", "bind", str(tmp_path), "bind", "rprivate")
            mount(spec, "/deep", "bind", str(tmp_path), "rbind", "rslave")
            mount(spec, "/ro", "bind", str(tmp_path), "rbind", "ro")
            mount(spec, "/rro", "none", str(tmp_path), "rbind", "rro")
            mount(spec, "/noexec", "bind", str(tmp_path), "bind", "noexec", "nosuid", "nodev")
            mount(spec, "srv/deep/er/file", "bind", str(tmp_path / "file"), "bind", "ro")

        script = (
            "cat /srv/deep/er/file; ls /flat/sub /deep/sub; echo x > /deep/sub/made;"
            "for place in /ro/x /ro/sub/x /rro/x /rro/sub/x /srv/deep/er/file; do touch $place 2>&1; done;"
            "grep -o ' /noexec rw,nosuid,nodev,noexec' /proc/self/mountinfo"
        )
        said = guest.shell(script, change).splitlines()
        assert said[:5] == ["text", "/deep/sub:", "inner", "", "/flat/sub:"]
        assert sum("Read-only file system" in line for line in said[5:]) == 4
        assert said[-1] == " /noexec rw,nosuid,nodev,noexec"
        assert sorted(os.listdir(tmp_path / "sub")) == ["inner", "made", "x"], "ro is for the mount itself"
    finally:
        subprocess.run(["umount", tmp_path / "sub"], check=True)


def test_a_bound_file_follows_what_the_host_writes_into_it(guest: Guest, tmp_path: Path) -> None:
    hosts = tmp_path / "hosts"
    hosts.write_text("first\n")
    spec = guest.spec(
        "sh", "-c", "cat /etc/hosts; while ! grep second /etc/hosts; do :; done; read wait; cat /etc/hosts"
    )
    mount(spec, "/etc/hosts", "bind", str(hosts), "rbind", "rprivate")
    (in_read, in_write), (out_read, out_write) = os.pipe(), os.pipe()
    with open(out_read, encoding="ascii") as said, open(in_write, "w", encoding="ascii") as word:
        try:
            container = guest.created(spec, {"stdin": in_read, "stdout": out_write}, start=True)
            stack = contextlib.ExitStack()
            stack.enter_context(container)
        finally:
            os.close(in_read)
            os.close(out_write)
        with stack:
            assert said.readline() == "first\n"
            hosts.write_text("second\n")
            assert said.readline() == "second\n"
            # As with runc: a file that takes its place is another one.
            (tmp_path / "new").write_text("third\n")
            (tmp_path / "new").rename(hosts)
            print(file=word, flush=True)
            assert said.readline() == "second\n"


def test_containers_share_memory_that_engines_share_between_them(guest: Guest, tmp_path: Path) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m,mode=1777", "shm", tmp_path], check=True)
    try:

        def change(spec: Spec) -> None:
            mount(spec, "/dev/shm", "bind", str(tmp_path), "bind", "rprivate", *_SAFE)

        guest.shell("echo shared > /dev/shm/file", change)
        said = guest.shell(
            "cat /dev/shm/file; grep ' /dev/shm ' /proc/mounts; stat -c %a /dev/shm", change
        ).splitlines()
        assert (said[0], said[2]) == ("shared", "1777")
        assert said[1].startswith("shm /dev/shm tmpfs rw,nosuid,nodev,noexec,relatime,size=3072k")
        assert not os.listdir(tmp_path)
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def test_devices(guest: Guest) -> None:
    devices = [
        {"path": "/dev/mine", "type": "c", "major": 1, "minor": 5, "fileMode": 0o640, "uid": 7, "gid": 8},
        {"path": "/dev/kmsg", "type": "c", "major": 1, "minor": 11, "fileMode": 0o600},
        {"path": "/dev/net/tun", "type": "c", "major": 10, "minor": 200, "fileMode": 0o666},
        {"path": "/srv/zero", "type": "c", "major": 1, "minor": 5},
        {"path": "/dev/fifo", "type": "p", "fileMode": 0o600},
    ]
    rules = [{"allow": False, "access": "rwm"}, {"allow": True, "type": "c", "major": 10, "minor": 200, "access": "rw"}]

    def change(spec: Spec) -> None:
        mount(spec, "/srv/random", "bind", "/dev/urandom", "bind")

    script = (
        "stat -c '%F %a %u %g %t:%T' /dev/mine /dev/fifo; head -c 4 /dev/mine | od -An -tx1;"
        "head -c 4 /srv/zero | wc -c; head -c 4 /srv/random | wc -c; echo written > /dev/null;"
        "(: < /dev/net/tun) && echo open; (: < /dev/kmsg) 2>&1; true"
    )
    said = guest.shell(script, change, devices=devices, resources={"devices": rules}).splitlines()
    assert said[:2] == ["character special file 640 7 8 1:5", "fifo 600 0 0 0:0"]
    assert [line.strip() for line in said[2:6]] == ["00 00 00 00", "4", "4", "open"]
    assert "Operation not permitted" in said[6]


def test_the_first_container_may_use_what_later_ones_may(guest: Guest) -> None:
    # In a clone another program guards its devices. It has all that lets it be made ahead: no input, usual rules.
    script = """
        grep -c "keyring *_ahead" /proc/keys; stat -Lc %F /dev/stdin; cat /sys/fs/cgroup/pids.max; cd /tmp
        for device in "c 1 1" "c 1 3" "c 1 5" "c 1 8" "c 1 11" "c 5 1" "c 10 200" "c 10 229" "b 1 0" "c 136 0"; do
            mknod node $device && echo "made $device"
            (: < node) 2>&1; (: > node) 2>&1; rm node
        done"""
    allowed = [{"allow": True, "type": "c", "major": 1, "minor": 3, "access": "rwm"}]
    resources = {"devices": [{"allow": False, "access": "rwm"}, *allowed], "pids": {"limit": 50}}

    def said(container: Guest) -> str:
        return container.shell(script, lambda spec: mount(spec, "/tmp", "tmpfs", "tmpfs"), resources=resources)

    with hako.Sandbox() as fresh:
        (ahead, *first), (not_ahead, *second) = (said(Guest(fresh, guest.rootfs)).splitlines() for _ in range(2))
    # crun names the session's keyring after the container.
    assert (ahead, not_ahead) == ("1", "0")
    assert first == second
    assert first[:2] == ["character special file", "50"]
    assert sum(line.startswith("made ") for line in first) == 10
    assert sum("Operation not permitted" in line for line in first) == 10


def test_a_container_without_a_dev_has_one(guest: Guest) -> None:
    spec = guest.spec("sh", "-c", "echo a > /dev/null; ls /dev")
    spec["mounts"] = []
    assert {"null", "zero", "full", "random", "urandom", "tty", "ptmx"} <= set(guest.run(spec).split())


def test_kernel_parameters(guest: Guest) -> None:
    given = {
        "net.ipv4.ip_unprivileged_port_start": "80",
        "net.ipv4.ping_group_range": "0 2147483647",
        "kernel.shm_rmid_forced": "1",
        "fs.mqueue.msg_max": "77",
        "kernel.domainname": "example.net",
    }
    files = "net/ipv4/ip_unprivileged_port_start kernel/shm_rmid_forced fs/mqueue/msg_max kernel/domainname"
    assert guest.shell(f"cd /proc/sys; cat {files}", sysctl=given).split() == ["80", "1", "77", "example.net"]
    refusal = guest.refusal(guest.spec("true", sysctl={"net.ipv4.nonsense": "1"}))
    assert "cannot have the parameter net.ipv4.nonsense set to '1': No such file" in refusal


def test_limits(guest: Guest) -> None:
    given = {
        "memory": {"limit": 64 << 20, "swap": 96 << 20, "reservation": 32 << 20, "swappiness": 10, "kernel": 1 << 20},
        "cpu": {"shares": 512, "quota": 50_000, "period": 100_000, "cpus": "0-63", "mems": "0"},
        "pids": {"limit": 50},
        "blockIO": {"weight": 500, "throttleReadBpsDevice": [{"major": 8, "minor": 0, "rate": 1}]},
        "hugepageLimits": [{"pageSize": "2MB", "limit": 4 << 20}],
        "unified": {"memory.high": "50331648", "cpuset.cpus": "63"},
        "network": {"classID": 5},
    }
    files = "memory.max memory.swap.max memory.low cpu.weight cpu.max pids.max io.weight hugetlb.2MB.max memory.high"
    said = guest.shell(f"cd /sys/fs/cgroup && cat {files}", resources=given).splitlines()
    expected = [str(64 << 20), str(32 << 20), str(32 << 20), "20", "50000 100000", "50"]
    assert said[:6] == expected
    assert said[6].startswith("default ")
    assert said[6] != "default 100"
    assert said[7:] == [str(4 << 20), str(48 << 20)]


def test_namespaces_of_a_pods_first_container_are_joined(guest: Guest) -> None:
    first = guest.spec("sleep", "1000")
    first["hostname"] = "pod"
    with guest.created(first, {}, start=True) as container:
        pid = container.processes()[0]["pid"]
        joined = {f"/proc/4711/ns/{name}": f"/proc/{pid}/ns/{name}" for name in ("ipc", "uts", "pid")}
        second = guest.spec(
            "sh", "-c", "hostname; ps | grep -c 'sleep 1000'; readlink /proc/self/ns/ipc; readlink /proc/1/ns/ipc"
        )
        del second["hostname"]
        second["process"]["capabilities"] = capabilities.for_process(capabilities.ALL, 0)
        second["linux"]["namespaces"] = [
            *namespaces("mount", "network"),
            *({"type": name, "path": f"/proc/4711/ns/{name}"} for name in ("ipc", "uts", "pid")),
        ]
        name, count, ipc, firsts = guest.run(second, joined=joined).split()
        assert (name, ipc) == ("pod", firsts)
        assert int(count) >= 1
        with pytest.raises(ConfigError, match="does not belong to a container of the same VM"):
            guest.run(second)


@pytest.fixture(scope="module")
def shifted(guest: Guest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root file system for containers whose root is user _OWNER outside, as engines make one."""
    # A container's users must get through, so it is not in a directory that is root's alone.
    rootfs = tmp_path_factory.mktemp("shifted")
    shutil.copytree(guest.rootfs, rootfs, symlinks=True, dirs_exist_ok=True)
    for path in [rootfs, *rootfs.rglob("*")]:
        os.chown(path, _OWNER, _OWNER, follow_symlinks=False)
    return rootfs


def in_user_namespace(spec: Spec, rootfs: Path) -> Spec:
    spec["root"]["path"] = str(rootfs)
    spec["linux"]["namespaces"] += namespaces("user")
    for key in ("uidMappings", "gidMappings"):
        spec["linux"][key] = [{"containerID": 0, "hostID": _OWNER, "size": 65536}]
    return spec


def test_users_of_a_container_can_be_others_outside(guest: Guest, shifted: Path) -> None:
    script = "id -u; cat /proc/self/uid_map; touch /made; stat -c %u /made /proc/1; echo x > /dev/null; ls /sys/class"
    said = guest.run(in_user_namespace(guest.spec("sh", "-c", script), shifted)).split()
    assert said[:6] == ["0", "0", str(_OWNER), "65536", "0", "0"]
    assert "net" in said
    assert (shifted / "made").stat().st_uid == _OWNER


def test_a_user_namespace_is_joined_with_what_belongs_to_it(guest: Guest, shifted: Path) -> None:
    first = in_user_namespace(guest.spec("sleep", "1000"), shifted)
    with guest.created(first, {}, start=True) as container:
        pid = container.processes()[0]["pid"]
        kinds = ("user", "ipc", "uts", "pid")
        joined = {f"/proc/4711/ns/{name}": f"/proc/{pid}/ns/{name}" for name in kinds}
        second = in_user_namespace(
            guest.spec("sh", "-c", "hostname; cat /proc/self/uid_map; echo > /dev/null"), shifted
        )
        del second["hostname"], second["linux"]["uidMappings"], second["linux"]["gidMappings"]
        paths = ({"type": name, "path": f"/proc/4711/ns/{name}"} for name in kinds)
        second["linux"]["namespaces"] = [*namespaces("mount", "network"), *paths]
        assert guest.run(second, joined=joined).split() == ["box", "0", str(_OWNER), "65536"]


def test_system_call_filters(guest: Guest) -> None:
    profile = seccomp.profile(capabilities.wanted([], []), arch.current().seccomp)
    rule = {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 28}
    for flags in ([], ["SECCOMP_FILTER_FLAG_LOG"]):
        given = {**profile, "syscalls": [rule, *profile["syscalls"]], "flags": flags}
        said = guest.shell("grep Seccomp: /proc/self/status; mkdir /x 2>&1; true", seccomp=given)
        assert "Seccomp:\t2" in said
        assert "No space left on device" in said


def test_a_hook_of_the_container_runs_in_it(guest: Guest) -> None:
    hook = {"path": "/bin/sh", "args": ["sh", "-c", "cat > /tmp/hooked; echo $A >> /tmp/hooked"], "env": ["A=b"]}

    def change(spec: Spec) -> None:
        spec["hooks"] = {"startContainer": [hook], "poststop": [{"path": "/left/to/the/caller"}]}
        mount(spec, "/tmp", "tmpfs", "tmpfs")

    said = guest.shell("cat /tmp/hooked", change)
    assert '"status":' in said
    assert said.endswith("b\n")


def test_what_crun_refuses_is_told(guest: Guest) -> None:
    with pytest.raises(AgentError, match="the requested cgroup controller `foo` is not available"):
        guest.run(guest.spec("true", resources={"unified": {"foo.bar": "1"}}))


# --- what engines write ---

_ENGINES = [
    "docker-limits", "docker-privileged", "docker-run", "docker-sysctl", "docker-throttle", "docker-user",
    "docker-volumes", "podman-kube", "podman-limits", "podman-privileged", "podman-rslave", "podman-run",
    "podman-systemd", "podman-userns", "podman-volumes",
]  # fmt: skip


@pytest.fixture(scope="module")
def pod(guest: Guest) -> Iterator[dict[str, str]]:
    """The namespaces of a container that others join."""
    with guest.created(guest.spec("sleep", "1000"), {}, start=True) as container:
        pid = container.processes()[0]["pid"]
        yield {f"/proc/4711/ns/{name}": f"/proc/{pid}/ns/{name}" for name in ("ipc", "uts", "pid")}


@pytest.mark.parametrize("name", [*_ENGINES, "docker-joined", "podman-pod-member", "podman-pod-shared-pids"])
def test_what_engines_write_runs(guest: Guest, shifted: Path, pod: dict[str, str], name: str, tmp_path: Path) -> None:
    spec = enginespecs.load(name)
    spec["root"]["path"] = str(shifted if "uidMappings" in spec["linux"] else guest.rootfs)
    spec["process"] |= {"args": ["/bin/cat", "/proc/mounts"], "terminal": False}
    for index, entry in enumerate(spec["mounts"]):
        if entry["type"] == "bind" and not os.path.exists(entry["source"]):
            source = tmp_path / f"{index}"
            source.mkdir() if entry["destination"] in ("/v", "/dev/shm") else source.touch()
            entry["source"] = str(source)
    said = guest.run(spec, joined=pod)
    for entry in spec["mounts"]:
        if entry["destination"] not in ("/sys/fs/cgroup/systemd", "/dev/mqueue"):
            assert f" {entry['destination']} " in said
