"""The verbs that need no virtual machine: spec, features, list and ps of what has stopped, completion."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from hako.oci import check
from hako.runtime import completion, containers, features, ps, spec
from hako.runtime.containers import Container
from hako.runtime.main import main
from hako.runtime.verbs import VERBS

Captured = pytest.CaptureFixture[str]


def add(root: Path, name: str, **changes: Any) -> None:
    """A container of ``root`` whose sandbox is gone."""
    containers.claim(str(root), name)
    Container(
        root=str(root), id=name, bundle=f"/bundles/{name}", rootfs=f"/bundles/{name}/rootfs", sandbox="0" * 16,
        guest_id=name, created_ns=1_769_860_800_000_000_005, owner="root", oci_version="1.1.0", annotations={},
        hooks={}, pid=4_000_000,
    ).change(**changes).save()  # fmt: skip


@pytest.mark.parametrize("rootless", [False, True])
def test_the_config_is_valid_and_written_once(rootless: bool, tmp_path: Path, capsys: Captured) -> None:
    words = ["spec", "--bundle", str(tmp_path), *(["--rootless"] if rootless else [])]
    assert main(words) == 0
    text = (tmp_path / "config.json").read_text()
    found = check.check(json.loads(text))
    assert found["process"]["args"] == ["sh"]
    assert found["process"]["rlimits"] == [{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024}]
    assert ({"type": "user"} in found["linux"]["namespaces"]) is rootless
    assert main(words) == 1
    assert f"File {tmp_path}/config.json exists. Remove it first." in capsys.readouterr().err
    assert (tmp_path / "config.json").read_text() == text


def test_a_bundle_that_cannot_be_written(tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    assert main(["spec", "-b", str(tmp_path / "none")]) == 1
    assert "config.json: No such file or directory." in capsys.readouterr().err
    monkeypatch.chdir(tmp_path)
    assert main(["spec"]) == 0
    assert (tmp_path / "config.json").exists()


def test_nothing_is_given_that_runc_would_not_know() -> None:
    """A config.json without hako: no annotation of its own, no field newer than the version it names."""
    found = spec.config()
    assert set(found) == {"ociVersion", "process", "root", "hostname", "mounts", "linux"}
    assert found["ociVersion"] == "1.0.2"


def test_features_have_the_shape_that_oci_gives_them(capsys: Captured) -> None:
    assert main(["features"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["ociVersionMin"], found["ociVersionMax"]) == ("1.0.0", "1.2.0")
    assert len(found["hooks"]) == 6
    assert {"bind", "ro", "rro", "rprivate", "tmpcopyup"} <= set(found["mountOptions"])
    assert found["mountOptions"] == sorted(set(found["mountOptions"]))
    linux = found["linux"]
    assert {"pid", "network", "user", "cgroup"} <= set(linux["namespaces"])
    assert "CAP_SYS_ADMIN" in linux["capabilities"]
    assert linux["cgroup"]["v2"] is True
    assert linux["seccomp"]["enabled"] is True
    assert set(linux["seccomp"]["supportedFlags"]) <= set(linux["seccomp"]["knownFlags"])
    assert all(isinstance(value, str) for value in found["annotations"].values())
    assert "checkpoint" not in json.dumps(found).lower().replace("cap_checkpoint_restore", "")


def test_the_architectures_are_those_of_libseccomp() -> None:
    library = ctypes.CDLL("libseccomp.so.2")
    library.seccomp_arch_resolve_name.restype = ctypes.c_uint32
    for name in features.features()["linux"]["seccomp"]["archs"]:
        assert library.seccomp_arch_resolve_name(name.removeprefix("SCMP_ARCH_").lower().encode()), name


def test_an_empty_root_has_a_header_and_null(tmp_path: Path, capsys: Captured) -> None:
    root = str(tmp_path / "none")
    assert main(["--root", root, "list"]) == 0
    assert capsys.readouterr().out == "ID          PID         STATUS      BUNDLE      CREATED     OWNER\n"
    assert main(["--root", root, "list", "--format", "json"]) == 0
    assert capsys.readouterr().out == "null\n"
    assert main(["--root", root, "list", "-q"]) == 0
    assert capsys.readouterr().out == ""
    assert not os.path.exists(root)


def test_list(tmp_path: Path, capsys: Captured) -> None:
    add(tmp_path, "two", annotations={"a": "b"})
    add(tmp_path, "one")
    assert main(["--root", str(tmp_path), "list"]) == 0
    header, one, two = capsys.readouterr().out.splitlines()
    assert header.split() == ["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"]
    assert one.split() == ["one", "0", "stopped", "/bundles/one", "2026-01-31T12:00:00.000000005Z", "root"]
    assert two.startswith("two         0           stopped     /bundles/two   2026")
    assert main(["--root", str(tmp_path), "list", "-f=json"]) == 0
    first, second = json.loads(capsys.readouterr().out)
    assert first == {
        "ociVersion": "1.1.0", "id": "one", "pid": 0, "status": "stopped", "bundle": "/bundles/one",
        "rootfs": "/bundles/one/rootfs", "created": "2026-01-31T12:00:00.000000005Z", "owner": "root",
    }  # fmt: skip
    assert second["annotations"] == {"a": "b"}
    assert main(["--root", str(tmp_path), "list", "-q"]) == 0
    assert capsys.readouterr().out == "one\ntwo\n"


@pytest.mark.parametrize("words", [["list", "-f", "xml"], ["list", "--format="], ["ps", "--format", "xml", "one"]])
def test_unknown_formats(words: list[str], tmp_path: Path, capsys: Captured) -> None:
    add(tmp_path, "one")
    assert main(["--root", str(tmp_path), *words]) == 1
    assert "invalid format option" in capsys.readouterr().err


def test_ps_of_a_container_that_has_stopped(tmp_path: Path, capsys: Captured) -> None:
    add(tmp_path, "one")
    assert main(["--root", str(tmp_path), "ps", "one"]) == 0
    assert capsys.readouterr().out.split() == ["UID", "PID", "PPID", "C", "STIME", "TTY", "TIME", "CMD"]
    assert main(["--root", str(tmp_path), "ps", "-f", "json", "one"]) == 0
    assert capsys.readouterr().out == "null\n"
    assert main(["--root", str(tmp_path), "ps", "one", "-ef"]) == 0
    capsys.readouterr()
    assert main(["--root", str(tmp_path), "ps", "one", "-o", "pid"]) == 1
    assert "cannot honour the option -o of ps" in capsys.readouterr().err


def test_processes_are_numbered_as_their_container_sees_them() -> None:
    def process(pid: int, inside: int, parent: int, uid: int, ticks: int, command: str) -> dict[str, Any]:
        entry = {"pid": pid, "container_pid": inside, "ppid": parent, "uid": uid, "state": "S", "ticks": ticks}
        return {**entry, "rss": 4096, "command": command}

    shown = ps.table([process(301, 1, 12, 0, 366_100, "/bin/sh -c x"), process(340, 7, 301, 1000, 5, "a\n\x1b[2Jb  c")])
    assert [line.split(None, 7) for line in shown.splitlines()[1:]] == [
        ["0", "1", "0", "-", "-", "?", "01:01:01", "/bin/sh -c x"],
        ["1000", "7", "1", "-", "-", "?", "00:00:00", "a??[2Jb  c"],
    ]


def complete(*words: str, stub: str = "") -> list[str]:
    """What bash offers for the last of ``words``, when ``hako-runtime list`` prints ``stub``."""
    line = " ".join(f"'{word}'" for word in ("hako-runtime", *words))
    program = (
        f"{completion.script()}\nhako-runtime() {{ echo \"$*\" >&2; printf '{stub}'; }}\n"
        f"COMP_WORDS=({line}); COMP_CWORD={len(words)}; _hako_runtime; printf '%s\\n' \"${{COMPREPLY[@]}}\""
    )
    done = subprocess.run(["bash", "-c", program], capture_output=True, text=True, timeout=60, check=True, cwd="/")
    return done.stdout.split()


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["st"], ["start", "state"]),
        (["--log-format", ""], ["text", "json"]),
        (["--log", "/x", "--debug", "del"], ["delete"]),
        (["delete", "--f"], ["--force"]),
        (["delete", "o"], ["one"]),
        (["--root", "/r", "kill", "t"], ["two"]),
        (["list", "--format", ""], ["table", "json"]),
        (["ps", "-f", "j"], ["json"]),
        (["completion", ""], ["bash"]),
        (["help", "upd"], ["update"]),
        (["--sys"], ["--systemd-cgroup"]),
        (["spec", "--bundle", "et"], ["etc"]),
        (["checkp"], []),
    ],
)
def test_completion(words: list[str], offered: list[str]) -> None:
    assert complete(*words, stub="one\\ntwo\\n") == offered


def test_completion_knows_every_verb_and_asks_the_right_root(capsys: Captured) -> None:
    assert set(complete("")) >= {name for name, verb in VERBS.items() if not verb.refused} | {"help", "--root"}
    # The stub prints what it was asked for instead of containers.
    program = completion.script() + 'hako-runtime() { printf "%s\\n" "$@"; }\n'
    program += 'COMP_WORDS=(hako-runtime --root /r state ""); COMP_CWORD=4; _hako_runtime; echo "${COMPREPLY[*]}"'
    done = subprocess.run(["bash", "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == ["--root", "/r", "list", "--quiet"]
    assert main(["completion", "bash"]) == 0
    assert capsys.readouterr().out == completion.script()
    assert main(["completion", "tcsh"]) == 1
    assert "it has one for bash" in capsys.readouterr().err
