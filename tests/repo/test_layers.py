"""Who may import whom. Imports point down only; see docs/design.md."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator

import pytest

from support import source

#: From the top down. What stands in one row does not import each other.
LAYERS = (
    {"shim"},
    {"cli", "aio", "runtime"},
    {"sandbox", "check"},
    {"storage", "template"},
    {"hypervisor", "guestimage", "ociimage", "network", "cgroup"},
    {"oci"},
    {"config"},
    {"store", "agent_client"},
    {"proc", "ids", "units", "arch", "log", "threads"},
    {"paths", "errors", "version", "log_output", "streams", "digests", "named"},
    {"wire", "linux"},
)
#: Runs in the guest, which has nothing else.
AGENT_MAY = {"wire", "linux", "version"}
#: Uses anything; used by tests alone.
OUTSIDE = {"testing"}
#: Shared with the guest, where only the standard library is.
STANDARD_LIBRARY_ONLY = {"agent", "wire", "linux", "errors", "version"}
#: From PyPI, and the one package that may use each.
THIRD_PARTY = {"qemu": "hypervisor"}

FILES = source.files(".py", under="src/hako")


def imports(path: str) -> Iterator[tuple[str, int]]:
    """Each module that ``path`` imports, anywhere in it, as far as it can be told, with the line."""
    package = path.removeprefix("src/").removesuffix(".py").split("/")
    for node in ast.walk(source.tree(path)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level]) if node.level else ""
            module = ".".join(part for part in (base, node.module) if part)
            # `from hako import store` names a module too, `from hako.errors import HakoError` names none.
            names = [f"{module}.{alias.name}" for alias in node.names] if module == "hako" else [module]
            yield from ((name, node.lineno) for name in names)


def part_of(module: str) -> str:
    """The row entry that a module of hako belongs to: ``hako.sandbox.api`` is part of ``sandbox``."""
    return module.split(".")[1] if "." in module else ""


def level(part: str) -> int:
    """How far down ``part`` stands; one that has no place yet is above all, and test_each_part_has_its_place fails."""
    return next((number for number, row in enumerate(LAYERS) if part in row), -1)


def allowed(importer: str, imported: str) -> bool:
    """Whether the part ``importer`` may import the part ``imported``."""
    if importer == imported or importer in OUTSIDE:
        return True
    if importer == "agent":
        return imported in AGENT_MAY
    if imported == "agent" or imported in OUTSIDE:
        return False
    return level(importer) < level(imported)


def own_part(path: str) -> str:
    """The part that the file ``path`` belongs to; empty for hako/__init__.py."""
    first = path.removeprefix("src/hako/").split("/")[0].removesuffix(".py")
    return "" if first in ("__init__", "__main__") else first


@pytest.mark.parametrize(
    ("importer", "imported", "expected"),
    [
        ("cli", "sandbox", True),
        ("sandbox", "cli", False),
        ("runtime", "sandbox", True),
        ("runtime", "cli", False),
        ("sandbox", "errors", True),
        ("hypervisor", "ociimage", False),
        ("agent", "wire", True),
        ("agent", "errors", False),
        ("guestimage", "agent", False),
        ("sandbox", "testing", False),
        ("testing", "agent", True),
        ("config", "oci", False),
    ],
)
def test_the_rule(importer: str, imported: str, expected: bool) -> None:
    assert allowed(importer, imported) is expected


def test_imports_point_down() -> None:
    wrong = []
    for path in FILES:
        importer = own_part(path)
        for module, line in imports(path):
            if importer and module.split(".")[0] == "hako" and not allowed(importer, part_of(module)):
                wrong.append(f"{path}:{line}: {importer} must not import {module}")
    assert not wrong, "\n".join(wrong)


def test_each_part_has_its_place() -> None:
    placed = {"agent", *OUTSIDE}.union(*LAYERS)
    existing = {own_part(path) for path in FILES} - {""}
    assert existing <= placed, f"give a layer to {existing - placed}"


def test_third_party_imports_stay_in_one_place() -> None:
    wrong = []
    for path in FILES:
        part = own_part(path)
        for module, line in imports(path):
            top = module.split(".")[0]
            if top == "hako" or top in sys.stdlib_module_names:
                continue
            if part in STANDARD_LIBRARY_ONLY or THIRD_PARTY.get(top) != part:
                wrong.append(f"{path}:{line}: {part or 'hako'} must not import {module}")
    assert not wrong, "\n".join(wrong)


def test_modules_say_what_they_are_for() -> None:
    assert not [path for path in FILES if source.read(path).strip() and not ast.get_docstring(source.tree(path))]


def test_annotations_are_not_evaluated() -> None:
    """They would import typing at start-up, or fail in the guest, where TYPE_CHECKING is false."""
    line = "from __future__ import annotations"
    assert not [path for path in FILES if "->" in source.read(path) and line not in source.read(path)]
