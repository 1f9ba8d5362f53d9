"""A node as the installer sees it: a file system in a directory, and programs that stand for those of the node.

``nsenter`` runs the node's programs with the directory as its root. Of these, systemd-run, systemctl and containerd are
scripts that write down how they are called, and scripts/install.sh is one that makes a few files. The rest is real.
"""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from pathlib import Path

from support import source
from support.kubeapi import KubeApi

_NSENTER = """\
#!/bin/bash
while [ "$1" != -- ]; do shift; done
shift
words=()
for word; do case $word in /usr/*) word=$ROOT$word ;; esac; words+=("$word"); done
PATH=$ROOT/usr/local/bin:$PATH exec "${words[@]}"
"""
_SYSTEMD_RUN = """\
#!/bin/bash
while [ "$1" != -- ]; do echo "$1" >>"$CONTROL/units"; shift; done
shift
exec "$@"
"""
_SYSTEMCTL = """\
#!/bin/bash
case $1 in
is-active) [ -e "$CONTROL/active-${!#}" ] ;;
restart)
    echo "$2" >>"$CONTROL/restarts"
    if [ -e "$CONTROL/broken" ] && grep -rqs 'runtimes.hako' "$ROOT/etc"; then rm "$CONTROL/active-$2"; exit 1; fi
    touch "$CONTROL/active-$2" ;;
esac
"""
_CONTAINERD = """\
#!/bin/bash
case $* in
--version) cat "$CONTROL/containerd-version" ;;
*"config dump")
    [ ! -e "$CONTROL/refuses" ] || { echo "containerd: failed to load TOML"; exit 1; }
    cat "$ROOT$2" "$ROOT/etc/containerd/conf.d/hako.toml" 2>/dev/null || true ;;
esac
"""
_INSTALL = """\
#!/bin/bash
[ ! -e "$CONTROL/no-mirror" ] || { echo "Error: no mirror"; exit 1; }
mkdir -p "$ROOT/usr/local/lib/hako" "$ROOT/usr/local/bin"
cp "$CONTROL/hako" "$ROOT/usr/local/bin/hako"
cp "$CONTROL/hako" "$ROOT/usr/local/bin/containerd-shim-hako-v2"
echo install >>"$CONTROL/scripts"
"""
_UNINSTALL = """\
#!/bin/bash
[ ! -s "$CONTROL/pods" ] || { echo "Error: pods are running"; exit 1; }
rm -r "$ROOT/usr/local/lib/hako" "$ROOT/usr/local/bin/hako" "$ROOT/usr/local/bin/containerd-shim-hako-v2"
echo uninstall >>"$CONTROL/scripts"
"""
_HAKO = """\
#!/bin/bash
case $* in
"ps --all --quiet") cat "$CONTROL/pods" 2>/dev/null || true ;;
"rm --force "*) : >"$CONTROL/pods" ;;
"template build") [ ! -e "$CONTROL/no-vm" ] || { echo "Error: no VM"; exit 1; } ;;
esac
"""
VERSIONS = {
    1: "containerd github.com/containerd/containerd 1.6.20~ds1 1.6.20~ds1-1+deb12u3",
    2: "containerd containerd.io v2.1.4 75cb2b7193e4e490e9fbdc236c0e811ccaba3376",
}


class NodeTree:
    """The node, on which ``engine`` runs, and its installer."""

    def __init__(self, base: Path, api: KubeApi, *, engine: str = "containerd", major: int = 1) -> None:
        self.root, self._control, self._bundle = base / "node", base / "control", base / "bundle"
        self._api = api
        self.ready = base / "ready"
        for name in ("etc", "usr/local/bin", "usr/local/lib", "var/lib"):
            (self.root / name).mkdir(parents=True)
        self._control.mkdir()
        for name in (f"active-{engine}", "restarts", "scripts", "units"):
            self.set(name)
        self.set("containerd-version", VERSIONS[major])
        self.set("hako", _HAKO)
        programs = {
            "nsenter": _NSENTER,
            "systemd-run": _SYSTEMD_RUN,
            "systemctl": _SYSTEMCTL,
            "containerd": _CONTAINERD,
        }
        for name, text in programs.items():
            _program(base / "bin" / name, text)
        os.chmod(self._control / "hako", 0o755)
        installer = self._bundle / "source" / "deploy"
        shutil.copytree(
            os.path.join(source.CLONE, "deploy"), installer, ignore=shutil.ignore_patterns("__pycache__", "helm")
        )
        _program(self._bundle / "source" / "scripts" / "install.sh", _INSTALL)
        _program(self._bundle / "source" / "scripts" / "uninstall.sh", _UNINSTALL)
        (self._bundle / "wheels").mkdir()
        (self._bundle / "wheels" / "one.whl").touch()
        self._script = installer / "installer" / "node.sh"
        self._path = f"{base / 'bin'}:{os.environ['PATH']}"

    def set(self, name: str, text: str = "") -> None:
        """Say something to the programs that stand for the node's: a file of theirs."""
        (self._control / name).write_text(text)

    def unset(self, name: str) -> None:
        """Take that back."""
        (self._control / name).unlink()

    def said(self, name: str) -> list[str]:
        """The lines that those programs have written down."""
        return (self._control / name).read_text().split()

    def write(self, path: str, text: str) -> None:
        """Make a file of the node's."""
        real = self.root / path.lstrip("/")
        real.parent.mkdir(parents=True, exist_ok=True)
        real.write_bytes(text.encode())

    def files(self) -> dict[str, object]:
        """All files and directories of the node, with modes and contents."""
        found: dict[str, object] = {}
        for folder, folders, names in os.walk(self.root):
            found |= {os.path.join(folder, name): None for name in folders}
            for path in (Path(folder, name) for name in names):
                found[str(path)] = (stat.S_IMODE(path.stat().st_mode), path.read_bytes())
        return found

    def start(self, verb: str, **environment: str) -> subprocess.Popen[str]:
        """Start node.sh."""
        variables = {
            **self._api.environment,
            "PATH": self._path,
            "ROOT": str(self.root),
            "CONTROL": str(self._control),
            "HAKO_READY_FILE": str(self.ready),
            **environment,
        }
        argv = ["bash", str(self._script), verb]
        return subprocess.Popen(argv, env=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def run(self, verb: str, *, status: int = 0, **environment: str) -> str:
        """Run node.sh to its expected end, and return what it said."""
        with self.start(verb, **environment) as process:
            said, _ = process.communicate(timeout=120)
        assert process.returncode == status, said
        return said


def _program(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
