"""Documents that must agree with the source: links, the specification, the pages made from tables."""

from __future__ import annotations

import ast
import os
import re

from hako.config import reference
from support import source

DOCUMENTS = source.files(".md")
_LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")
_TEST = re.compile(r"`(tests/[\w/.]+\.py)(?:::(\w+))?`")


def anchors(document: str) -> set[str]:
    """The anchors that the headings of ``document`` get when it is shown."""
    headings = re.findall(r"^#+ +(.+?) *$", without_code(source.read(document)), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def without_code(text: str) -> str:
    """``text`` less its fenced code."""
    return re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)


def broken_links(document: str) -> list[str]:
    """The links inside the repository that lead nowhere."""
    broken = []
    for link in _LINK.findall(without_code(source.read(document))):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = os.path.normpath(os.path.join(os.path.dirname(document), path)) if path else document
        if not os.path.exists(os.path.join(source.CLONE, target)):
            broken.append(f"{document}: {link}: there is no {target}")
        elif anchor and target.endswith(".md") and anchor not in anchors(target):
            broken.append(f"{document}: {link}: {target} has no such heading")
    return broken


def test_links_lead_somewhere() -> None:
    assert {"README.md", "SPECIFICATION.md", "CONTRIBUTING.md", "CHANGELOG.md"} <= set(DOCUMENTS)
    broken = [line for document in DOCUMENTS for line in broken_links(document)]
    assert not broken, "\n".join(broken)


def promises() -> list[str]:
    """The rows of the specification's tables."""
    lines = source.read("SPECIFICATION.md").splitlines()
    rows = [line for line in lines if line.startswith("|")]
    return [row for row in rows if not re.match(r"\| *promise|\|[-| ]+$", row)]


def test_each_promise_names_a_test_that_exists() -> None:
    assert promises()
    wrong = []
    for row in promises():
        named = _TEST.findall(row)
        if not named:
            wrong.append(f"{row}: names no test")
        for path, name in named:
            if not os.path.exists(os.path.join(source.CLONE, path)):
                wrong.append(f"there is no {path}")
            elif not name:
                wrong.append(f"{path}: name the test inside it")
            elif name not in functions(path):
                wrong.append(f"{path} has no {name}")
    assert not wrong, "\n".join(wrong)


def functions(path: str) -> set[str]:
    """The names of the tests in ``path``."""
    nodes = ast.walk(source.tree(path))
    return {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


def test_the_configuration_page_is_up_to_date() -> None:
    assert source.read("docs/configuration.md") == reference.reference(), "run `make docs`"


def test_the_changelog_has_the_version() -> None:
    from hako.version import __version__

    assert re.search(rf"^## (\[?{re.escape(__version__)}\b|Unreleased)", source.read("CHANGELOG.md"), re.MULTILINE)


def test_the_licence_is_whole() -> None:
    text = source.read("LICENSE")
    assert "Apache License" in text
    assert "END OF TERMS AND CONDITIONS" in text


def test_no_path_of_a_developers_machine() -> None:
    paths = source.files(".py", ".md", ".sh", ".toml", "Makefile", "run")
    assert not [path for path in paths if re.search(r"(?<![\w.])/(?:work|workspace|Users)/", source.read(path))]
