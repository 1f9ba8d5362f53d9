"""What a sandbox is made from, in a form that can be sent to its process and kept on disk."""

from __future__ import annotations

from typing import Any, NamedTuple

from hako.errors import ConfigError

#: Version of state.json and record.json; a file of another version is not touched.
STATE_VERSION = 1


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

    def to_json(self) -> dict[str, Any]:
        """As an object for JSON."""
        return self._asdict()

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> SandboxSpec:
        """The reverse of to_json(). Raises ConfigError when a field is missing or of another type."""
        kinds = {"id": str, "name": str, "memory": int, "vcpus": int, "guest_image": str}
        kinds |= {"owned": bool, "retain": bool, "labels": dict, "annotations": dict}
        value = {"annotations": {}, **value}
        for key, kind in kinds.items():
            if type(value.get(key)) is not kind:
                raise ConfigError(f"The description of a sandbox has no valid {key}.")
        return cls(**{key: value[key] for key in kinds})
