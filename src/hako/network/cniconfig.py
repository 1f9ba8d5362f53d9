"""Which network `hako run` uses: a CNI configuration list of the administrator's, or the built-in bridge.

Lists are files ``*.conflist`` in ``cni`` beside hako's configuration file (/etc/hako/cni), in the format of the CNI
specification 1.0 (https://www.cni.dev/docs/spec/).
"""

from __future__ import annotations

import ipaddress
import json
import os
from collections.abc import Iterable
from typing import Any

from hako import ids, paths, store
from hako.errors import ConfigError, HostError, NotFoundError
from hako.linux import rtnetlink
from hako.linux.netlink import Netlink

#: Means the first list by file name, or the built-in network where there is no list.
DEFAULT = "bridge"
BUILT_IN = "hako"
BRIDGE = "hako0"
PLUGIN_DIRS = ("/opt/cni/bin", "/usr/lib/cni", "/usr/libexec/cni")
#: Networks for the built-in bridge, the first that the host does not use; podman's default is 10.88.0.0/16.
SUBNETS = (*(f"10.{number}.0.0/16" for number in (87, 86, 84, 83, 82)), *(f"192.168.{n}.0/24" for n in range(201, 210)))
#: Routes to more than a sixteenth of all addresses are default routes in disguise.
_NO_NETWORK = 4

Config = dict[str, Any]


def directory() -> str:
    """Where the administrator's lists are."""
    return os.path.join(os.path.dirname(paths.config_file()), "cni")


def state_dir() -> str:
    """What hako notes about networks: <data root>/cni."""
    return os.path.join(paths.data_root(), "cni")


def load(name: str = DEFAULT) -> Config:
    """The configuration list of the network ``name``. Raises ConfigError and NotFoundError.

    Call it while holding the lock of state_dir(): it may decide on the built-in network's addresses.
    """
    lists = [_read(path) for path in _files()]
    if name == DEFAULT and lists:
        return next((found for found in lists if found["name"] == name), lists[0])
    for found in lists:
        if found["name"] == name:
            return found
    if name in (DEFAULT, BUILT_IN):
        return built_in(_subnet())
    known = ", ".join(dict.fromkeys(["none", DEFAULT, *(found["name"] for found in lists)]))
    raise NotFoundError(
        f"The network {name!r} does not exist. There are: {known}; {directory()} is where others belong."
    )


def built_in(subnet: str) -> Config:
    """The bridge that needs no configuration."""
    ipam = {
        "type": "host-local",
        "dataDir": os.path.join(state_dir(), "networks"),
        "ranges": [[{"subnet": subnet}]],
        "routes": [{"dst": "0.0.0.0/0"}],
    }
    bridge = {"type": "bridge", "bridge": BRIDGE, "isGateway": True, "ipMasq": True, "hairpinMode": True, "ipam": ipam}
    portmap = {"type": "portmap", "capabilities": {"portMappings": True}, "snat": True}
    # Docker has the host drop what is forwarded and not its own; this lets hako's packets through.
    firewall = [{"type": "firewall"}] if find_plugin("firewall") else []
    return {"cniVersion": "1.0.0", "name": BUILT_IN, "plugins": [bridge, portmap, *firewall]}


def find_plugin(kind: str) -> str | None:
    """The program of the plugin ``kind``."""
    for folder in PLUGIN_DIRS:
        path = os.path.join(folder, kind)
        if os.access(path, os.X_OK):
            return path
    return None


def choose_subnet(used: Iterable[str], candidates: Iterable[str] = SUBNETS) -> str:
    """The first of ``candidates`` that shares no address with the networks ``used``. Raises HostError."""
    taken = [ipaddress.IPv4Network(entry, strict=False) for entry in used]
    for candidate in candidates:
        network = ipaddress.IPv4Network(candidate)
        if not any(network.overlaps(other) for other in taken):
            return candidate
    raise HostError(
        "All networks that hako would choose for containers are in use by the host: write a CNI configuration list "
        f"to {directory()} that names one that is free."
    )


def _subnet() -> str:
    """The built-in network's addresses: those that its bridge has, or the ones of the last time, or free ones."""
    path = os.path.join(state_dir(), "subnet.json")
    noted = (store.read_json(path) or {}).get("subnet")
    with Netlink() as kernel:
        index = next((link.index for link in rtnetlink.links(kernel) if link.name == BRIDGE), 0)
        used = []
        for address in rtnetlink.addresses(kernel):
            if address.family == rtnetlink.AF_INET:
                if address.index == index:
                    return str(ipaddress.IPv4Network(str(address), strict=False))
                used.append(str(address))
        used += [
            f"{route.destination}/{route.prefix}"
            for route in rtnetlink.routes(kernel)
            if route.family == rtnetlink.AF_INET and route.prefix > _NO_NETWORK and route.index != index
        ]
    preferred = [noted] if noted in SUBNETS else []
    chosen = choose_subnet(used, [*map(str, preferred), *SUBNETS])
    if chosen != noted:
        store.write_json(path, {"subnet": chosen})
    return chosen


def _files() -> list[str]:
    try:
        names = os.listdir(directory())
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise ConfigError(f"Cannot read {directory()}: {error.strerror}.") from error
    return [os.path.join(directory(), name) for name in sorted(names) if name.endswith(".conflist")]


def _read(path: str) -> Config:
    try:
        with open(path, "rb") as file:
            value = json.loads(file.read())
    except OSError as error:
        raise ConfigError(f"Cannot read {path}: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not JSON: {error}.") from error
    problem = _problem(value)
    if problem:
        raise ConfigError(f"{path} is not a CNI configuration list: {problem}.")
    assert isinstance(value, dict)
    return value


def _problem(value: object) -> str:
    """What is wrong with a configuration list, empty for nothing."""
    if not isinstance(value, dict):
        return "it is not an object"
    if not ids.is_valid(value.get("name")):
        return '"name" is missing or not a name'
    if not isinstance(value.get("cniVersion"), str):
        return '"cniVersion" is missing or not a text'
    plugins = value.get("plugins")
    if not isinstance(plugins, list) or not plugins:
        return '"plugins" is missing or empty'
    for number, plugin in enumerate(plugins):
        if not isinstance(plugin, dict) or not ids.is_valid(plugin.get("type")):
            return f'"plugins" number {number + 1} has no "type"'
        if not isinstance(plugin.get("capabilities", {}), dict):
            return f'"capabilities" of the plugin {plugin["type"]} is not an object'
    return ""
