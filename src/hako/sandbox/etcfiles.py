"""The files by which a container on a network of hako's own knows names: /etc/resolv.conf, hosts and hostname.

They are bound into a container before its network is there, and filled in place when it is. They are beside the
container's layer, on the same file system: what the guest writes into them counts as what it writes there.
"""

from __future__ import annotations

import os
import posixpath
from collections.abc import Sequence
from typing import Any

from hako import store
from hako.errors import HostError
from hako.named import NamedTuple
from hako.sandbox.spec import SandboxSpec

_ETC = "/etc"
_FILES = ("hostname", "hosts", "resolv.conf")
_LOCAL = (
    "127.0.0.1\tlocalhost\n"
    "::1\tlocalhost ip6-localhost ip6-loopback\n"
    "fe00::\tip6-localnet\n"
    "ff00::\tip6-mcastprefix\n"
    "ff02::1\tip6-allnodes\n"
    "ff02::2\tip6-allrouters\n"
)


class Names(NamedTuple):
    """What is known of names once the network is there."""

    resolv_conf: str
    addresses: Sequence[str]  #: the containers', without prefix lengths


class EtcFiles:
    """The files of all containers of a sandbox."""

    def __init__(self, spec: SandboxSpec) -> None:
        self._spec = spec
        self._names: Names | None = None
        self._waiting: list[tuple[str, str]] = []

    def mounts(self, directory: str, spec: dict[str, Any]) -> list[dict[str, Any]]:
        """Make the files of a container in the new ``directory``; the mounts to add to its config.json ``spec``.

        What it mounts itself, be it the whole of /etc, is left to it. Raises HostError.
        """
        own = {posixpath.normpath(posixpath.join("/", mount["destination"])) for mount in spec.get("mounts", [])}
        hostname = str(spec.get("hostname") or self._spec.id[:12])
        store.ensure_dir(directory)
        if self._names is not None:
            _fill(directory, hostname, self._names, self._spec.hosts)
        else:
            self._waiting.append((directory, hostname))
            for name in _FILES:
                write(os.path.join(directory, name), "")
        files = [name for name in _FILES if _ETC not in own and f"{_ETC}/{name}" not in own]
        return [_bind(os.path.join(directory, name), f"{_ETC}/{name}") for name in files]

    def fill(self, names: Names) -> None:
        """The network is there: complete the files that wait for it, and all later ones. Raises HostError."""
        self._names = names
        while self._waiting:
            directory, hostname = self._waiting.pop()
            if os.path.isdir(directory):  # it has gone if the container could not be made
                _fill(directory, hostname, names, self._spec.hosts)


def hosts(hostname: str, addresses: Sequence[str], more: Sequence[str]) -> str:
    """The text of a container's /etc/hosts; ``more`` are entries as ``NAME:ADDRESS``."""
    short = hostname.partition(".")[0]
    own = f"{hostname} {short}" if short != hostname else hostname
    entries = [(address, own) for address in addresses]
    entries += [(address, name) for name, _, address in (entry.partition(":") for entry in more)]
    return _LOCAL + "".join(f"{address}\t{name}\n" for address, name in entries)


def _bind(source: str, destination: str) -> dict[str, Any]:
    return {"destination": destination, "type": "bind", "source": source, "options": ["bind", "rw"]}


def _fill(directory: str, hostname: str, names: Names, more: Sequence[str]) -> None:
    write(os.path.join(directory, "hostname"), f"{hostname}\n")
    write(os.path.join(directory, "hosts"), hosts(hostname, names.addresses, more))
    write(os.path.join(directory, "resolv.conf"), names.resolv_conf)


def write(path: str, text: str) -> None:
    """Write into the file itself, which may be bound into a container already. Raises HostError."""
    try:
        with open(path, "w", encoding="utf-8") as file:
            os.fchmod(file.fileno(), 0o644)
            file.write(text)
    except OSError as error:
        raise HostError(f"Cannot write {path}: {error.strerror}.") from error
