"""Connecting a container's network namespace by CNI plugins, for containers that no other engine connects.

    result = cni.add(sandbox_id, namespace_path, mappings)
    ...
    cni.delete(sandbox_id)          # then remove the namespace: the plugins need it

Before the first plugin runs there is a note of it in <data root>/cni/attachments, and it stays until every plugin has
taken back what it gave. So whoever cleans up after a crash needs no more than the sandbox's id. Plugins inherit a lock
beside the note: whoever cleans up waits for those that outlive their starter. What the host lost by a reboot is
forgotten. All functions wait for programs to end; an asyncio program calls them by to_thread().
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import os
import time
from collections.abc import Iterator, Sequence
from typing import Any

from hako import ids, log, proc, store
from hako.errors import ExistsError, HakoError, HostError, NotFoundError
from hako.linux import rtnetlink
from hako.linux.netlink import Netlink
from hako.network import cniconfig
from hako.network import namespace as namespaces
from hako.network.cniconfig import Config
from hako.network.ports import PortMapping

INTERFACE = "eth0"
_TIMEOUT = 60.0
_VERSION = 1
_MAX_RESULT = 1 << 20

_log = log.get(__name__)


class Result:
    """What the plugins gave: ``addresses`` as ``10.87.0.2/16``, and the name servers they ask for, if any."""

    def __init__(self, raw: dict[str, Any]) -> None:
        """Raises HostError when ``raw``, a CNI result, makes no sense."""
        self.raw = raw
        self.addresses = [_network(entry) for entry in _objects(raw, "ips")]
        dns = raw.get("dns") or {}
        if not isinstance(dns, dict):
            raise _senseless("dns")
        self.nameservers = _texts(dns, "nameservers")
        self.search = _texts(dns, "search")
        self.options = _texts(dns, "options")


def add(
    sandbox_id: str, namespace: str, mappings: Sequence[PortMapping] = (), network: str = cniconfig.DEFAULT
) -> Result:
    """Connect the network namespace at the path ``namespace`` and publish ports; what fails leaves nothing.

    Raises ConfigError and NotFoundError for a bad configuration, ExistsError when the sandbox is connected already,
    and HostError with a plugin's own words.
    """
    with _locked():
        _forget_before_boot()
        try:
            config = cniconfig.load(network)
            _heal_bridges(config)
        except OSError as error:
            raise HostError(f"Cannot look at the host's network: {error.strerror}.") from error
    _check_ports(config, mappings)
    for plugin in config["plugins"]:
        _program(plugin["type"])
    try:
        with _held(sandbox_id) as lock:
            return _add(sandbox_id, namespace, [_cni_mapping(mapping) for mapping in mappings], config, lock)
    except ExistsError:
        raise
    except BaseException:
        with contextlib.suppress(HakoError):
            delete(sandbox_id, force=True)
        raise


def _add(sandbox_id: str, namespace: str, mappings: list[dict[str, object]], config: Config, lock: int) -> Result:
    path = _note_of(sandbox_id)
    if os.path.exists(path):
        raise ExistsError(f"The sandbox {sandbox_id} is connected to a network already.")
    note = {"version": _VERSION, "config": config, "namespace": namespace, "mappings": mappings, "result": None}
    note["inode"] = _inode(namespace)
    store.write_json(path, note)
    result: dict[str, Any] | None = None
    for plugin in config["plugins"]:
        result = _parse(plugin["type"], _call("ADD", sandbox_id, note, plugin, result, lock), result)
        Result(result or {})
        store.write_json(path, note | {"result": result})
    return Result(result or {})


def check(sandbox_id: str) -> None:
    """Have the plugins look whether everything is as they made it. Raises HostError, NotFoundError."""
    note = _read_note(sandbox_id)
    if note is None:
        raise NotFoundError(f"The sandbox {sandbox_id} is not connected to a network.")
    if _knows_check(note["config"]):
        with _held(sandbox_id) as lock:
            for plugin in note["config"]["plugins"]:
                _call("CHECK", sandbox_id, note, plugin, note["result"], lock)


def delete(sandbox_id: str, *, force: bool = False) -> None:
    """Disconnect ``sandbox_id``; one that is not connected is fine.

    Call it while the namespace exists: plugins find in it what they have to take back on the host. Every plugin is
    asked, whatever the others say; when one fails the note stays, and the call can be repeated. With ``force`` such a
    failure is logged, and the sandbox counts as disconnected all the same. Raises HostError.
    """
    if _read_note(sandbox_id) is None:
        return
    with _held(sandbox_id) as lock:
        note = _read_note(sandbox_id)
        if note is None:
            return
        with _namespace_of(note) as namespace:
            failures = _delete(sandbox_id, note | {"namespace": namespace}, lock)
        for error in failures if force else failures[1:]:
            _log.warning(str(error), sandbox=sandbox_id)
        if failures and not force:
            raise failures[0]
        os.unlink(_note_of(sandbox_id))
        os.unlink(_lock_of(sandbox_id))


def _delete(sandbox_id: str, note: dict[str, Any], lock: int) -> list[HostError]:
    """Have every plugin take back what it gave; what went wrong."""
    failures = []
    for plugin in reversed(note["config"]["plugins"]):
        previous = note["result"] if _knows_check(note["config"]) else None
        try:
            _call("DEL", sandbox_id, note, plugin, previous, lock)
        except HostError as error:
            failures.append(error)
    return failures


@contextlib.contextmanager
def _namespace_of(note: dict[str, Any]) -> Iterator[str]:
    """The path of the namespace, or of another one with the same addresses if it has gone.

    Without a namespace the plugin ``bridge`` would leave its rules for masquerading, which it knows by the addresses
    that it finds there.
    """
    # The path may be below /proc, where another process can have the number by now.
    if note.get("inode") and _inode(note["namespace"]) == note["inode"]:
        yield note["namespace"]
        return

    def prepare(kernel: Netlink) -> None:
        rtnetlink.add_link(kernel, INTERFACE, "veth", peer="peer")
        index = rtnetlink.find_link(kernel, INTERFACE).index
        for text in Result(note["result"] or {}).addresses:
            address, _, prefix = text.partition("/")
            flags = rtnetlink.IFA_F_NODAD if ":" in address else 0
            rtnetlink.add_address(kernel, rtnetlink.Address(index, address, int(prefix), flags=flags))

    fd = namespaces.create_unnamed(prepare)
    try:
        yield f"/proc/{os.getpid()}/fd/{fd}"
    finally:
        os.close(fd)


def _inode(path: str) -> int:
    """The number of the file at ``path``, 0 when there is none."""
    try:
        return os.stat(path).st_ino
    except OSError:
        return 0


def connected() -> list[str]:
    """The sandboxes that are connected, those that died too."""
    try:
        names = os.listdir(os.path.join(cniconfig.state_dir(), "attachments"))
    except FileNotFoundError:
        return []
    return sorted(name.removesuffix(".json") for name in names if name.endswith(".json"))


def _call(
    command: str, sandbox_id: str, note: dict[str, Any], plugin: Config, previous: dict[str, Any] | None, lock: int
) -> bytes:
    """Run a plugin; return its standard output. Raises HostError."""
    kind = plugin["type"]
    program = _program(kind)
    env = {
        **proc.BASE_ENV,
        "CNI_COMMAND": command,
        "CNI_CONTAINERID": sandbox_id,
        "CNI_NETNS": note["namespace"],
        "CNI_IFNAME": INTERFACE,
        "CNI_ARGS": "IgnoreUnknown=1",
        "CNI_PATH": ":".join(cniconfig.PLUGIN_DIRS),
    }
    request = json.dumps(_request(note, plugin, previous)).encode()
    done = proc.run([program], input=request, env=env, timeout=_TIMEOUT, check=False, pass_fds=[lock])
    if done.returncode != 0:
        reason = _reason(done.stdout, done.stderr) or f"it ended with status {done.returncode}"
        doing = {"ADD": "connect", "DEL": "disconnect", "CHECK": "check the network of"}[command]
        name = note["config"]["name"]
        raise HostError(f"The CNI plugin {kind} could not {doing} {sandbox_id} (network {name}): {reason}.")
    return done.stdout


def _program(kind: str) -> str:
    program = cniconfig.find_plugin(kind)
    if program is None:
        raise HostError(
            f"The CNI plugin {kind} is in none of {', '.join(cniconfig.PLUGIN_DIRS)}: install the Debian package "
            "containernetworking-plugins."
        )
    return program


def _request(note: dict[str, Any], plugin: Config, previous: dict[str, Any] | None) -> Config:
    """A plugin's standard input."""
    config = note["config"]
    request = {key: value for key, value in plugin.items() if key != "capabilities"}
    request |= {"cniVersion": config["cniVersion"], "name": config["name"]}
    if plugin.get("capabilities", {}).get("portMappings") is True and note["mappings"]:
        request["runtimeConfig"] = {"portMappings": note["mappings"]}
    if previous is not None:
        request["prevResult"] = previous
    return request


def _parse(kind: str, output: bytes, previous: dict[str, Any] | None) -> dict[str, Any] | None:
    """The result of an ADD; a plugin that says nothing leaves the one before it."""
    if not output.strip():
        return previous
    try:
        value = json.loads(output) if len(output) <= _MAX_RESULT else None
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise HostError(f"The CNI plugin {kind} gave an answer that is not a JSON object.")
    return value


def _reason(output: bytes, complaints: bytes) -> str:
    """A failed plugin's words, on one line and without a full stop."""
    try:
        answer = json.loads(output)
    except (ValueError, RecursionError):
        answer = None
    said = ""
    if isinstance(answer, dict):
        said = ": ".join(str(answer[key]) for key in ("msg", "details") if answer.get(key))
    return " ".join((said or complaints.decode(errors="replace")).split())[:1000].rstrip(".")


def _cni_mapping(mapping: PortMapping) -> dict[str, object]:
    fields: dict[str, object] = {
        "hostPort": mapping.host_port,
        "containerPort": mapping.container_port,
        "protocol": mapping.protocol,
    }
    return fields | ({"hostIP": mapping.host_ip} if mapping.host_ip else {})


def _check_ports(config: Config, mappings: Sequence[PortMapping]) -> None:
    able = any(plugin.get("capabilities", {}).get("portMappings") is True for plugin in config["plugins"])
    if mappings and not able:
        raise HostError(
            f"The network {config['name']} cannot publish ports: none of its plugins has the capability portMappings."
        )


def _knows_check(config: Config) -> bool:
    """Whether the configuration's version of CNI has CHECK, and results given back: 0.4.0 and later."""
    parts = [int(part) if part.isdecimal() else 0 for part in config["cniVersion"].split(".")[:2]]
    return parts >= [0, 4]


def _note_of(sandbox_id: str) -> str:
    name = ids.check(sandbox_id, "The sandbox's id")
    return os.path.join(cniconfig.state_dir(), "attachments", f"{name}.json")


def _read_note(sandbox_id: str) -> dict[str, Any] | None:
    note = store.read_json(_note_of(sandbox_id))
    if note is not None and note.get("version") != _VERSION:
        raise HostError(f"{_note_of(sandbox_id)} was written by another version of hako; it is not understood.")
    return note


def _lock_of(sandbox_id: str) -> str:
    return _note_of(sandbox_id).removesuffix("json") + "lock"


@contextlib.contextmanager
def _held(sandbox_id: str) -> Iterator[int]:
    """Hold the lock of a sandbox's note; its descriptor, for plugins to hold as well. Raises HostError."""
    deadline = time.monotonic() + _TIMEOUT
    while (fd := store.lock(_lock_of(sandbox_id), wait=False)) is None:
        if time.monotonic() > deadline:
            raise HostError(f"Something else has been changing the network of {sandbox_id} for {_TIMEOUT:g} s.")
        time.sleep(0.02)
    try:
        yield fd
    finally:
        os.close(fd)


@contextlib.contextmanager
def _locked() -> Iterator[None]:
    store.ensure_dir(os.path.join(cniconfig.state_dir(), "attachments"), 0o700)
    with store.locked(os.path.join(cniconfig.state_dir(), "lock")):
        yield


def _forget_before_boot() -> None:
    """After a reboot nothing that was given is in use any more: interfaces, rules and namespaces have gone."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        boot = file.read().strip()
    path = os.path.join(cniconfig.state_dir(), "boot.json")
    if (store.read_json(path) or {}).get("boot_id") != boot:
        for name in ("attachments", "networks"):
            store.remove_tree(os.path.join(cniconfig.state_dir(), name))
        store.ensure_dir(os.path.join(cniconfig.state_dir(), "attachments"), 0o700)
        store.write_json(path, {"boot_id": boot})


def _heal_bridges(config: Config) -> None:
    """Give bridges a hardware address that have none.

    The plugin ``bridge`` fixes its bridge's address only when it gives it an IP address. If it ends before, as when it
    is killed, the bridge has none once its last port has gone, and the plugin fails for ever after.
    """
    names = {plugin.get("bridge") or "cni0" for plugin in config["plugins"] if plugin["type"] == "bridge"}
    with Netlink() as kernel:
        for link in rtnetlink.links(kernel):
            if link.name in names and not any(rtnetlink.mac_bytes(link.mac)):
                mac = bytes([0x02]) + os.urandom(5)
                rtnetlink.set_link(kernel, link.index, mac=rtnetlink.mac_text(mac))


def _senseless(what: str) -> HostError:
    return HostError(f"The CNI plugins gave a result whose {what} makes no sense.")


def _objects(value: dict[str, Any], key: str) -> list[dict[str, Any]]:
    found = value.get(key) or []
    if not isinstance(found, list) or not all(isinstance(entry, dict) for entry in found):
        raise _senseless(key)
    return found


def _network(value: dict[str, Any]) -> str:
    """The address of an entry of ``ips``, with its prefix length."""
    text = value.get("address")
    try:
        if not isinstance(text, str) or "/" not in text:
            raise ValueError
        return str(ipaddress.ip_interface(text))
    except ValueError:
        raise _senseless("ips") from None


def _texts(value: dict[str, Any], key: str) -> list[str]:
    found = value.get(key) or []
    if not isinstance(found, list) or not all(isinstance(entry, str) for entry in found):
        raise _senseless(f"dns.{key}")
    return found
