"""What is imported at start-up: the command line pays it on each call, the guest on each boot."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import qemu.qmp

from support import source

_PYTHON = os.path.realpath(sys.executable)

#: 10 to 50 ms each; a command that needs one imports it where it does.
SLOW = {"asyncio", "logging", "subprocess", "tomllib", "tarfile", "dataclasses", "difflib", "ssl", "urllib.request"}
#: Slower still in a virtual machine without KVM. json, signal and collections have small ways round: wire/jsontext.py,
#: _signal, _collections.
NOT_IN_GUEST = {*SLOW, "typing", "contextlib", "selectors", "socket", "shutil", "tempfile", "argparse", "threading"}
NOT_IN_GUEST |= {"re", "enum", "functools", "collections", "json", "signal", "warnings"}


def modules_after(code: str) -> set[str]:
    """The modules that are loaded when ``code`` has run in a fresh interpreter without site packages."""
    program = f"import sys; sys.path.append({source.SOURCE!r})\n{code}\nprint(*sys.modules, file=sys.stderr)"
    done = subprocess.run(
        [_PYTHON, "-IS", "-c", program], capture_output=True, text=True, timeout=60, check=False, cwd="/"
    )
    assert done.returncode == 0, done.stderr
    return set(done.stderr.split())


def test_the_probe_sees_what_is_imported() -> None:
    assert "asyncio" in modules_after("import asyncio")


def test_importing_hako_imports_nothing_else() -> None:
    before = modules_after("pass")
    assert modules_after("import hako") - before <= {"hako", "__future__"}


@pytest.mark.parametrize(
    "module",
    [
        "hako.agent.main",
        "hako.agent.ahead",
        "hako.agent.network",
        "hako.agent.resolver",
        "hako.agent.sockets",
        "hako.wire.queries",
        "hako.wire.frames",
        "hako.wire.calls",
        "hako.wire.protobuf",
        "hako.linux.syscalls",
    ],
)
def test_the_guest_imports_little(module: str) -> None:
    assert not modules_after(f"import {module}") & NOT_IN_GUEST


def test_a_sandbox_process_that_is_prepared_has_loaded_what_starts_qemu() -> None:
    libraries = os.path.dirname(os.path.dirname(qemu.qmp.__path__[0]))
    code = f"""import socket
sys.path.append({libraries!r})
from hako.sandbox import daemon
ours, theirs = socket.socketpair()
ours.close()
daemon.serve_prepared(theirs.detach())"""
    loaded = modules_after(code)
    assert {"hako.sandbox.machine", "hako.hypervisor.qemu", "asyncio.sslproto"} <= loaded
    assert not loaded & {"_ssl", "dis", "ast"}  # for TLS, and of inspect
    # There is time for these when the guest is at work.
    assert not loaded & {"hako.sandbox.engine", "qemu.qmp", "hako.shim.shim"}


def test_the_guest_starts_without_what_few_need() -> None:
    found = modules_after("import hako.agent.main")
    assert "hako.agent.channel" in found
    assert not found & {f"hako.agent.{name}" for name in ("links", "network", "redirect", "resolver", "sockets")}


def test_a_shim_loads_nothing_to_say_that_nothing_is_left() -> None:
    """containerd waits for it at the end of each container."""
    code = """import os
for name in ("HAKO_STATE_ROOT", "HAKO_DATA_ROOT"):
    os.environ[name] = "/nowhere"
sys.stdout = open(os.devnull, "w")  # the answer is not a text
from hako.shim.main import main
assert main(["-namespace", "n", "-id", "c", "-address", "/nowhere/a", "-bundle", "/nowhere/b", "delete"]) == 0"""
    assert not modules_after(code) & {
        *SLOW,
        "typing",
        "contextlib",
        "socket",
        "signal",
        "re",
        "enum",
        "ctypes",
        "hashlib",
    }


def test_a_shim_loads_little_to_ask_a_zygote() -> None:
    """containerd waits for it at the beginning of each container."""
    loaded = modules_after("import hako.shim.main, hako.cgroup.hurry, hako.shim.start")
    assert "hako.sandbox.zygotes" in loaded
    assert not loaded & {*SLOW, "typing", "contextlib", "socket", "signal", "re", "enum", "ctypes", "hashlib", "fcntl"}
    assert not loaded & {"hako.config.settings", "hako.wire.protobuf", "hako.sandbox.daemon", "hako.sandbox.spec"}


def test_claiming_a_sandbox_loads_nothing_for_temporary_files(tmp_path: Path) -> None:
    code = f"""from hako import store
with store.staging_dir({str(tmp_path)!r}) as path:
    import os
    os.rename(path, path + "-made")"""
    assert not modules_after(code) & {"tempfile", "shutil", "random", "lzma", "bz2"}


@pytest.mark.parametrize(
    "modules",
    [
        "hako.runtime.create, hako.runtime.making",
        "hako.runtime.execute, hako.runtime.standin",
        "hako.runtime.foreground",
        "hako.shim.start, hako.shim.making, hako.shim.bootstrap",
    ],
)
def test_no_engine_waits_for_typing(modules: str) -> None:
    """It takes as long to load as most of what these do takes."""
    assert not modules_after(f"import {modules}") & {*SLOW, "typing", "re"}


@pytest.mark.parametrize("arguments", [["version"], ["--help"]])
def test_the_command_line_starts_without_slow_modules(arguments: list[str]) -> None:
    run = "try:\n    ended = main()\nexcept SystemExit as stop:\n    ended = stop.code\nassert not ended"
    code = f"sys.argv = {['hako', *arguments]!r}\nfrom hako.cli.main import main\n{run}"
    assert not modules_after(code) & SLOW


@pytest.mark.parametrize("module", ["hako.config", "hako.log", "hako.store", "hako.ids", "hako.units", "hako.paths"])
def test_shared_modules_are_quick_to_import(module: str) -> None:
    allowed = {"tempfile", "shutil"} if module == "hako.store" else set()
    assert not modules_after(f"import {module}") & (SLOW - allowed)


def test_loading_no_configuration_reads_no_toml() -> None:
    code = "import os; os.environ['HAKO_CONFIG'] = ''; import hako.config; hako.config.load()"
    if os.path.exists("/etc/hako"):
        pytest.skip("this machine has a configuration")
    assert not modules_after(code) & SLOW
