"""The config.json that an image and options make: docker's rules, in tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hako.errors import ConfigError
from hako.oci import capabilities, spec
from hako.oci.spec import RunOptions


@pytest.fixture
def rootfs(tmp_path: Path) -> str:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/passwd").write_text("root:x:0:0::/root:/bin/sh\napp:x:1000:1000::/home/app:/bin/sh\n")
    (tmp_path / "etc/group").write_text("root:x:0:\nwheel:x:10:app\n")
    return str(tmp_path)


def _build(config: dict[str, Any], options: RunOptions, rootfs: str = "") -> dict[str, Any]:
    return spec.build({"Cmd": ["sh"], **config}, options, rootfs=rootfs, container_id="0123456789abcdef")


@pytest.mark.parametrize(
    ("image", "options", "expected"),
    [
        ({"Cmd": ["sh"]}, RunOptions(), ["sh"]),
        ({"Cmd": ["sh"]}, RunOptions(args=["ls", "-l"]), ["ls", "-l"]),
        ({"Entrypoint": ["/e", "-x"], "Cmd": ["c"]}, RunOptions(), ["/e", "-x", "c"]),
        ({"Entrypoint": ["/e"], "Cmd": ["c"]}, RunOptions(args=["a"]), ["/e", "a"]),
        ({"Entrypoint": ["/e"]}, RunOptions(), ["/e"]),
        ({"Entrypoint": ["/e"], "Cmd": ["c"]}, RunOptions(entrypoint="/n"), ["/n"]),
        ({"Entrypoint": ["/e"], "Cmd": ["c"]}, RunOptions(entrypoint="/n", args=["a"]), ["/n", "a"]),
        ({"Entrypoint": ["/e"], "Cmd": ["c"]}, RunOptions(entrypoint="", args=["a"]), ["a"]),
        ({"Entrypoint": None, "Cmd": None}, RunOptions(args=["a"]), ["a"]),
    ],
)
def test_command(image: dict[str, Any], options: RunOptions, expected: list[str]) -> None:
    assert spec.command(image, options) == expected


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (RunOptions(), "names no command"),
        (RunOptions(entrypoint=""), "names no command"),
        (RunOptions(args=[""]), "is empty"),
        (RunOptions(args=["a", "b\0"]), "NUL"),
    ],
)
def test_no_command(options: RunOptions, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        spec.command({}, options)


def test_the_process_of_a_plain_image(rootfs: str) -> None:
    process = _build({}, RunOptions(), rootfs)["process"]
    assert process["env"] == [f"PATH={spec.DEFAULT_PATH}", "HOSTNAME=0123456789ab", "HOME=/root"]
    assert process["cwd"] == "/"
    assert process["user"] == {"uid": 0, "gid": 0, "additionalGids": [0]}
    assert process["terminal"] is False
    assert process["noNewPrivileges"] is False
    assert len(process["capabilities"]["bounding"]) == 14
    assert process["capabilities"]["effective"] == process["capabilities"]["bounding"]


def test_the_process_of_an_image_with_everything(rootfs: str) -> None:
    image = {"Env": ["PATH=/x", "HOME=/h", "A=1"], "User": "app", "WorkingDir": "srv/../data"}
    process = _build(image, RunOptions(env=["A=2", "B=3"], tty=True, hostname="box"), rootfs)["process"]
    assert process["env"] == ["HOSTNAME=box", "TERM=xterm", "PATH=/x", "HOME=/h", "A=2", "B=3"]
    assert process["cwd"] == "/data"
    assert process["user"] == {"uid": 1000, "gid": 1000, "additionalGids": [10, 1000]}
    assert process["capabilities"]["effective"] == []
    assert process["terminal"] is True


def test_options_win_over_the_image(rootfs: str) -> None:
    image = {"User": "app", "WorkingDir": "/data"}
    made = _build(image, RunOptions(user="root:10", cwd="/tmp/", readonly=True, no_new_privileges=True), rootfs)
    assert made["process"]["user"] == {"uid": 0, "gid": 10, "additionalGids": [10]}
    assert made["process"]["cwd"] == "/tmp"
    assert made["process"]["noNewPrivileges"] is True
    assert made["root"] == {"path": "rootfs", "readonly": True}


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (RunOptions(cwd="tmp"), "'tmp' must be an absolute path"),
        (RunOptions(hostname="a_b"), "'a_b' is not a host name"),
        (RunOptions(hostname="a" * 65), "is not a host name"),
        (RunOptions(user="web"), "no user web"),
        (RunOptions(memory=0), "0 bytes cannot be set"),
        (RunOptions(cpus=0.001), "0.001 CPUs cannot be had"),
        (RunOptions(tmpfs=["tmp"]), "Cannot mount tmpfs at 'tmp'"),
        (RunOptions(mounts=[("/a", "b", True)]), "Cannot mount /a at 'b'"),
        (RunOptions(mounts=[("/a", "/b", True), ("/c", "//b/", True)]), "Two mounts were asked for at /b"),
        (RunOptions(tmpfs=["/b"], mounts=[("/a", "/b", True)]), "Two mounts were asked for at /b"),
        (RunOptions(mounts=[("/a", "/x/..", True)]), "cannot be at /"),
        (RunOptions(cap_add=["FLY"]), "no capability 'FLY'"),
        (RunOptions(env=["=1"]), "not an environment variable"),
    ],
)
def test_options_that_cannot_be_met(rootfs: str, options: RunOptions, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        _build({}, options, rootfs)


def test_limits() -> None:
    found = spec.resources(RunOptions(memory=64 << 20, cpus=1.5, pids_limit=100))
    assert found["memory"] == {"limit": 64 << 20, "swap": 64 << 20}
    assert found["cpu"] == {"quota": 150_000, "period": 100_000}
    assert found["pids"] == {"limit": 100}
    assert set(spec.resources(RunOptions(pids_limit=-1))) == {"devices"}
    assert found["devices"][0] == {"allow": False, "access": "rwm"}


def test_namespaces_leave_the_network_to_the_vm() -> None:
    linux = _build({}, RunOptions())["linux"]
    assert {entry["type"] for entry in linux["namespaces"]} == {"pid", "ipc", "uts", "mount", "cgroup"}
    assert "/proc/kcore" in linux["maskedPaths"]
    assert "/proc/sys" in linux["readonlyPaths"]


def test_seccomp_can_be_left_out() -> None:
    assert "seccomp" in _build({}, RunOptions())["linux"]
    assert "seccomp" not in _build({}, RunOptions(seccomp=False))["linux"]


def test_mounts_are_in_an_order_in_which_none_hides_another() -> None:
    options = RunOptions(mounts=[("/h/b", "/data/x/y", False), ("/h/a", "/data", True)], tmpfs=["/data/x"])
    places = [mount["destination"] for mount in spec.mounts(options)]
    assert places[:2] == ["/proc", "/dev"]
    assert places[-3:] == ["/data", "/data/x", "/data/x/y"]


def test_a_mount_of_the_users_replaces_a_default_one() -> None:
    found = [
        mount for mount in spec.mounts(RunOptions(tmpfs=["/dev/shm:size=1m"])) if mount["destination"] == "/dev/shm"
    ]
    assert found == [
        {
            "destination": "/dev/shm",
            "type": "tmpfs",
            "source": "tmpfs",
            "options": ["nosuid", "noexec", "nodev", "size=1m"],
        }
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/t", ["nosuid", "noexec", "nodev"]),
        ("/t:exec,size=2m", ["nosuid", "nodev", "exec", "size=2m"]),
        ("/t:noexec,ro", ["nosuid", "noexec", "nodev", "ro"]),
    ],
)
def test_tmpfs_options(text: str, expected: list[str]) -> None:
    assert spec.mounts(RunOptions(tmpfs=[text]))[-1]["options"] == expected


def test_bind_mounts() -> None:
    mount = spec.mounts(RunOptions(mounts=[("/h", "/c/", True)]))[-1]
    assert mount == {"destination": "/c", "type": "bind", "source": "/h", "options": ["rbind", "rprivate", "rro"]}


@pytest.mark.parametrize(
    ("add", "drop", "present", "absent"),
    [
        (["SYS_ADMIN"], [], {"CAP_SYS_ADMIN", "CAP_KILL"}, set()),
        (["cap_net_admin"], ["kill"], {"CAP_NET_ADMIN"}, {"CAP_KILL"}),
        (["ALL"], ["SYS_BOOT"], {"CAP_SYS_ADMIN"}, {"CAP_SYS_BOOT"}),
        (["KILL"], ["ALL"], {"CAP_KILL"}, {"CAP_CHOWN"}),
        ([], ["ALL"], set(), set(capabilities.ALL)),
    ],
)
def test_capabilities(add: list[str], drop: list[str], present: set[str], absent: set[str]) -> None:
    found = set(capabilities.wanted(add, drop))
    assert present <= found
    assert not absent & found


def test_a_further_process_is_like_the_first(rootfs: str) -> None:
    base = _build({"WorkingDir": "/w", "Env": ["A=1"]}, RunOptions(), rootfs)["process"]
    made = spec.exec_process(base, ["ls"], env=["B=2"])
    assert made["args"] == ["ls"]
    assert made["cwd"] == "/w"
    assert made["env"] == [*base["env"], "B=2"]
    assert made["capabilities"] == base["capabilities"]
    assert base["args"] == ["sh"]


def test_a_further_process_of_another_user(rootfs: str) -> None:
    base = _build({}, RunOptions(), rootfs)["process"]
    made = spec.exec_process(base, ["ls"], user="app", cwd="/tmp", terminal=True, rootfs=rootfs)
    assert made["user"]["uid"] == 1000
    assert "HOME=/home/app" in made["env"]
    assert "HOME=/root" not in made["env"]
    assert made["env"][0] == "TERM=xterm"
    assert made["capabilities"]["effective"] == []
    assert made["capabilities"]["bounding"] == base["capabilities"]["bounding"]
    with pytest.raises(ConfigError, match="no user app"):
        spec.exec_process(base, ["ls"], user="app")


def test_a_privileged_further_process(rootfs: str) -> None:
    base = _build({}, RunOptions(), rootfs)["process"]
    made = spec.exec_process(base, ["ls"], privileged=True)
    assert made["capabilities"]["effective"] == list(capabilities.ALL)
