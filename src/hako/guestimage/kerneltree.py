"""The kernel and the modules of an image, from Debian's package or from a user's own files."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence

from hako import store
from hako.errors import ImageError
from hako.guestimage import btf, modules, requested
from hako.guestimage.kernel import load_kernel
from hako.guestimage.licences import copyright_text
from hako.guestimage.modules import ModuleDirectory, ModulePlan
from hako.guestimage.packages import Package, unpack
from hako.guestimage.requested import Requested
from hako.named import NamedTuple
from hako.paths import cache_dir

#: Raised when what this file keeps of a kernel package changes.
_CACHE_FORMAT = 3
_KEEP = 2


class KernelTree(NamedTuple):
    """All that an image takes from a kernel."""

    version: str
    vmlinux: bytes
    plan: ModulePlan
    requested: Requested
    modules: dict[str, bytes]  #: content by name, for each module of both
    copyright: bytes | None = None
    files: tuple[str, ...] = ()  #: where the modules were read from

    def names(self) -> list[str]:
        """Every module."""
        return list(dict.fromkeys([*self.plan.names(), *self.requested.names()]))

    def sha256(self) -> str:
        """A digest over the kernel and the modules."""
        digest = hashlib.sha256(hashlib.sha256(self.vmlinux).digest())
        for name in self.names():
            digest.update(f"{name}\0".encode() + hashlib.sha256(self.modules[name]).digest())
        return digest.hexdigest()


def from_files(kernel: str, modules_dir: str, extra: Sequence[str] = ()) -> KernelTree:
    """A user's own kernel: the file ``kernel`` (vmlinuz or vmlinux) and its modules below ``modules_dir``.

    Raises ImageError when the kernel cannot be started, when it lacks modules that the guest needs, and when
    the modules belong to another kernel.
    """
    loaded = load_kernel(kernel)
    directory = ModuleDirectory(modules_dir)
    plan = modules.plan(directory, extra)
    asked = requested.select(directory, plan.boot, plan.names())
    names = dict.fromkeys([*plan.names(), *asked.names()])
    for name in names:
        built_for = directory.kernel_version(name)
        if built_for != loaded.version:
            raise ImageError(
                f"The modules in {modules_dir} are for the kernel {built_for}, but {kernel} is {loaded.version}."
            )
    contents = {name: btf.without_module_types(directory.read(name), name) for name in names}
    vmlinux = btf.without_kernel_types(loaded.vmlinux, kernel)
    return KernelTree(
        loaded.version, vmlinux, plan, asked, contents, files=tuple(directory.file_of(name) for name in contents)
    )


def from_package(package: Package, deb: str, extra: Sequence[str], progress: Callable[[str], None]) -> KernelTree:
    """The kernel in Debian's kernel package ``package``, whose file is ``deb``.

    What is taken from it is kept in the cache: unpacking the whole package takes longer than all else together.
    """
    wanted = (*modules.REQUIRED, "", *modules.BOOT_OPTIONAL, "", *modules.ON_DEMAND, "", *sorted(extra))
    wanted += ("", *requested.DIRECTORIES, "", *requested.NAMES)
    key = hashlib.sha256("\0".join([str(_CACHE_FORMAT), package.sha256, *wanted]).encode()).hexdigest()
    parent = store.ensure_dir(os.path.join(cache_dir(), "guest-kernel"))
    place = os.path.join(parent, key)
    kept = _load(place)
    if kept is not None:
        return kept
    progress(f"unpacking {package.name} {package.version}")
    with store.staging_dir(parent) as staging:
        tree = _unpack(deb, package.name, staging, extra)
    with store.staging_dir(parent) as staging:
        _save(tree, staging)
        store.remove_tree(place)
        os.rename(staging, place)
    _forget_old(parent)
    return tree


def _unpack(deb: str, package: str, root: str, extra: Sequence[str]) -> KernelTree:
    unpack(deb, root, lambda path: path.startswith(("boot/vmlinuz-", "usr/lib/modules/", "usr/share/doc/")))
    kernels = [name for name in _listed(f"{root}/boot") if name.startswith("vmlinuz-")]
    versions = _listed(f"{root}/usr/lib/modules")
    if len(kernels) != 1 or len(versions) != 1:
        raise ImageError(f"The package {package} is not a kernel package: it holds {len(kernels)} kernels.")
    tree = from_files(f"{root}/boot/{kernels[0]}", f"{root}/usr/lib/modules/{versions[0]}", extra)
    return tree._replace(copyright=copyright_text(root, package), files=())


def _listed(directory: str) -> list[str]:
    return os.listdir(directory) if os.path.isdir(directory) else []


def _save(tree: KernelTree, directory: str) -> None:
    about = {"version": tree.version, "plan": tree.plan, "requested": tree.requested, "sha256": tree.sha256()}
    files = {"vmlinux": tree.vmlinux, "copyright": tree.copyright or b"", "tree.json": json.dumps(about).encode()}
    files |= {f"{name}.ko": data for name, data in tree.modules.items()}
    for name, data in files.items():
        store.write_atomic(os.path.join(directory, name), data, 0o644)


def _load(directory: str) -> KernelTree | None:
    """What _save wrote, or None when it is not there or not whole."""
    try:
        about = json.loads(_read(directory, "tree.json"))
        boot, demand, builtin, absent = about["plan"]
        plan = ModulePlan(
            tuple(boot), {name: tuple(chain) for name, chain in demand.items()}, tuple(builtin), tuple(absent)
        )
        needs, aliases = about["requested"]
        asked = Requested(
            {name: tuple(chain) for name, chain in needs.items()}, tuple((pattern, name) for pattern, name in aliases)
        )
        copyright = _read(directory, "copyright") or None
        tree = KernelTree(about["version"], _read(directory, "vmlinux"), plan, asked, {}, copyright)
        tree.modules.update({name: _read(directory, f"{name}.ko") for name in tree.names()})
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    if tree.sha256() != about["sha256"]:
        return None
    os.utime(directory)
    return tree


def _forget_old(parent: str) -> None:
    """Keep the kernels that were used last."""
    entries = sorted(os.scandir(parent), key=lambda entry: entry.stat().st_mtime, reverse=True)
    for entry in entries[_KEEP:]:
        store.remove_tree(entry.path)


def _read(directory: str, name: str) -> bytes:
    with open(os.path.join(directory, name), "rb") as file:
        return file.read()
