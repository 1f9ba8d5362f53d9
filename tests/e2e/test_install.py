"""Installing hako somewhere else than where people have it, using it from there, and removing it again."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
from pathlib import Path

import pytest

from hako.sandbox import zygotes
from hako.template import keeper, memory
from hako.template.keeper import Held
from hako.version import __version__
from support import leaks, source

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


class Installation:
    """An installation of a copy of this clone with everything in a directory of the test."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.user = f"hako-t{os.getpid()}"
        self.clone = base / "clone"
        self.home = base / "prefix" / "lib" / "hako"
        self.command = base / "prefix" / "bin" / "hako"
        self.environment = {
            **os.environ,
            "PREFIX": str(base / "prefix"),
            "HAKO_STATE_ROOT": str(base / "run"),
            "HAKO_DATA_ROOT": str(base / "data"),
            "HAKO_CONFIG": str(base / "etc" / "config.toml"),
            "HAKO_VM_USER": self.user,
        }
        for name in ("src", "scripts", "pyproject.toml", "README.md", "LICENSE"):
            path = os.path.join(source.CLONE, name)
            if os.path.isdir(path):
                shutil.copytree(path, self.clone / name, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(path, self.clone / name)

    def script(self, name: str, *, status: int = 0) -> str:
        """Run one of the scripts to its expected end and return what it said."""
        done = subprocess.run(
            ["bash", str(self.clone / "scripts" / name)],
            env=self.environment, capture_output=True, text=True, timeout=250, check=False,
        )  # fmt: skip
        assert done.returncode == status, done.stdout + done.stderr
        return done.stdout + done.stderr

    def environments(self) -> list[str]:
        """The installed versions."""
        return sorted(path.name for path in self.home.glob("env-*"))

    def user_exists(self) -> bool:
        """Whether the system user for QEMU is there."""
        return any(entry.pw_name == self.user for entry in pwd.getpwall())


def test_install_again_upgrade_and_remove(tmp_path: Path) -> None:
    made = Installation(tmp_path)
    try:
        _life_of(made)
    finally:
        if made.user_exists():
            subprocess.run(["userdel", made.user], check=True)


def _life_of(made: Installation) -> None:
    assert "Installing hako into" in made.script("install.sh")
    assert made.user_exists()
    first = made.environments()
    assert len(first) == 1

    # The installed copy needs nothing of the clone and nothing of the user's environment.
    moved = made.clone.rename(made.base / "moved")
    done = subprocess.run([made.command, "version"], env={"HOME": "/x"}, capture_output=True, text=True, check=True)
    assert __version__ in done.stdout
    moved.rename(made.clone)

    # Nothing that would slow the start down, and bytecode for all of it.
    site = next(made.home.glob("env-*/lib/python3.*/site-packages"))
    names = {path.name for path in site.iterdir()}
    assert not [name for name in names if name.endswith(".pth") or name.startswith(("pip", "setuptools"))]
    assert list(site.glob("hako/__pycache__/version.*.pyc"))

    # Again: nothing to do. After a change: a new version takes the place of the old one.
    assert made.script("install.sh") == ""
    assert made.environments() == first
    with (made.clone / "src" / "hako" / "version.py").open("a") as file:
        file.write("# changed\n")
    # ... but the old one stays as long as a sandbox may be running from it.
    (made.base / "run" / "sandboxes" / "web").mkdir(parents=True)
    made.script("install.sh")
    assert len(made.environments()) == 2
    shutil.rmtree(made.base / "run" / "sandboxes")
    made.script("install.sh")
    assert len(made.environments()) == 1
    assert made.environments() != first

    _removal_of(made)


def _keep_what_stays(made: Installation) -> None:
    """Have a template in memory, and a zygote, as after any container of containerd's."""
    held = Held(memory.new(f"hako-template-{'0' * 32}", 4096), memory.new("hako-state", 1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HAKO_STATE_ROOT", str(made.base / "run"))
        keeper.start("0" * 32, held, 600)
        assert keeper.pid_of("0" * 32)
        zygotes.start("shim", "from hako.shim.zygote import main; main()", 600)
        assert os.listdir(zygotes.directory())
    held.close()


def _removal_of(made: Installation) -> None:
    _keep_what_stays(made)
    outside = made.base / "outside"
    outside.mkdir()
    (outside / "precious").touch()
    mounted = made.base / "data" / "images" / "mounted"
    mounted.mkdir(parents=True)
    subprocess.run(["mount", "--bind", outside, mounted], check=True)
    (made.base / "etc" / "config.d").mkdir(parents=True)

    # A process of hako that cannot be ended by hako's own command stops the removal before anything is lost.
    argv = ["sh", "-c", "echo; read -r line", "sh", f"{made.base}/run/x"]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        said = made.script("uninstall.sh", status=1)
        assert f"Processes of hako are still running: {process.pid}. End them and try again." in said
        assert made.command.exists()

    assert made.script("uninstall.sh").endswith("hako is removed.\n")
    assert (outside / "precious").exists()
    assert not leaks.mounts(str(made.base))
    assert leaks.processes(str(made.base), keepers=True) == {}
    assert not made.user_exists()
    left = {str(path.relative_to(made.base)) for path in made.base.rglob("*") if not path.is_relative_to(made.clone)}
    assert left == {"clone", "outside", "outside/precious", "prefix", "prefix/bin", "prefix/lib"} - {"clone"}
