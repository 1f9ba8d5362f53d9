"""``hako template`` and ``hako update``, through the real command."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator

import pytest

from conftest import Roots, RunHako

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.usefixtures("guest_image", "busybox_image")]


@pytest.fixture
def key(run_hako: RunHako) -> str:
    """The template of the default configuration, made if there is none."""
    return run_hako("template", "build").stdout.strip()


def test_a_template_is_built_listed_inspected_and_verified(run_hako: RunHako, key: str) -> None:
    assert run_hako("template", "build").stdout.strip() == key
    assert key in run_hako("template", "list", "-q").stdout.split()
    (row,) = [line for line in run_hako("template", "list").stdout.splitlines() if line.startswith(key[:12])]
    assert "virtiofs" in row
    about = json.loads(run_hako("template", "inspect", key[:8]).stdout)
    assert about["key"] == key
    assert about["memory"]["used"] <= 60 << 20 < about["memory"]["size"]
    assert about["identity"]["argv"][0].endswith("qemu-system-x86_64")
    assert run_hako("template", "verify", key).stdout.strip() == key


def test_containers_say_which_template_they_are_cloned_from(run_hako: RunHako, key: str) -> None:
    for annotation, expected in (("true", key), ("false", "")):
        argv = (
            "run",
            "-d",
            "--name",
            "from",
            "--annotation",
            f"dev.hako.template={annotation}",
            "busybox",
            "sleep",
            "60",
        )
        run_hako(*argv)
        try:
            about = json.loads(run_hako("inspect", "from").stdout)
            assert f'"template": "{expected}"' in json.dumps(about)
        finally:
            run_hako("rm", "-f", "from")


@pytest.mark.parametrize("file", ["memory", "state", "manifest.json"])
def test_a_damaged_template_is_told_and_can_be_removed(run_hako: RunHako, key: str, roots: Roots, file: str) -> None:
    path = os.path.join(roots.data, "templates", key, file)
    with open(path, "r+b") as opened:
        opened.truncate(os.path.getsize(path) // 2)
    done = run_hako("template", "verify", key, check=False)
    assert done.returncode != 0
    assert done.stderr.startswith("hako: The template")
    assert len(done.stderr.splitlines()) == 1
    assert key[:12] in run_hako("template", "list").stdout
    assert run_hako("template", "remove", key).stdout.strip() == key
    assert key not in run_hako("template", "list", "-q").stdout


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ((), "Template needs a verb: build, list, inspect, verify or remove"),
        (("remove",), "Name the templates to remove, or --all"),
        (("inspect", "nonsense"), "Template 'nonsense' does not exist; see hako template list."),
        (("verify", "../x"), "Template '../x' does not exist"),
        (("freeze",), "invalid choice: 'freeze'"),
    ],
)
def test_bad_input_is_one_sentence(run_hako: RunHako, args: tuple[str, ...], words: str) -> None:
    done = run_hako("template", *args, check=False)
    assert done.returncode == 125
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.fixture
def box(run_hako: RunHako) -> Iterator[str]:
    """A running container."""
    run_hako("run", "-d", "--name", "grows", "busybox", "sleep", "600")
    yield "grows"
    run_hako("rm", "-f", "grows", check=False)


def test_update_changes_the_limits_and_the_vm(run_hako: RunHako, box: str) -> None:
    run_hako("update", "--memory", "1g", "--cpus", "2", "--pids-limit", "77", box)
    seen = "cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/cpu.max /sys/fs/cgroup/pids.max; nproc; free -m | grep Mem"
    lines = run_hako("exec", box, "sh", "-c", seen).stdout.splitlines()
    assert lines[:4] == [str(1 << 30), "200000 100000", "77", "2"]
    assert int(lines[4].split()[1]) > 1024


def test_more_memory_than_the_host_has_is_refused_in_one_sentence(run_hako: RunHako) -> None:
    done = run_hako("run", "--rm", "--memory", "100t", "busybox", "true", check=False)
    assert done.returncode == 125
    assert "A VM on this host cannot have 104857728 MiB of memory" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("grows",), "No limit to update was given"),
        (("--memory", "much", "grows"), "memory 'much' is not a size"),
        (("--cpus", "0", "grows"), "--cpus '0' is not a number of CPUs"),
        (("--memory", "100t", "grows"), "cannot have 104857728 MiB of memory"),
        (("--memory", "64m", "nobody"), "nobody"),
    ],
)
def test_update_refuses_bad_input_in_one_sentence(
    run_hako: RunHako, box: str, args: tuple[str, ...], words: str
) -> None:
    assert box == "grows"
    done = run_hako("update", *args, check=False)
    assert done.returncode != 0
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == 1
