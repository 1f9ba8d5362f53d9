"""The files by which the containers of a pod know names, where containerd leaves pods to the shim.

With a container that stands for the pod, containerd makes /etc/hostname, hosts and resolv.conf and binds them into
every container. With ``sandboxer = "shim"`` it leaves that to the shim, too. They are beside the sandbox's record, on
disk: what the guest writes into them takes no memory of the host's.

Facts: containerd internal/cri/server/podsandbox/sandbox_run_linux.go, internal/cri/server/container_create.go.
"""

from __future__ import annotations

import os
import posixpath
from typing import Any

from hako import store
from hako.network import dns
from hako.sandbox import etcfiles, records
from hako.shim.cri_messages import PodSandboxConfig

_ETC = "/etc"
_DIRECTORY = "etc"


class PodFiles:
    """The files of one pod. They go with the sandbox's record."""

    def __init__(self, sandbox_id: str, config: PodSandboxConfig) -> None:
        """Make them. Raises HostError."""
        self._directory = os.path.join(records.data_dir(sandbox_id), _DIRECTORY)
        texts = {"resolv.conf": _resolv_conf(config), "hosts": etcfiles.hosts(config.hostname or "localhost", (), ())}
        if config.hostname:
            texts["hostname"] = f"{config.hostname}\n"
        store.ensure_dir(self._directory)
        for name, text in texts.items():
            etcfiles.write(os.path.join(self._directory, name), text)
        self._names = sorted(texts)

    def mounts(self, spec: dict[str, Any]) -> list[dict[str, Any]]:
        """The mounts to add to a container's config.json ``spec``. What it mounts itself is left to it."""
        own = {posixpath.normpath(posixpath.join("/", mount["destination"])) for mount in spec.get("mounts") or []}
        if _ETC in own:
            return []
        access = "ro" if (spec.get("root") or {}).get("readonly") else "rw"
        return [
            {
                "destination": f"{_ETC}/{name}",
                "type": "bind",
                "source": os.path.join(self._directory, name),
                "options": ["rbind", "rprivate", access],
            }
            for name in self._names
            if f"{_ETC}/{name}" not in own
        ]


def _resolv_conf(config: PodSandboxConfig) -> str:
    """What the pod's description says; the host's if that says nothing."""
    given = config.dns_config
    lines = []
    if given is not None:
        lines = [f"search {' '.join(given.searches)}"] if given.searches else []
        lines += [f"nameserver {server}" for server in given.servers]
        lines += [f"options {' '.join(given.options)}"] if given.options else []
    return "".join(f"{line}\n" for line in lines) or dns.host_resolv_conf()
