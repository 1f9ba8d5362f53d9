"""Which kernel modules a guest image carries, and in which order they load.

The order comes from the modules themselves (``depends`` and ``softdep`` in .modinfo), so no depmod is needed.
Names are compared with ``_`` for ``-``, as the kernel does.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence

from hako.errors import ImageError
from hako.guestimage.compression import decompress
from hako.guestimage.elf import modinfo
from hako.named import NamedTuple

#: Loaded at boot, in this order: without them no sandbox works.
REQUIRED = ("virtio_pci", "virtio_console", "9p", "9pnet_virtio", "virtio_rng", "overlay")
#: Loaded at boot when the kernel has them. A clone finds loaded what its template has loaded.
BOOT_OPTIONAL = ("virtio_balloon", "virtio_net", "virtiofs", "virtio_mem")
#: What disks of containers need.
SCSI_DISKS = ("scsi_mod", "sd_mod", "virtio_scsi")
#: What can be on them.
DISK_FILE_SYSTEMS = ("ext4", "erofs", "xfs", "btrfs", "squashfs")
#: Carried when the kernel has them, loaded when a device or a file system asks for them.
ON_DEMAND = ("virtio_blk", *SCSI_DISKS, *DISK_FILE_SYSTEMS, "vmw_vsock_virtio_transport", "tun", "loop")

_SIGNATURE_MAGIC = b"~Module signature appended~\n"
_SIGNATURE_STRUCT = 12
_SUFFIXES = (".ko", ".ko.xz", ".ko.zst", ".ko.gz")


class ModuleInfo(NamedTuple):
    """What ordering needs to know about one module."""

    depends: tuple[str, ...]
    before: tuple[str, ...] = ()  #: soft dependencies, loaded first where they exist
    after: tuple[str, ...] = ()


class ModulePlan(NamedTuple):
    """The modules of an image: names loaded at boot, and per module loaded on demand the chain that brings it."""

    boot: tuple[str, ...]
    demand: Mapping[str, tuple[str, ...]]
    builtin: tuple[str, ...]  #: wanted ones that are part of the kernel itself
    absent: tuple[str, ...]  #: optional ones that this kernel does not have

    def names(self) -> list[str]:
        """Every module to carry, in load order."""
        return list(dict.fromkeys([*self.boot, *(name for chain in self.demand.values() for name in chain)]))


def canonical(name: str) -> str:
    """``name`` in the kernel's own spelling."""
    return name.replace("-", "_")


class ModuleDirectory:
    """The modules below one ``/lib/modules/VERSION``. Raises ImageError when it cannot be read."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._files: dict[str, str] = {}
        self._aliases: dict[str, str] | None = None
        self._kept: dict[str, bytes] = {}
        if not os.path.isdir(path):
            raise ImageError(f"The kernel modules directory {path} does not exist.")
        for directory, _, names in os.walk(path):
            for name in names:
                stem = _stem(name)
                if stem is not None:
                    self._files[canonical(stem)] = os.path.join(directory, name)
        self.builtin = frozenset(self._read_builtin())

    def read(self, name: str) -> bytes:
        """The module ``name``, decompressed and without its signature."""
        name = canonical(name)
        if name not in self._kept:
            path = self._files[name]
            try:
                with open(path, "rb") as file:
                    data = file.read()
            except OSError as error:
                raise ImageError(f"Cannot read the kernel module {path}: {error.strerror}.") from error
            self._kept[name] = strip_signature(decompress(data, path))
        return self._kept[name]

    def file_of(self, name: str) -> str:
        """The path of the module ``name``."""
        return self._files[canonical(name)]

    def below(self, directories: Iterable[str]) -> list[str]:
        """The modules in or below these directories of the kernel's tree, such as ``net/sched``."""
        places = tuple(os.path.join(self.path, "kernel", directory, "") for directory in directories)
        return sorted(name for name, path in self._files.items() if path.startswith(places))

    def aliases(self, name: str) -> list[str]:
        """What else the module ``name`` is asked for by: patterns."""
        return self._modinfo(name).get("alias", [])

    def info(self, name: str) -> ModuleInfo | None:
        """What ``name`` depends on; None when the directory has no such module."""
        if canonical(name) not in self._files:
            return None
        return _parse(self._modinfo(name))

    def kernel_version(self, name: str) -> str:
        """The kernel that the module ``name`` was built for."""
        return self._modinfo(name).get("vermagic", [""])[0].partition(" ")[0]

    def resolve(self, name: str) -> str | None:
        """The module that ``name`` means in a soft dependency, where an alias such as ``crypto-crc32c`` can stand."""
        name = canonical(name)
        if name in self._files or name in self.builtin:
            return name
        if self._aliases is None:
            self._aliases = self._read_crypto_aliases()
        return self._aliases.get(name)

    def _modinfo(self, name: str) -> dict[str, list[str]]:
        return modinfo(self.read(name), self._files[canonical(name)])

    def _read_builtin(self) -> list[str]:
        try:
            with open(os.path.join(self.path, "modules.builtin"), encoding="latin-1") as file:
                stems = [_stem(os.path.basename(line.strip())) for line in file]
        except FileNotFoundError:
            return []
        return [canonical(stem) for stem in stems if stem is not None]

    def _read_crypto_aliases(self) -> dict[str, str]:
        """Aliases of the cipher and hash modules, the only ones that soft dependencies name by alias.

        The generic code comes first: the variants for one processor refuse to load on another.
        """
        paths = sorted(name for name, path in self._files.items() if "/crypto/" in path)
        aliases: dict[str, str] = {}
        for name in sorted(paths, key=lambda name: (not name.endswith("_generic"), name)):
            for alias in self._modinfo(name).get("alias", []):
                aliases.setdefault(canonical(alias), name)
        return aliases


def plan(directory: ModuleDirectory, extra: Sequence[str] = ()) -> ModulePlan:
    """The modules to carry: the lists above plus ``extra`` (on demand, and required).

    Raises ImageError naming every required module that is neither a file in the directory nor built in.
    """
    extra = [canonical(name) for name in extra]
    present: list[str] = []
    builtin: list[str] = []
    absent: list[str] = []
    for name in dict.fromkeys([*REQUIRED, *BOOT_OPTIONAL, *ON_DEMAND, *extra]):
        if directory.info(name) is not None:
            present.append(name)
        else:
            (builtin if canonical(name) in directory.builtin else absent).append(name)
    missing = [name for name in absent if name in (*REQUIRED, *extra)]
    if missing:
        raise ImageError(
            f"The kernel lacks modules that the guest needs: {', '.join(missing)} "
            f"(looked in {directory.path} for files and in its modules.builtin); "
            "enable them in the kernel or name the right modules directory."
        )

    def load(names: Iterable[str]) -> list[str]:
        return load_order(names, directory.info, directory.resolve, directory.builtin)

    boot = load(name for name in present if name in (*REQUIRED, *BOOT_OPTIONAL))
    on_demand = [name for name in present if name not in (*REQUIRED, *BOOT_OPTIONAL)]
    demand = {name: tuple(step for step in load([name]) if step not in boot) for name in on_demand}
    return ModulePlan(tuple(boot), demand, tuple(builtin), tuple(absent))


def load_order(
    wanted: Iterable[str],
    info: Callable[[str], ModuleInfo | None],
    resolve: Callable[[str], str | None],
    builtin: Iterable[str] = (),
) -> list[str]:
    """``wanted`` and all they need, each after what it depends on.

    ``info`` gives a module's dependencies or None for an unknown one, ``resolve`` what a soft dependency means.
    A soft dependency that is missing, or that leads in a circle, is left out: it is a wish, not a need. Raises
    ImageError for a missing hard dependency and for a circle of hard ones.
    """
    inside = {canonical(name) for name in builtin}
    done: dict[str, None] = {}

    def visit(name: str, path: tuple[str, ...]) -> None:
        name = canonical(name)
        if name in done or name in inside:
            return
        if name in path:
            raise ImageError(f"Kernel modules depend on each other in a circle: {' → '.join((*path, name))}.")
        found = info(name)
        if found is None:
            needed_by = f", which {path[-1]} needs," if path else ""
            raise ImageError(f"The kernel module {name}{needed_by} is missing from the modules directory.")
        here = (*path, name)
        for other in found.before:
            wish(other, here)
        for other in found.depends:
            visit(other, here)
        done.setdefault(name)
        for other in found.after:
            wish(other, here)

    def wish(name: str, path: tuple[str, ...]) -> None:
        before = dict(done)
        try:
            visit(resolve(canonical(name)) or name, path)
        except ImageError:
            done.clear()
            done.update(before)

    for name in wanted:
        visit(name, ())
    return list(done)


def strip_signature(data: bytes) -> bytes:
    """``data`` without the signature at its end, if it has one.

    hako's guests do not check signatures (the image as a whole is checked by its digest), and hashing a module
    before it is loaded costs time at boot. A damaged signature is left where it is; the kernel ignores it.
    """
    if not data.endswith(_SIGNATURE_MAGIC):
        return data
    end = len(data) - len(_SIGNATURE_MAGIC) - _SIGNATURE_STRUCT
    if end < 0:
        return data
    # struct module_signature: u8 algo, hash, id_type, signer_len, key_id_len, pad[3]; be32 signature length
    extra = data[end + 3] + data[end + 4] + int.from_bytes(data[end + 8 : end + 12], "big")
    return data[: end - extra] if extra <= end else data


def _stem(file_name: str) -> str | None:
    return next((file_name[: -len(suffix)] for suffix in _SUFFIXES if file_name.endswith(suffix)), None)


def _parse(info: Mapping[str, Sequence[str]]) -> ModuleInfo:
    """Dependencies out of .modinfo: ``depends=a,b`` and ``softdep=pre: a b post: c``."""
    depends = [name for value in info.get("depends", ()) for name in value.split(",") if name]
    soft: dict[str, list[str]] = {"pre:": [], "post:": []}
    for value in info.get("softdep", ()):
        into: list[str] | None = None
        for word in value.split():
            if word in soft:
                into = soft[word]
            elif into is not None:
                into.append(word)
    return ModuleInfo(tuple(depends), tuple(soft["pre:"]), tuple(soft["post:"]))
