"""Modules that are loaded when something of them is wanted; each test in an interpreter of its own."""

from __future__ import annotations

import subprocess
import sys

import pytest

from support import source


def run(code: str) -> str:
    """What ``code`` prints, run when load_less() has been called."""
    program = f"""import sys
sys.path.append({source.SOURCE!r})
from hako.sandbox import lean
lean.load_less()
{code}"""
    done = subprocess.run([sys.executable, "-IS", "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_asyncio_works_without_them() -> None:
    code = """import asyncio
async def main():
    assert await asyncio.to_thread(lambda: 5) == 5
    async with asyncio.timeout(1):
        await asyncio.gather(asyncio.sleep(0), asyncio.ensure_future(asyncio.sleep(0)))
asyncio.run(main())
print("dis" in sys.modules, "ast" in sys.modules)"""
    assert run(code) == "False False\n"


@pytest.mark.parametrize(
    ("module", "use"),
    [
        ("inspect", "m.isfunction(run) and m.signature(run)"),
        ("textwrap", "m.dedent('  x') == 'x'"),
        ("tokenize", "m.open(m.__file__).close() is None"),
        ("asyncio.sslproto", "m.SSLProtocol"),
        ("asyncio.staggered", "m.staggered_race"),
    ],
)
def test_one_is_there_when_it_is_used(module: str, use: str) -> None:
    code = f"""import importlib
def run(): pass
m = importlib.import_module({module!r})
before = type(m)
assert {use}
print(before.__name__, type(sys.modules[{module!r}]).__name__, sys.modules[{module!r}].__file__ == m.__file__)"""
    assert run(code) == "_Later module True\n"


def test_what_is_not_in_it_is_missed() -> None:
    code = """import inspect
try:
    inspect.nothing
except AttributeError as error:
    print(error)"""
    assert run(code) == "module 'inspect' has no attribute 'nothing'\n"


def test_tracebacks_have_their_lines(tmp_path: object) -> None:
    code = f"""import traceback
path = {str(tmp_path)!r} + "/failing.py"
open(path, "w").write("def fail():\\n    raise ValueError('as wanted')\\n")
sys.path.append({str(tmp_path)!r})
import failing
try:
    failing.fail()
except ValueError:
    print(traceback.format_exc())"""
    assert "raise ValueError('as wanted')" in run(code)


def test_what_is_loaded_already_stays() -> None:
    code = """import inspect
before = inspect
lean.load_less()
import inspect
print(before is inspect)"""
    assert run("import os; " + code) == "True\n"
