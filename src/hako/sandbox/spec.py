"""What a sandbox is made from, in a form that can be sent to its process and kept on disk."""

from __future__ import annotations

from hako.errors import ConfigError
from hako.named import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

#: The network of a sandbox that has nothing but its loopback, unless an engine connects it.
NO_NETWORK = "none"
#: No network that could have this name: the one that an engine has made, which the call Network names.
GIVEN_NETWORK = "-"


class SandboxSpec(NamedTuple):
    """One sandbox. Sizes in bytes, times in seconds."""

    id: str
    name: str
    memory: int
    vcpus: int
    guest_image: str = ""  #: digest, prefix or directory; empty: the default
    owned: bool = True  #: ends when the connection of whoever started it does
    retain: bool = False  #: what its containers leave stays after the end
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}  #: settings of its own, as hako.config.load.apply_annotations takes them
    cgroup: dict[str, Any] = {}  #: the one that its VM belongs into, for hako.cgroup.api.Cgroup.open(); empty for none
    network: str = NO_NETWORK  #: or the name of one of hako's own, as hako.network.cniconfig.load takes it
    ports: list[str] = []  #: what it publishes, as hako.network.ports.parse takes it
    dns: list[str] = []  #: addresses of name servers; empty: the network's, or the host's
    dns_search: list[str] = []  #: domains to look names up in; empty: the network's, or the host's
    hosts: list[str] = []  #: further entries of /etc/hosts, ``NAME:ADDRESS``

    def to_json(self) -> dict[str, Any]:
        """As an object for JSON."""
        return self._asdict()

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> SandboxSpec:
        """The reverse of to_json(). Raises ConfigError when a field is missing or of another type."""
        kinds: dict[str, type] = {"id": str, "name": str, "memory": int, "vcpus": int, "guest_image": str}
        kinds |= {"owned": bool, "retain": bool, "labels": dict, "annotations": dict, "cgroup": dict, "network": str}
        texts = ("ports", "dns", "dns_search", "hosts")
        kinds |= dict.fromkeys(texts, list)
        # Earlier versions wrote less.
        value = {key: cls._field_defaults[key] for key in ("annotations", "cgroup", "network", *texts)} | value
        for key, kind in kinds.items():
            found = value.get(key)
            is_texts = not isinstance(found, list) or all(isinstance(entry, str) for entry in found)
            if type(found) is not kind or not is_texts:
                raise ConfigError(f"The description of a sandbox has no valid {key}.")
        return cls(**{key: value[key] for key in kinds})
