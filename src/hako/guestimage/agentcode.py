"""Which of hako's own modules go into the guest, and what they import: read from the sources, nothing is run."""

from __future__ import annotations

import ast
import hashlib
import os
from collections.abc import Iterator

from hako.errors import ImageError
from hako.named import NamedTuple

ENTRY = "hako.agent.main"
#: The agent's package goes in whole, the modules of the others that it can reach go with it.
_AGENT = "hako.agent"
_SHARED = ("hako.wire", "hako.linux", "hako.version")


class AgentCode(NamedTuple):
    """hako's modules for the guest."""

    modules: dict[str, str]  #: module name → source file
    imports: tuple[str, ...]  #: what they import from the standard library; "a?b" stands for `from a import b`
    sha256: str  #: over names and sources


def default_package() -> str:
    """The directory of the running hako package."""
    return os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def collect(package: str) -> AgentCode:
    """Read the agent from the ``hako`` package directory ``package``.

    Raises ImageError when it is not complete, or when it imports a module of hako's that is not for the guest.
    """
    if not os.path.isfile(os.path.join(package, "agent", "main.py")):
        raise ImageError(f"hako is not installed completely: {package}/agent/main.py is missing; install it again.")
    queue = sorted({ENTRY, "hako.version", *_modules_below(package, _AGENT)})
    modules: dict[str, str] = {}
    imports: set[str] = set()
    digest = hashlib.sha256()
    while queue:
        name = queue.pop(0)
        if name in modules:
            continue
        path = _source(package, name)
        if path is None:
            continue
        modules[name] = path
        text = _read(path)
        for wanted in imported_names(text, path):
            if wanted.partition("?")[0].partition(".")[0] == "hako":
                queue += _own_modules(package, wanted, name)
            else:
                imports.add(wanted)
        queue += _parents(name)
    for name in sorted(modules):
        digest.update(f"{name}\0".encode() + hashlib.sha256(_read(modules[name]).encode()).digest())
    return AgentCode(modules, tuple(sorted(imports)), digest.hexdigest())


def imported_names(text: str, path: str) -> Iterator[str]:
    """Modules that Python source ``text`` imports, in functions too, but not below ``if TYPE_CHECKING``.

    ``from a import b`` gives ``a?b``. Raises ImageError when the source is not valid.
    """
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError) as error:
        raise ImageError(f"{path} is not valid Python: {error}.") from error
    queue: list[ast.AST] = [tree]
    while queue:
        node = queue.pop()
        if isinstance(node, ast.If) and _is_type_checking(node.test):
            queue += node.orelse
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                raise ImageError(f"{path} line {node.lineno} has a relative import; the agent uses full names.")
            assert node.module is not None
            yield from (f"{node.module}?{alias.name}" for alias in node.names)
        else:
            queue += ast.iter_child_nodes(node)


def _is_type_checking(test: ast.expr) -> bool:
    name = test.attr if isinstance(test, ast.Attribute) else test.id if isinstance(test, ast.Name) else ""
    return name == "TYPE_CHECKING"


def _own_modules(package: str, wanted: str, importer: str) -> list[str]:
    """The modules of hako's that the import ``wanted`` in ``importer`` stands for."""
    base, _, child = wanted.partition("?")
    names = [base, *([f"{base}.{child}"] if child and _source(package, f"{base}.{child}") else [])]
    for name in names:
        if name != "hako" and not any(name == top or name.startswith(f"{top}.") for top in (_AGENT, *_SHARED)):
            raise ImageError(f"{importer} imports {name}, which is not for the guest; see the layers in docs.")
    return names


def _parents(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts))]


def _modules_below(package: str, name: str) -> Iterator[str]:
    base = os.path.join(package, *name.split(".")[1:])
    for directory, _, files in os.walk(base):
        inner = os.path.relpath(directory, base).replace(os.sep, ".")
        prefix = name if inner == "." else f"{name}.{inner}"
        for file in files:
            if file.endswith(".py"):
                yield prefix if file == "__init__.py" else f"{prefix}.{file[:-3]}"


def _source(package: str, name: str) -> str | None:
    base = os.path.join(package, *name.split(".")[1:])
    for path in (os.path.join(base, "__init__.py"), f"{base}.py"):
        if os.path.isfile(path):
            return path
    return None


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except (OSError, ValueError) as error:
        raise ImageError(f"Cannot read {path}: {error}.") from error
