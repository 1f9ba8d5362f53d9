"""Which of hako's modules go into the guest, and which of Python's they need."""

from __future__ import annotations

import os
import pathlib

import pytest

from hako.errors import ImageError
from hako.guestimage import agentcode
from hako.guestimage.agentcode import collect, imported_names


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("", []),
        ("import os, sys as s\nimport a.b", ["a.b", "os", "sys"]),
        ("from os import path", ["os?path"]),
        (
            "def f():\n    try:\n        import json\n    except ImportError:\n        from x import y as z",
            ["json", "x?y"],
        ),
        ("TYPE_CHECKING = False\nif TYPE_CHECKING:\n    import typing\nelse:\n    import os", ["os"]),
        ("import t\nif t.TYPE_CHECKING:\n    import typing", ["t"]),
        ("if DEBUG:\n    import os", ["os"]),
    ],
)
def test_imported_names(text: str, names: list[str]) -> None:
    assert sorted(imported_names(text, "x.py")) == names


@pytest.mark.parametrize("text", ["def", "from . import x", "import \0"])
def test_sources_that_are_refused(text: str) -> None:
    with pytest.raises(ImageError, match=r"^x\.py "):
        list(imported_names(text, "x.py"))


AGENT = {
    "__init__.py": "TYPE_CHECKING = False\nif TYPE_CHECKING:\n    from hako.errors import HakoError\n",
    "version.py": "",
    "errors.py": "",
    "agent/__init__.py": "",
    "agent/main.py": "import os\nfrom hako.agent import loop\nfrom hako.wire.frames import Frame\n",
    "agent/loop.py": "import select\n",
    "agent/deep/__init__.py": "",
    "agent/deep/helper.py": "import fcntl\n",
    "wire/__init__.py": "",
    "wire/frames.py": "from collections import abc\nfrom hako import linux\n",
    "wire/host_only.py": "import asyncio\n",
    "linux/__init__.py": "",
}


def write(path: pathlib.Path, files: dict[str, str]) -> str:
    for name, text in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text(text)
    return str(path)


def test_collect(tmp_path: pathlib.Path) -> None:
    found = collect(write(tmp_path, AGENT))
    assert {name.removeprefix("hako.") for name in found.modules} == {
        *("hako", "version", "linux", "wire", "wire.frames"),
        *("agent", "agent.main", "agent.loop", "agent.deep", "agent.deep.helper"),
    }
    assert found.modules["hako.agent.deep"] == str(tmp_path / "agent/deep/__init__.py")
    assert found.imports == ("collections?abc", "fcntl", "os", "select")


def test_the_digest_stands_for_names_and_sources(tmp_path: pathlib.Path) -> None:
    digests = {collect(write(tmp_path, AGENT)).sha256}
    assert collect(str(tmp_path)).sha256 in digests
    (tmp_path / "wire/host_only.py").write_text("# not in the guest\n")
    assert collect(str(tmp_path)).sha256 in digests
    (tmp_path / "agent/loop.py").write_text("import select  # changed\n")
    digests.add(collect(str(tmp_path)).sha256)
    (tmp_path / "agent/new.py").write_text("")
    digests.add(collect(str(tmp_path)).sha256)
    assert len(digests) == 3


@pytest.mark.parametrize("line", ["from hako.errors import HakoError", "import hako.errors", "from hako import errors"])
def test_imports_of_what_is_not_for_the_guest(line: str, tmp_path: pathlib.Path) -> None:
    package = write(tmp_path, AGENT | {"agent/loop.py": line})
    with pytest.raises(ImageError, match=r"hako\.agent\.loop imports hako\.errors, which is not for the guest"):
        collect(package)


def test_no_agent(tmp_path: pathlib.Path) -> None:
    with pytest.raises(ImageError, match="not installed completely"):
        collect(str(tmp_path))


def test_the_real_agent() -> None:
    found = collect(agentcode.default_package())
    assert agentcode.ENTRY in found.modules
    assert all(os.path.isfile(path) for path in found.modules.values())
    assert "typing" not in {name.partition("?")[0] for name in found.imports}
