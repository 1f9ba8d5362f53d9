"""``hako run``: from words to the container that is asked for."""

from __future__ import annotations

from pathlib import Path

import pytest

from hako.cli import run
from hako.cli.main import main
from hako.errors import ConfigError
from hako.sandbox.build import Build
from hako.sandbox.requests import Mount


def asked(*words: str) -> Build:
    """What ``hako run`` with ``words`` builds."""
    return run.to_build(run.parser().parse_args(list(words)))


def test_options_end_at_the_image() -> None:
    found = asked("--rm", "busybox", "ls", "-l", "--rm", "--", "-x")
    assert (found.image, list(found.args)) == ("busybox", ["ls", "-l", "--rm", "--", "-x"])


def test_short_options_can_be_joined() -> None:
    found = run.parser().parse_args(["-itd", "--rm", "busybox"])
    assert (found.interactive, found.tty, found.detach, found.rm, found.command) == (True, True, True, True, [])


def test_options_are_not_abbreviated() -> None:
    with pytest.raises(ConfigError, match="--det"):
        run.parser().parse_args(["--det", "busybox"])


def test_every_option_arrives(tmp_path: Path) -> None:
    found = asked(
        "-t", "-e", "A=1", "-eB=2", "-v", f"{tmp_path}:/data:ro", "-w", "/srv", "-u", "1000:1000", "--hostname", "box",
        "--memory", "64m", "--cpus", "1.5", "--read-only", "--tmpfs", "/tmp:size=1m", "--entrypoint", "", "--pull",
        "never", "--network", "none", "busybox", "true",
    )  # fmt: skip
    assert found == Build(
        image="busybox",
        args=["true"],
        env={"A": "1", "B": "2"},
        cwd="/srv",
        user="1000:1000",
        hostname="box",
        memory="64m",
        cpus=1.5,
        mounts=[Mount(str(tmp_path), "/data", True)],
        tmpfs=["/tmp:size=1m"],
        read_only=True,
        tty=True,
        entrypoint="",
        pull="never",
    )


def test_without_entrypoint_the_images_is_kept() -> None:
    assert asked("busybox").entrypoint is None


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["--memory", "lots", "busybox"], "'lots' is not a size"),
        (["--memory", "1k", "busybox"], "too small"),
        (["--cpus", "0", "busybox"], "is not a number of CPUs"),
        (["--name", "no spaces", "busybox"], "not valid"),
        (["-it", "busybox"], "Standard input is not a terminal"),
        (["--pull", "never", "no-such-image"], "There is no image no-such-image:latest here"),
        (["/no/such/path"], "There is no image at /no/such/path"),
        (["UPPER"], "is not the name of an image"),
        (["-v", "/no/such:/x", "busybox"], "/no/such does not exist"),
        (["--network", "bridge", "-p", "a:b", "busybox"], "The port mapping 'a:b' is not valid"),
        (["--network", "bridge", "--dns", "dns.google", "busybox"], "'dns.google' is not an IP address"),
        (["--network", "bridge", "--dns-search", "a b", "busybox"], "'a b' is not a domain"),
        (["--network", "bridge", "--add-host", "db", "busybox"], "write NAME:ADDRESS"),
        (["--network", "none", "-p", "80", "busybox"], "A published port (80) needs a network, and there is none"),
        (
            ["--network", "none", "--add-host", "db:10.0.0.1", "busybox"],
            "An entry of /etc/hosts (db:10.0.0.1) needs a network",
        ),
    ],
)
def test_what_cannot_be_run_is_said_before_a_vm_is_started(
    words: list[str], wanted: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_vm(*_args: object) -> None:
        raise AssertionError("a VM was started")

    monkeypatch.setattr(run.daemon, "fork", no_vm)
    monkeypatch.setattr("os.isatty", lambda _fd: False)
    assert main(["run", *words]) == 125
    text = capsys.readouterr().err
    assert wanted in text
    assert text.count("\n") == 1


def test_help_tells_about_networks(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--help"]) == 0
    assert "Networks: bridge, the default, is hako's own" in " ".join(capsys.readouterr().out.split())
