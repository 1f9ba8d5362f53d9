"""``hako-runtime`` beside runc itself: the same words give the same exit code, output and message.

What runc 1.1 says of a container that exists is compared where there are virtual machines, not here.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

from conftest import CLONE, Roots
from hako.runtime.verbs import VERBS

if TYPE_CHECKING:
    from hako.ociimage.index import Image

RUNC = shutil.which("runc") or ""
pytestmark = [pytest.mark.e2e, pytest.mark.skipif(not RUNC, reason="there is no runc to compare with")]

#: runc's flags whose values hako refuses to take.
REFUSED = {"--l3-cache-schema", "--mem-bw-schema"}


class Answer(NamedTuple):
    """What a command line gave."""

    status: int
    out: str
    err: str

    @property
    def first_line(self) -> str:
        """The first line of the output: whether it is a help, and for which reason."""
        return self.out.partition("\n")[0]

    @property
    def message(self) -> str:
        """What was reported, less the time; each runtime's own name is one."""
        text = self.err.partition(" level=")[2].replace("hako-runtime", "runc").replace(RUNC, "runc")
        return text.replace("\\n", "").strip()  # runc ends some of its messages with a new line


@pytest.fixture(scope="module")
def runtime(roots: Roots) -> str:
    """The command ``hako-runtime``, as it is installed."""
    command = os.path.join(roots.base, "bin", "hako-runtime")
    os.makedirs(os.path.dirname(command), exist_ok=True)
    python = os.path.realpath(sys.executable)
    launcher = os.path.join(CLONE, "scripts", "launcher.py")
    directories = [os.path.join(CLONE, "src"), sysconfig.get_path("purelib")]
    subprocess.run([python, launcher, command, python, "hako.runtime.main:command", *directories], check=True)
    return command


def run(command: str, words: Sequence[str], cwd: Path) -> Answer:
    """Run ``command`` with a root of its own in ``cwd``; it finds no terminal."""
    words = ["--root", str(cwd / "root"), *words]
    done = subprocess.run(
        [command, *words], cwd=cwd, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False
    )
    return Answer(done.returncode, done.stdout, done.stderr)


#: The whole of what is printed is compared, if it is no help.
SAME = [
    ["bogus"],
    ["help", "bogus"],
    ["--", "bogus"],
    ["--bogus"],
    ["--debug=x", "state", "one"],
    ["---x"],
    ["--log-format", "xml", "state", "one"],
    ["--log-format"],
    ["state"],
    ["state", "one"],
    ["state", "one", "two"],
    ["state", "--bogus", "one"],
    ["state", "one", "--bogus"],
    ["state", "--", "one"],
    ["state", "--", "-h"],
    ["state", "-=x"],
    ["state", "--help=false", "one"],
    ["--systemd-cgroup", "--rootless", "false", "--criu=/x", "state", "one"],
    ["start"],
    ["start", "one"],
    ["create"],
    ["create", "--bundle"],
    ["create", "--preserve-fds", "abc", "one"],
    ["create", "--preserve-fds=08", "one"],
    ["run"],
    ["run", "-d=perhaps", "one"],
    ["delete"],
    ["delete", "one"],
    ["delete", "--force", "one"],
    ["delete", "one", "--force"],
    ["delete", "--force=x", "one"],
    ["delete", "--force", "true", "one"],
    ["kill"],
    ["kill", "one"],
    ["kill", "--all", "one", "9"],
    ["kill", "one", "-9"],
    ["kill", "one", "9", "two"],
    ["list"],
    ["list", "--format", "json"],
    ["list", "-f", "xml"],
    ["list", "-f="],
    ["list", "-q=1"],
    ["list", "-qf", "json"],
    ["list", "one"],
    ["list", "-f", "json", "--format", "json"],
    ["list", "--format", "xml", "--format", "json"],
    ["ps"],
    ["ps", "one", "-ef"],
    ["pause"],
    ["pause", "one"],
    ["resume", "one"],
    ["events", "one"],
    ["events", "--interval", "5", "one"],
    ["events", "--interval=1h2m3.5s", "one"],
    ["events", "--stats"],
    ["update"],
    ["update", "one"],
    ["update", "one", "--memory", "5m"],
    ["update", "--pids-limit=9999999999999999999", "one"],
    ["update", "--blkio-weight=1_0", "one"],
    ["update", "--blkio-weight=", "one"],
    ["spec", "one"],
    ["features", "one"],
    ["features", "-x"],
    ["exec"],
    ["exec", "-eA=1", "one", "ls"],
    ["exec", "--env", "one"],
]


@pytest.mark.parametrize("words", SAME, ids=" ".join)
def test_the_same_words_give_the_same_answer(words: list[str], runtime: str, tmp_path: Path) -> None:
    expected, found = run(RUNC, words, tmp_path), run(runtime, words, tmp_path)
    assert found.status == expected.status, found
    assert found.first_line == expected.first_line
    assert found.message == expected.message


@pytest.mark.parametrize("words", [[], ["-h"], ["help"], ["h"], ["--help", "bogus"], ["state", "-h"], ["help", "run"]])
def test_help_is_asked_for_in_the_same_ways(words: list[str], runtime: str, tmp_path: Path) -> None:
    expected, found = run(RUNC, words, tmp_path), run(runtime, words, tmp_path)
    assert (found.status, found.first_line, found.err) == (expected.status, "NAME:", expected.err)
    named = [answer.out.splitlines()[1].partition(" - ")[0].replace("hako-", "") for answer in (expected, found)]
    assert named[1].replace("runtime", "runc") == named[0]


def test_errors_of_exec_have_a_code_of_their_own(runtime: str, tmp_path: Path) -> None:
    words = ["exec", "one", "ls", "-h"]
    expected, found = run(RUNC, words, tmp_path), run(runtime, words, tmp_path)
    assert found.status == expected.status == 255
    assert found.message == expected.message.replace("exec failed: ", "")


@pytest.mark.parametrize("format", ["text", "json"])
def test_the_log_is_runcs(format: str, runtime: str, tmp_path: Path) -> None:
    written = {}
    for command in (RUNC, runtime):
        log = tmp_path / os.path.basename(command)
        answer = run(command, ["--log", str(log), "--log-format", format, "state", "one"], tmp_path)
        assert (answer.status, answer.out, answer.err) == (1, "", "container does not exist\n")
        written[command] = log.read_text()
        assert os.stat(log).st_mode & 0o777 == 0o644
    if format == "json":
        expected, found = (json.loads(text) | {"time": ""} for text in written.values())
        assert found == expected
    else:
        expected, found = (text.partition(" level=")[2] for text in written.values())
        assert found == expected


def test_every_flag_of_runc_is_known(tmp_path: Path) -> None:
    """Those in its help, with their short names, and whether they take a value."""
    missing = []
    for verb in set(VERBS) - {"completion", "checkpoint", "restore"}:
        known = {flag.name: flag for flag in VERBS[verb].flags}
        for line in run(RUNC, [verb, "--help"], tmp_path).out.partition("OPTIONS:")[2].splitlines():
            if not line.startswith("   --"):
                continue
            names = [part.split() for part in line.partition("   --")[2].partition("  ")[0].split(", -")]
            flag = known.get(names[0][0])
            short = names[1][0] if len(names) > 1 else ""
            if flag is None or flag.short != short or (flag.kind == "bool") is (len(names[0]) > 1):
                missing.append(f"{verb}: {line}")
            elif flag.refused:
                assert f"--{flag.name}" in REFUSED
    assert not missing, "\n".join(missing)


def test_every_verb_of_runc_is_known(tmp_path: Path) -> None:
    listed = run(RUNC, ["--help"], tmp_path).out.partition("COMMANDS:")[2].partition("GLOBAL OPTIONS:")[0]
    verbs = {line.split()[0].rstrip(",") for line in listed.splitlines() if line.strip()}
    assert verbs - {"help"} <= set(VERBS)


def shape(value: object, like: object) -> object:
    """The types of what is in ``value``, as far as ``like`` has the same."""
    if isinstance(value, dict) and isinstance(like, dict):
        return {key: shape(value.get(key), one) for key, one in like.items()}
    return type(value).__name__


def test_features_are_of_runcs_types(runtime: str, tmp_path: Path) -> None:
    expected, found = (json.loads(run(command, ["features"], tmp_path).out) for command in (RUNC, runtime))
    del expected["annotations"]  # each runtime's own
    assert shape(found, expected) == shape(expected, expected)
    assert found["hooks"] == expected["hooks"]
    assert found["linux"]["capabilities"] == expected["linux"]["capabilities"]


@pytest.mark.parametrize("rootless", [False, True])
def test_runc_runs_the_config_of_hako(rootless: bool, runtime: str, tmp_path: Path, busybox_image: Image) -> None:
    assert run(runtime, ["spec", *(["--rootless"] if rootless else [])], tmp_path).status == 0
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["process"]["terminal"] is True
    config["process"] |= {"terminal": False, "args": ["sh", "-c", "hostname; id -u; ulimit -n"]}
    config["root"]["path"] = busybox_image.rootfs
    (tmp_path / "config.json").write_text(json.dumps(config))
    answer = run(RUNC, ["run", f"hako-test-{os.getpid()}"], tmp_path)
    assert (answer.status, answer.out.split()) == (0, ["hako", "0", "1024"]), answer.err


def test_specs_are_alike(runtime: str, tmp_path: Path) -> None:
    """The same keys with the same values, but for the name of the host and the version."""
    found = {}
    for command in (RUNC, runtime):
        bundle = tmp_path / os.path.basename(command)
        bundle.mkdir()
        assert run(command, ["spec", "--bundle", str(bundle)], tmp_path) == Answer(0, "", "")
        config = json.loads((bundle / "config.json").read_text())
        for paths in ("maskedPaths", "readonlyPaths"):
            config["linux"][paths].sort()
        found[command] = config | {"hostname": "", "ociVersion": ""}
    assert found[runtime] == found[RUNC]
