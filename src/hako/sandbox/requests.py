"""What the library's calls look like on the control socket: parameters in, results out.

Both faces of the library, the blocking one (api.py) and the asyncio one (aio.py), are made of these.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from hako import ids, units
from hako.config.load import apply_annotations
from hako.config.settings import Config
from hako.errors import ConfigError, ProtocolError
from hako.named import NamedTuple
from hako.sandbox.spec import NO_NETWORK, SandboxSpec

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

#: What the guest needs beside its containers: kernel, agent, page cache for the share.
OVERHEAD = 128 << 20

_NEEDS_NETWORK = {
    "ports": "A published port",
    "dns": "A name server",
    "dns_search": "A search domain",
    "hosts": "An entry of /etc/hosts",
}


class Result(NamedTuple):
    """The end of a process. ``stdout`` and ``stderr`` are empty when they were not captured."""

    exit_status: int
    stdout: str
    stderr: str
    stdout_bytes: bytes = b""
    stderr_bytes: bytes = b""
    oom: bool = False
    error: str = ""  #: why the process was lost, when it did not end by itself


class Mount(NamedTuple):
    """A file or directory of the host for a container."""

    source: str
    destination: str
    readonly: bool = False


def sandbox_spec(
    config: Config,
    *,
    sandbox_id: str = "",
    name: str = "",
    memory: int | str | None = None,
    cpus: float | None = None,
    guest_image: str = "",
    owned: bool = True,
    retain: bool = False,
    labels: Mapping[str, str] | None = None,
    annotations: Mapping[str, str] | None = None,
    network: str = NO_NETWORK,
    ports: Sequence[str] = (),
    dns: Sequence[str] = (),
    dns_search: Sequence[str] = (),
    hosts: Sequence[str] = (),
) -> SandboxSpec:
    """A sandbox with the configured defaults for what is not given. ``memory`` is the containers', in bytes.

    ``annotations`` change settings for this sandbox alone; from ``network`` on as in SandboxSpec. Raises ConfigError.
    """
    _check_network(network, {"ports": ports, "dns": dns, "dns_search": dns_search, "hosts": hosts})
    config = apply_annotations(config, annotations or {})
    if name:
        ids.check(name, "Name")
    size = units.parse_size(memory, "memory") if isinstance(memory, str) else memory
    if size is not None and size < 6 << 20:
        raise ConfigError(f"A memory limit of {size} bytes is too small: containers need at least 6m.")
    if cpus is not None and not 0 < cpus <= 255:
        raise ConfigError(f"{cpus:g} CPUs cannot be had: ask for more than 0 and at most 255.")
    whole = whole_mebibytes(size + OVERHEAD) if size is not None else config.sandbox.memory
    return SandboxSpec(
        id=sandbox_id or ids.new_id(),
        name=name,
        memory=whole,
        vcpus=max(1, -int(-cpus // 1)) if cpus is not None else config.sandbox.vcpus,
        guest_image=guest_image,
        owned=owned,
        retain=retain,
        labels=dict(labels or {}),
        annotations=dict(annotations or {}),
        network=network,
        ports=list(ports),
        dns=list(dns),
        dns_search=list(dns_search),
        hosts=list(hosts),
    )


def whole_mebibytes(size: int) -> int:
    """``size`` bytes, rounded up to what a VM's memory can be."""
    return (size + (1 << 20) - 1) & -(1 << 20)


def _check_network(network: str, asked: Mapping[str, Sequence[str]]) -> None:
    """Refuse what no network can have; whether there is one of that name is seen later. Raises ConfigError."""
    for what, texts in asked.items():
        if isinstance(texts, str):
            raise ConfigError(f"{what} is the text {texts!r}: give a list of texts.")
        if texts and network == NO_NETWORK:
            raise ConfigError(
                f"{_NEEDS_NETWORK[what]} ({texts[0]}) needs a network, and there is none: name one, such as bridge."
            )
    if asked["ports"]:
        from hako.network import ports

        for text in asked["ports"]:
            ports.parse(text)
    for text in asked["dns"]:
        if not _is_address(text):
            raise ConfigError(f"The name server {text!r} is not an IP address.")
    for text in asked["dns_search"]:
        if not text or not text.isprintable() or " " in text:
            raise ConfigError(f"The search domain {text!r} is not a domain.")
    for text in asked["hosts"]:
        name, _, address = text.partition(":")
        if not name or not name.isprintable() or " " in name or not _is_address(address):
            raise ConfigError(f"The host {text!r} is not valid: write NAME:ADDRESS, for example db:10.0.0.5.")


def _is_address(text: str) -> bool:
    import socket

    try:
        socket.inet_pton(socket.AF_INET6 if ":" in text else socket.AF_INET, text)
    except (OSError, ValueError):
        return False
    return True


def create(
    container_id: str,
    spec: dict[str, Any],
    *,
    lower: str | None,
    stdio: Sequence[str],
    start: bool,
    main: bool = False,
    log: bool = False,
    keep_stdin: bool = False,
    image: str = "",
    digest: str = "",
    size: tuple[int, int] | None = None,
) -> dict[str, Any]:
    """Parameters of Create.

    ``lower`` is a directory to be seen through a writable layer, None for the spec's root. ``digest`` is the
    image to keep for as long as the container lives.
    """
    params: dict[str, Any] = {"container": container_id, "spec": spec, "stdio": list(stdio), "start": start}
    params |= {"main": main, "log": log, "keep_stdin": keep_stdin, "image": image, "digest": digest}
    if lower is not None:
        params["lower"] = lower
    return params | terminal_size(size)


def dial(port: int) -> dict[str, Any]:
    """Parameters of Dial: the caller's descriptor is connected with ``port`` of the guest."""
    return {"port": port, "stdio": ["socket"]}


def exec(
    container_id: str,
    exec_id: str,
    process: dict[str, Any],
    stdio: Sequence[str],
    size: tuple[int, int] | None = None,
) -> dict[str, Any]:
    """Parameters of Exec."""
    params = {"container": container_id, "exec": exec_id, "process": process, "stdio": list(stdio)}
    return params | terminal_size(size)


def terminal_size(size: tuple[int, int] | None) -> dict[str, int]:
    """Columns and rows, if there is a terminal."""
    return {} if size is None else {"width": size[0], "height": size[1]}


def target(container_id: str, exec_id: str = "", **more: Any) -> dict[str, Any]:
    """Parameters that name a process."""
    return {"container": container_id, "exec": exec_id, **more}


def exec_process(
    record: Mapping[str, Any],
    args: Sequence[str],
    *,
    env: Sequence[str] = (),
    cwd: str = "",
    user: str = "",
    terminal: bool = False,
    rootfs: str = "",
) -> dict[str, Any]:
    """The OCI process object for a further process: the container's own settings unless others are given."""
    if not args:
        raise ConfigError("There is no command to run in the container.")
    base = record.get("process")
    if not isinstance(base, dict):
        raise ProtocolError("The container's state has no process.")
    from hako.oci import spec as oci_spec

    return oci_spec.exec_process(base, list(args), env=list(env), cwd=cwd, user=user, terminal=terminal, rootfs=rootfs)


def resources(memory: int | str | None = None, cpus: float | None = None, pids: int | None = None) -> dict[str, Any]:
    """An OCI resources object with the given limits."""
    found: dict[str, Any] = {}
    if memory is not None:
        size = units.parse_size(memory, "memory") if isinstance(memory, str) else memory
        found["memory"] = {"limit": size, "swap": size}
    if cpus is not None:
        if not cpus > 0:
            raise ConfigError(f"{cpus:g} CPUs cannot be had: ask for more than 0.")
        found["cpu"] = {"quota": int(cpus * 100_000), "period": 100_000}
    if pids is not None:
        found["pids"] = {"limit": pids}
    if not found:
        raise ConfigError("No limit to update was given: name memory, cpus or pids.")
    return found


def result(end: Mapping[str, Any]) -> Result:
    """What Wait answered."""
    status = end.get("exit_status")
    if type(status) is not int:
        raise ProtocolError("The sandbox process sent no exit status.")
    return Result(status, "", "", oom=end.get("oom") is True, error=str(end.get("error") or ""))


def with_output(end: Result, stdout: bytes, stderr: bytes) -> Result:
    """``end`` with captured output."""
    texts = (stdout.decode(errors="replace"), stderr.decode(errors="replace"))
    return end._replace(stdout=texts[0], stderr=texts[1], stdout_bytes=stdout, stderr_bytes=stderr)


def absolute_mounts(mounts: Sequence[Mount | tuple[str, str]]) -> list[Mount]:
    """``mounts`` with absolute sources. Raises ConfigError for a destination that is not absolute."""
    found = []
    for mount in mounts:
        source, destination, *rest = mount
        if not destination.startswith("/"):
            raise ConfigError(f"Cannot mount {source} at {destination!r}: the path in the container must be absolute.")
        found.append(Mount(os.path.abspath(source), destination, bool(rest and rest[0])))
    return found
