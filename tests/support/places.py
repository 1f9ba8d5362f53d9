"""Directories of a test's own, in which there is no template and no sandbox yet."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from conftest import Roots
from hako.template import files
from support import settings


class Place(NamedTuple):
    """Directories in which there is no template yet; guest images and container images are those of the run."""

    base: str
    command: list[str]  #: this clone's ``hako``
    env: dict[str, str]
    hako: Callable[..., subprocess.CompletedProcess[str]]

    @property
    def state(self) -> str:
        return os.path.join(self.base, "run")

    @property
    def templates(self) -> str:
        return os.path.join(self.base, "data", "templates")

    def made(self) -> list[str]:
        return files.names(self.templates)

    def info(self, name: str) -> dict[str, object]:
        """What a running container's VM is."""
        (found,) = json.loads(self.hako("inspect", name).stdout)
        return dict(found["sandbox"]["info"])

    def log(self, name: str) -> str:
        """The log of a running container's sandbox."""
        (found,) = json.loads(self.hako("inspect", name).stdout)
        return Path(self.base, "run", "sandboxes", found["sandbox"]["id"], "sandbox.log").read_text()


def make_place(roots: Roots, hako_cmd: list[str], name: str) -> Place:
    """A place called ``name``. Remove it with leaks.clean()."""
    base = os.path.join(roots.base, name)
    for directory in ("run", "data", "etc", "tmp"):
        os.makedirs(os.path.join(base, directory))
    for shared in ("guest-images", "cache", "images"):
        os.symlink(os.path.join(roots.data, shared), os.path.join(base, "data", shared))
    config = os.path.join(base, "etc", "config.toml")
    Path(config).touch()
    settings.without_network(os.path.dirname(config))
    env = {**os.environ, "HAKO_CONFIG": config}
    env |= {"TMPDIR": os.path.join(base, "tmp")}
    env |= {"HAKO_STATE_ROOT": os.path.join(base, "run"), "HAKO_DATA_ROOT": os.path.join(base, "data")}

    def hako(*args: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [*hako_cmd, *args], env=env, capture_output=True, text=True, timeout=200, check=False,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
        assert done.returncode == 0 or not check, done.stdout + done.stderr
        return done

    return Place(base, hako_cmd, env, hako)
