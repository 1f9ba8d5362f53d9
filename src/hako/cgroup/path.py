"""What a config.json's cgroupsPath means.

runc's rules: an absolute path begins at the hierarchy's mount, a relative one at the runtime's own cgroup, an empty
one is the container's id as a relative path, and systemd's form is ``slice:prefix:name``.
"""

from __future__ import annotations

from hako.errors import ConfigError
from hako.named import NamedTuple

_DEFAULT_SLICE = "system.slice"
_DEFAULT_PREFIX = "hako"
_ROOT_SLICES = ("-", "-.slice")
_SUFFIX = ".slice"
_MAX_NAME = 255


class CgroupPath(NamedTuple):
    """A checked cgroupsPath."""

    path: str  #: absolute or relative, without ``.`` and ``..``
    unit: str = ""  #: systemd's name of it, ``prefix-name.scope``
    slice: str = ""  #: the slice that the unit is in

    @property
    def is_absolute(self) -> bool:
        """Whether the path begins at the hierarchy's mount."""
        return self.path.startswith("/")


def path_for(cgroups_path: str, container_id: str, *, systemd: bool) -> CgroupPath:
    """The cgroup that a config.json's ``linux.cgroupsPath``, empty or not given as "", asks for.

    ``systemd`` is the option --systemd-cgroup, with which the form is another. Raises ConfigError.
    """
    if any(ord(letter) < 0x20 or ord(letter) == 0x7F for letter in cgroups_path):
        raise _wrong(cgroups_path, "must not contain control characters")
    if systemd:
        return _scope(cgroups_path, container_id)
    text = cgroups_path or container_id
    names = [name for name in text.split("/") if name not in ("", ".")]
    if ".." in names:
        raise _wrong(cgroups_path, "must not contain '..'")
    if not names:
        raise _wrong(cgroups_path, "must name a cgroup, not the root of all")
    if max(len(name.encode(errors="replace")) for name in names) > _MAX_NAME:
        raise _wrong(cgroups_path, f"has a part of more than {_MAX_NAME} bytes")
    return CgroupPath(("/" if text.startswith("/") else "") + "/".join(names))


def _scope(cgroups_path: str, container_id: str) -> CgroupPath:
    parts = (cgroups_path or f":{_DEFAULT_PREFIX}:{container_id}").split(":")
    if len(parts) != 3:
        raise _wrong(cgroups_path, "must have systemd's form 'slice:prefix:name' with --systemd-cgroup")
    slice_name, prefix, name = parts
    if not name:
        raise _wrong(cgroups_path, "must have a name after the second ':'")
    if name.endswith(_SUFFIX):
        raise _wrong(cgroups_path, "must name a scope; a container cannot be a slice")
    if "/" in prefix + name:
        raise _wrong(cgroups_path, "must not have '/' in prefix and name")
    unit = f"{prefix}-{name}.scope"
    if len(unit.encode(errors="replace")) > _MAX_NAME:
        raise _wrong(cgroups_path, f"makes a unit name of more than {_MAX_NAME} bytes")
    slice_name = slice_name or _DEFAULT_SLICE
    try:
        path = expand_slice(slice_name)
    except ValueError:
        raise _wrong(cgroups_path, f"has {slice_name!r} where a slice such as user-1000.slice must be") from None
    return CgroupPath(f"{path}/{unit}", unit, "-.slice" if slice_name in _ROOT_SLICES else slice_name)


def expand_slice(name: str) -> str:
    """The path of a slice: ``a-b.slice`` is /a.slice/a-b.slice. Raises ValueError for what is no slice."""
    if name in _ROOT_SLICES:
        return ""
    stem = name.removesuffix(_SUFFIX)
    parts = stem.split("-")
    if stem == name or "/" in name or "" in parts or len(name) > _MAX_NAME:
        raise ValueError(name)
    return "".join(f"/{'-'.join(parts[:count])}{_SUFFIX}" for count in range(1, len(parts) + 1))


def _wrong(cgroups_path: str, why: str) -> ConfigError:
    return ConfigError(f"$.linux.cgroupsPath: {cgroups_path!r} {why}.")
