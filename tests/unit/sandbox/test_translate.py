"""From the host's config.json to the guest's: what is passed on, changed, left to the host and refused."""

from __future__ import annotations

import copy
import os
import socket
from pathlib import Path
from typing import Any

import pytest

from hako.errors import ConfigError
from hako.oci import check
from hako.sandbox import guestresources, translate
from hako.storage.sources import Source, look
from hako.storage.tree import SharedTree
from support import enginespecs
from support.translating import ALL_DEVICES, SHARES, Tree, device, linux, spec, to_guest


def bind(source: str, destination: str = "/x", *options: str, **more: Any) -> dict[str, Any]:
    """A spec with one bind mount."""
    mount = {"destination": destination, "type": "bind", "source": source, "options": list(options), **more}
    return spec(mounts=[mount])


def test_what_is_changed_and_what_is_passed_on() -> None:
    (guest, prepare), tree = to_guest(spec())
    assert guest["root"] == {"path": f"{SHARES}/c1/rootfs", "readonly": True}
    assert [(mount["destination"], mount["source"]) for mount in guest["mounts"]] == [
        ("/proc", "proc"),
        ("/dev", "tmpfs"),
        ("/data", f"{SHARES}/c1/volumes/0"),
        ("/etc/hosts", f"{SHARES}/c1/volumes/1"),
        ("/tmp", "tmpfs"),
    ]
    assert guest["mounts"][2]["options"] == ["rbind", "ro", "nosuid"]
    assert tree.volumes == [("c1", "/srv/data", True, True), ("c1", "/srv/hosts", False, False)]
    namespaces = [{"type": "pid"}, {"type": "mount"}, {"type": "cgroup"}]
    assert guest["linux"] == {"namespaces": namespaces, "maskedPaths": ["/proc/kcore"]}
    assert guest["process"] == spec()["process"]
    assert guest["annotations"] == {"a": "b"}
    assert guest["ociVersion"] == "1.0.2"
    assert prepare == {}


def test_the_input_is_not_changed() -> None:
    given = spec(hooks={"startContainer": [{"path": "/x"}]})
    before = copy.deepcopy(given)
    (guest, _), _ = to_guest(given)
    guest["process"]["args"].append("x")
    guest["mounts"][4]["options"].append("x")
    guest["hooks"]["startContainer"].clear()
    assert given == before


def test_a_container_has_a_dev_that_can_hold_devices() -> None:
    (guest, _), _ = to_guest(spec(mounts=[{"destination": "/proc", "type": "proc"}]))
    assert [(mount["destination"], mount["type"]) for mount in guest["mounts"]] == [
        ("/dev", "tmpfs"),
        ("/proc", "proc"),
    ]
    guest["mounts"][0]["options"].clear()
    (other, _), _ = to_guest(spec(mounts=[]))
    assert other["mounts"][0]["options"]


# --- mounts ---


@pytest.mark.parametrize("options", [None, [], ["rw"]])
def test_a_mount_is_a_bind_by_its_type_alone(options: list[str] | None) -> None:
    mount: dict[str, Any] = {"destination": "/d", "type": "bind", "source": "/s"}
    if options is not None:
        mount["options"] = options
    (guest, _), tree = to_guest(spec(mounts=[mount]))
    assert tree.volumes == [("c1", "/s", False, False)]
    assert guest["mounts"][1]["type"] == "bind"


@pytest.mark.parametrize(
    ("options", "readonly"),
    [(["ro"], True), (["rro"], True), (["ro", "rw"], False), (["rw", "ro"], True), (["rprivate"], False)],
)
def test_the_last_word_on_writing_counts(options: list[str], readonly: bool) -> None:
    (guest, _), tree = to_guest(bind("/srv/data", "/d", "rbind", *options))
    assert tree.volumes == [("c1", "/srv/data", readonly, True)]
    assert guest["mounts"][1]["options"] == ["rbind", *(option.replace("rro", "ro") for option in options)]


def test_a_guest_leaves_it_to_the_host_to_have_a_part_readonly() -> None:
    (guest, _), _ = to_guest(bind("/srv/tree", "/d", "rbind", "ro", "nodev"))
    assert guest["mounts"][1]["options"] == ["rbind", "nodev"]
    (guest, _), _ = to_guest(bind("/srv/tree", "/d", "rbind", "rro"))
    assert guest["mounts"][1]["options"] == ["rbind", "ro"]


def test_a_relative_destination_is_below_the_root() -> None:
    (guest, _), _ = to_guest(bind("/srv/data", "data"))
    assert guest["mounts"][1]["destination"] == "/data"


def test_shared_memory_is_the_guests_and_common_to_those_that_share_the_hosts() -> None:
    (one, prepare), tree = to_guest(bind("/srv/pod/shm", "/dev/shm/", "bind", "nosuid"))
    (two, again), _ = to_guest(bind("/srv/pod/shm", "/dev/shm", "bind", "rprivate"))
    (three, _), _ = to_guest(bind("/srv/other/shm", "/dev/shm"))
    assert one["mounts"][1]["source"] == two["mounts"][1]["source"] != three["mounts"][1]["source"]
    (name, options), *_ = prepare["memory"].items()
    assert prepare == again
    assert one["mounts"][1] == {
        "destination": "/dev/shm/", "type": "bind", "source": f"/run/hako/memory/{name}", "options": ["bind", "nosuid"],
    }  # fmt: skip
    assert options == "mode=1777,uid=0,gid=0,size=67108864"
    assert tree.volumes == []


def test_a_pod_without_a_container_of_its_own_shares_memory_that_only_the_guest_has() -> None:
    mount: dict[str, Any] = {"destination": "/dev/shm/", "type": "tmpfs", "source": "shm"}
    mount["options"] = ["nosuid", "mode=1777", "size=9k"]
    (guest, prepare), tree = to_guest(spec(mounts=[mount]), shared=["/dev/shm"])
    (name, options), *_ = prepare["memory"].items()
    assert options == "mode=1777,size=9k"
    assert guest["mounts"][1] == {
        "destination": "/dev/shm/", "type": "bind", "source": f"/run/hako/memory/{name}", "options": ["bind", "nosuid"],
    }  # fmt: skip
    assert tree.volumes == []
    (guest, prepare), _ = to_guest(spec(mounts=[mount]))
    assert guest["mounts"][1] == mount
    assert prepare == {}


def test_memory_of_the_host_elsewhere_is_shared_as_files() -> None:
    (_, prepare), tree = to_guest(bind("/srv/pod/shm", "/cache"))
    assert tree.volumes[0][1] == "/srv/pod/shm"
    assert prepare == {}


def test_a_pods_memory_volume_is_the_guests_wherever_it_is_mounted() -> None:
    source = "/var/lib/kubelet/pods/1/volumes/kubernetes.io~empty-dir/cache/shm"
    (one, prepare), tree = to_guest(bind(source, "/cache"))
    (two, _), _ = to_guest(bind(source, "/elsewhere", "bind", "ro"))
    (name,) = prepare["memory"]
    assert one["mounts"][1]["source"] == two["mounts"][1]["source"] == f"/run/hako/memory/{name}"
    assert two["mounts"][1]["options"] == ["bind", "ro"]
    assert tree.volumes == []


def test_a_pods_volume_on_disk_is_shared_as_files() -> None:
    (_, prepare), tree = to_guest(bind("/var/lib/kubelet/pods/1/volumes/kubernetes.io~empty-dir/cache", "/cache"))
    assert len(tree.volumes) == 1
    assert prepare == {}


def test_a_bound_device_is_the_guests_own() -> None:
    (guest, prepare), tree = to_guest(bind("/dev/null", "/srv/null", "bind", "ro"))
    assert guest["mounts"][1]["source"] == "/dev/null"
    assert (prepare, tree.volumes) == ({}, [])


def test_systemds_cgroups_are_the_guests_own() -> None:
    """As podman binds them: the root of the cgroups is read-only, systemd's own are not."""
    cgroups = {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["ro", "nosuid"]}
    systemd = {"destination": "/sys/fs/cgroup/systemd", "type": "bind", "source": "/sys/fs/cgroup", "options": ["bind"]}
    (guest, _), tree = to_guest(spec(mounts=[cgroups, systemd]))
    assert guest["mounts"][1:] == [{**cgroups, "options": ["nosuid"]}]
    (guest, _), _ = to_guest(spec(mounts=[cgroups, {**systemd, "options": ["bind", "ro"]}]))
    assert guest["mounts"][1:] == [cgroups]
    (guest, _), _ = to_guest(spec(mounts=[{**systemd, "destination": "/sys/fs/cgroup", "options": ["ro"]}]))
    assert (guest["mounts"][1]["type"], "ro" in guest["mounts"][1]["options"]) == ("cgroup", True)
    assert tree.volumes == []


@pytest.mark.parametrize("source", ["/proc", "/proc/cpuinfo", "/sys", "/sys/kernel"])
def test_the_hosts_kernel_is_not_shown(source: str) -> None:
    with pytest.raises(ConfigError, match=rf"\$\.mounts\[0\]: {source} shows the host's kernel"):
        to_guest(bind(source))


def test_sockets_and_fifos_of_the_host_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(tmp_path / "sock"))
        for name, kind in (("pipe", "fifo"), ("sock", "socket")):
            with pytest.raises(ConfigError, match=f"{name} is a {kind}"):
                to_guest(bind(str(tmp_path / name)))


@pytest.mark.parametrize(
    ("mount", "message"),
    [
        ({"type": "bind", "source": "/sys/fs/cgroup"}, "shows the host's cgroups"),
        ({"type": "ext4", "source": "/dev/sdb"}, r"\$\.mounts\[0\]\.type: .* cannot have ext4 at /x"),
        ({"type": "overlay", "options": ["lowerdir=/a"]}, "cannot have overlay"),
        ({"type": "nfs"}, "cannot have nfs"),
        ({}, "cannot have a mount without a type at /x"),
        ({"type": "bind", "source": "/srv/data", "options": ["rbind", "idmap"]}, "maps owners of files"),
        ({"type": "bind", "source": "/srv/data", "options": ["bind", "ridmap=x"]}, "maps owners of files"),
        (
            {
                "type": "bind",
                "source": "/srv/data",
                "uidMappings": [{"containerID": 0, "hostID": 1, "size": 1}],
            },
            "maps owners of files",
        ),
        ({"type": "bind", "source": "srv"}, "'srv' into the container: its path is not absolute"),
    ],
)
def test_mounts_that_a_vm_cannot_have(mount: dict[str, Any], message: str) -> None:
    class Real(Tree):
        def look(self, source: str) -> Source:
            return super().look(source) if source.startswith("/") else look(source)

    given = check.check(spec(mounts=[{"destination": "/x", **mount}]))
    with pytest.raises(ConfigError, match=message):
        translate.translate(given, "c1", Real())  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["proc", "sysfs", "tmpfs", "devpts", "mqueue", "cgroup", "cgroup2", "hugetlbfs"])
def test_file_systems_of_the_guests_kernel_are_passed_on(kind: str) -> None:
    mount = {"destination": "/m", "type": kind, "source": kind, "options": ["nosuid", "mode=0750", "tmpcopyup"]}
    (guest, _), _ = to_guest(spec(mounts=[mount]))
    assert guest["mounts"][1] == mount


# --- namespaces ---


def test_namespaces_of_the_same_vm_can_be_joined() -> None:
    joined = {"/proc/4711/ns/ipc": "/proc/200/ns/ipc"}
    namespaces = [{"type": "mount"}, {"type": "ipc", "path": "/proc/4711/ns/ipc"}, {"type": "user"}]
    (guest, _), _ = to_guest(spec(linux={"namespaces": namespaces}), joined=joined)
    assert guest["linux"]["namespaces"] == [
        {"type": "mount"},
        {"type": "ipc", "path": "/proc/200/ns/ipc"},
        {"type": "user"},
        {"type": "cgroup"},
    ]


def test_the_vms_namespaces_stand_in_for_the_hosts_where_that_is_asked_for() -> None:
    given = spec(linux={"namespaces": [{"type": "mount"}, {"type": "network"}]})
    with pytest.raises(ConfigError, match="share the host's pid namespace"):
        to_guest(given, strict=True)
    given["annotations"]["dev.hako.guest-namespaces"] = "true"
    (guest, _), _ = to_guest(given, strict=True)
    assert guest["linux"]["namespaces"] == [{"type": "mount"}]


def test_a_time_namespace_without_offsets_changes_nothing() -> None:
    (guest, _), _ = to_guest(linux("time", timeOffsets={"boottime": {"secs": 0}}))
    assert {entry["type"] for entry in guest["linux"]["namespaces"]} == {"pid", "mount", "ipc", "uts", "cgroup"}
    assert "timeOffsets" not in guest["linux"]


# --- the rest ---


def test_hooks_for_the_host_are_the_callers() -> None:
    hooks = {"prestart": [{"path": "/h"}], "poststop": [], "startContainer": [{"path": "/in"}]}
    (guest, _), _ = to_guest(spec(hooks=hooks) | {"linux": linux()["linux"]}, strict=True)
    assert guest["hooks"] == {"startContainer": [{"path": "/in"}]}
    with pytest.raises(ConfigError, match=r"\$\.hooks\.prestart: only hako-runtime"):
        to_guest(spec(hooks=hooks))


def test_sysctls_of_the_network_are_the_vms() -> None:
    given = {
        "net.ipv4.ip_unprivileged_port_start": "0",
        "net.ipv4.conf.eth0/100.forwarding": "1",
        "net/ipv4/conf/eth0.100/rp_filter": "2",
        "vm.max_map_count": "262144",
        "kernel/shm_rmid_forced": "1",
        "fs.mqueue.msg_max": "20",
        "kernel.domainname": "example.org",
    }
    (guest, prepare), _ = to_guest(linux(sysctl=given))
    assert guest["linux"]["sysctl"] == {
        "kernel.shm_rmid_forced": "1",
        "fs.mqueue.msg_max": "20",
        "kernel.domainname": "example.org",
    }
    assert prepare["sysctls"] == {
        "net/ipv4/ip_unprivileged_port_start": "0",
        "net/ipv4/conf/eth0.100/forwarding": "1",
        "net/ipv4/conf/eth0.100/rp_filter": "2",
        "vm/max_map_count": "262144",
    }


def test_limits_that_are_the_hosts() -> None:
    given = {
        "devices": ALL_DEVICES,
        "memory": {
            "limit": 1 << 30,
            "swap": 2 << 30,
            "kernel": 5,
            "kernelTCP": 6,
            "swappiness": 7,
            "useHierarchy": True,
        },
        "cpu": {"shares": 5, "quota": 1000, "period": 100000, "cpus": "0-63", "mems": "1", "realtimeRuntime": 0},
        "pids": {"limit": 10},
        "blockIO": {"weight": 50, "throttleReadBpsDevice": [{"major": 8, "minor": 0, "rate": 1}], "leafWeight": 5},
        "hugepageLimits": [{"pageSize": "2MB", "limit": 0}],
        "network": {"classID": 5},
        "rdma": {"mlx5_0": {"hcaHandles": 1}},
        "unified": {"memory.high": "1", "cpuset.cpus": "5", "io.max": "8:0 rbps=1", "misc.max": "x 1"},
    }
    assert guestresources.resources(check.check(linux(resources=given))["linux"]["resources"]) == {
        "devices": ALL_DEVICES,
        "memory": {"limit": 1 << 30, "swap": 2 << 30},
        "cpu": {"shares": 5, "quota": 1000, "period": 100000},
        "pids": {"limit": 10},
        "blockIO": {"weight": 50},
        "hugepageLimits": [{"pageSize": "2MB", "limit": 0}],
        "unified": {"memory.high": "1"},
    }


@pytest.mark.parametrize(
    "profile", ["", "unconfined", "docker-default", "cri-containerd.apparmor.d", "containers-default-0.50.1"]
)
def test_security_modules_of_the_host_are_left_out(profile: str) -> None:
    given = {"args": ["a"], "cwd": "/", "apparmorProfile": profile, "selinuxLabel": "system_u:system_r:container_t:s0"}
    assert guestresources.process(given) == {"args": ["a"], "cwd": "/"}


def test_sections_of_other_systems_are_ignored_beside_linux() -> None:
    (guest, _), _ = to_guest(spec(windows={"layerFolders": ["C:"]}))
    assert "windows" not in guest


def process(**more: Any) -> dict[str, Any]:
    return spec(process={"args": ["a"], "cwd": "/", **more})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (spec(ociVersion="2.0.0"), r"\$\.ociVersion: hako knows version 1"),
        ({key: value for key, value in spec(windows={}).items() if key != "linux"}, r"\$\.windows: .* for windows"),
        (spec(vm={"kernel": {"path": "/boot/vmlinuz"}}), r"\$\.vm: hako chooses"),
        (spec(linux={"namespaces": [{"type": "pid"}]}), "needs a mount namespace"),
        (spec(linux={}), "needs a mount namespace"),
        (spec(linux={"namespaces": [{"type": "mount"}, {"type": "mount"}]}), r"namespaces\[1\]: .* second"),
        (spec(linux={"namespaces": [{"type": "moon"}]}), r"namespaces\[0\]\.type: Linux has no moon"),
        (linux() | {"linux": {"namespaces": [{"type": "mount"}]}, "hostname": "h"}, r"\$\.hostname: .* uts"),
        (
            spec(linux={"namespaces": [{"type": "mount"}, {"type": "ipc", "path": "/proc/1/ns/ipc"}]}),
            r"\[1\]\.path.*ipc",
        ),
        (spec(linux={"namespaces": [{"type": "user", "path": "/proc/1/ns/user"}]}), r"namespaces\[0\]\.path.*user"),
        (linux("time", timeOffsets={"boottime": {"secs": 5}}), r"\$\.linux\.timeOffsets"),
        (linux(intelRdt={"closID": "x"}), r"\$\.linux\.intelRdt"),
        (linux(memoryPolicy={"mode": "MPOL_BIND"}), r"\$\.linux\.memoryPolicy"),
        (linux(netDevices={"eth0": {}}), r"\$\.linux\.netDevices"),
        (linux(rootfsPropagation="often"), r"\$\.linux\.rootfsPropagation: often"),
        (linux(personality={"domain": "BSD"}), r"\$\.linux\.personality"),
        (linux(seccomp={"defaultAction": "SCMP_ACT_NOTIFY"}), r"\$\.linux\.seccomp: .*SCMP_ACT_NOTIFY"),
        (linux(seccomp={"defaultAction": "SCMP_ACTALL_DEVICESOW", "listenerPath": "/run/s"}), "listenerPath"),
        (linux(sysctl={"net..x": "1"}), r"\$\.linux\.sysctl\['net\.\.x'\]"),
        (linux(sysctl={"net/../kernel/x": "1"}), "is no name of a kernel parameter"),
        (linux(sysctl={"hostname": "1"}), "is no name of a kernel parameter"),
        (linux(resources={"memory": {"disableOOMKiller": True}}), "disableOOMKiller"),
        (linux(resources={"cpu": {"realtimeRuntime": 5}}), "real-time group scheduling"),
        (linux(resources={"unified": {"../x": "1"}}), r"unified\['\.\./x'\]"),
        (linux(devices=[device("/dev/x", "q", 1, 3)]), r"devices\[0\]\.type: must be c, b, u or p"),
        (process(apparmorProfile="mine"), r"\$\.process\.apparmorProfile: .* mine"),
        (process(scheduler={"policy": "SCHED_FIFO"}), r"\$\.process\.scheduler"),
        (process(ioPriority={"class": "IOPRIO_CLASS_RT"}), r"\$\.process\.ioPriority"),
        (process(execCPUAffinity={"initial": "0"}), r"\$\.process\.execCPUAffinity"),
    ],
)
def test_what_a_vm_cannot_honour_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        to_guest(given)


# --- what engines write ---

_PID = "/proc/4711/ns"
#: What the caller knows of the pod that the container joins.
_JOINED = {f"{_PID}/{name}": f"/proc/99/ns/{name}" for name in ("pid", "ipc", "uts")}
_REFUSED = {
    "docker-pid-ipc-uts-host": "share the host's pid namespace",
    "podman-pid-host": "share the host's pid namespace",
}


@pytest.mark.parametrize("name", [name for name in enginespecs.NAMES if name not in _REFUSED])
def test_what_engines_write_is_translated(name: str) -> None:
    given = enginespecs.load(name)
    (guest, prepare), tree = to_guest(given, strict=True, joined=_JOINED)
    told = str(guest)
    for words in ("/var/lib/", "/run/containers/", _PID, "libnetwork-setkey", "net.ipv4", "docker/", "/srv/"):
        assert words not in told
    assert guest["process"] == given["process"]
    assert guest["linux"]["maskedPaths" if "privileged" not in name else "namespaces"]
    assert all(path.startswith("net/") for path in prepare.get("sysctls", ()))
    assert ("/dev/shm" in {source for _, source, _, _ in tree.volumes}) is False


@pytest.mark.parametrize(("name", "message"), _REFUSED.items())
def test_what_engines_write_about_the_host_is_refused(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        to_guest(enginespecs.load(name), strict=True)


def test_a_privileged_container_gets_what_the_guest_has() -> None:
    for name in ("docker-privileged", "podman-privileged"):
        (guest, prepare), _ = to_guest(enginespecs.load(name), strict=True)
        paths = {node["path"] for node in guest["linux"]["devices"]}
        assert {"/dev/fuse", "/dev/kmsg", "/dev/full", "/dev/tty0", "/dev/loop0", "/dev/net/tun"} <= paths
        assert not paths & {"/dev/kvm", "/dev/vda", "/dev/cpu/0/cpuid", "/dev/hwrng", "/dev/ttyS0", "/dev/autofs"}
        assert prepare["modules"] == {"loop": False, "tun": False}


@pytest.mark.parametrize("given", [None, {}, {"effective": ["CAP_CHOWN"], "bounding": ["CAP_NET_ADMIN"]}])
def test_who_may_not_configure_networks_requests_no_modules(given: dict[str, Any] | None) -> None:
    spec = enginespecs.load("docker-privileged")
    spec["process"]["capabilities"] = given
    (_, prepare), _ = to_guest(spec, strict=True)
    assert "request" not in prepare
    spec["process"]["capabilities"] = {"effective": ["CAP_NET_ADMIN"]}
    (_, prepare), _ = to_guest(spec, strict=True)
    assert prepare["request"] == ["ip_tables", "ip6_tables"]


def test_the_tree_has_what_is_used_here() -> None:
    assert callable(SharedTree.add_volume)
    assert callable(SharedTree.look)
