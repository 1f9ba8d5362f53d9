"""Building a guest image out of Debian packages and hako's own agent.

The inputs are the packages' SHA-256 values (or a user's kernel), the agent's sources and BUILDER below; the
same inputs give the same bytes. Nothing is installed on the host, mounted, or run as another system.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence

from hako import store
from hako.arch import current
from hako.errors import ImageError
from hako.guestimage import agentcode, images, manifest, requested, resolved
from hako.guestimage.agentcode import AgentCode
from hako.guestimage.kerneltree import KernelTree, from_files, from_package
from hako.guestimage.licences import copyright_text, licence_names
from hako.guestimage.manifest import GuestImage
from hako.guestimage.packages import Apt, Package
from hako.guestimage.rootfs import Rootfs, build_rootfs
from hako.named import NamedTuple
from hako.paths import cache_dir, guest_images_dir
from hako.version import __version__

#: Raised with each change of the builder that changes what it makes of the same inputs.
BUILDER = 6
_SPACE = 900 << 20


class OwnKernel(NamedTuple):
    """A user's kernel file and the directory of its modules."""

    kernel: str
    modules_dir: str


class Request(NamedTuple):
    """One build, with everything that its result depends on except the packages."""

    code: AgentCode
    own_kernel: OwnKernel | None
    kernel_sha256: str | None  #: of the user's kernel and modules
    extra: tuple[str, ...]

    def inputs(self, packages: Sequence[Package]) -> str:
        """The digest of all inputs when these are the packages."""
        facts = {
            "builder": BUILDER,
            "manifest": manifest.FORMAT,
            "arch": current().name,
            "hako": __version__,
            "agent": self.code.sha256,
            "kernel": self.kernel_sha256,
            "extra": self.extra,
            "packages": sorted((package.name, package.version, package.sha256) for package in packages),
        }
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def build(
    progress: Callable[[str], None],
    *,
    own_kernel: OwnKernel | None = None,
    extra: Sequence[str] = (),
    refresh: bool = False,
    make_default: bool = True,
    package: str | None = None,
) -> GuestImage:
    """Build the image, or return the one that was built from the same inputs. See api.build for the arguments;
    ``package`` is the directory of the hako package whose agent goes in."""
    code = agentcode.collect(package or agentcode.default_package())
    extra = tuple(sorted(set(extra)))
    request = Request(code, own_kernel, _own_sha256(own_kernel, extra) if own_kernel else None, extra)
    apt = Apt(progress)
    image = None if refresh else _existing(request, apt)
    if image is None:
        lock = os.path.join(store.ensure_dir(guest_images_dir()), ".build.lock")
        with store.locked(lock):
            if refresh:
                apt.update()
            # Whoever held the lock before may have built just this.
            image = _existing(request, apt) or _build(request, apt, progress, make_default=make_default)
    if make_default:
        images.set_default(image)
    return image


def _own_sha256(own: OwnKernel, extra: Sequence[str]) -> str:
    known = resolved.load_own_kernel(*own, extra)
    if known is not None:
        return known
    tree = from_files(own.kernel, own.modules_dir, extra)
    resolved.save_own_kernel(*own, extra, tree.files, tree.sha256())
    return tree.sha256()


def _existing(request: Request, apt: Apt) -> GuestImage | None:
    packages = resolved.load(request.code.imports, apt, own_kernel=request.own_kernel is not None)
    return None if packages is None else images.find_by_inputs(request.inputs(packages))


def _build(request: Request, apt: Apt, progress: Callable[[str], None], *, make_default: bool) -> GuestImage:
    parent = store.ensure_dir(guest_images_dir())
    store.check_free_space(parent, _SPACE, "building a guest image")
    _remove_leftovers(parent)
    kernel, kernel_package, asked = _kernel(request, apt, progress)
    with store.staging_dir(os.path.join(cache_dir(), "build")) as scratch:
        progress("unpacking Python and crun")
        rootfs = build_rootfs(scratch, apt, request.code, kernel, progress)
        packages = [*rootfs.packages, *([kernel_package] if kernel_package else [])]
        packages.sort(key=lambda package: package.name)
        texts = {package.name: copyright_text(rootfs.root, package.name) for package in rootfs.packages}
    if kernel_package:
        texts[kernel_package.name] = kernel.copyright
    with store.staging_dir(parent) as staging:
        contents = {manifest.KERNEL: kernel.vmlinux, manifest.INITRD: rootfs.initrd}
        contents |= {f"{manifest.LICENCES}/{name}": text for name, text in texts.items() if text is not None}
        for name, data in contents.items():
            path = os.path.join(staging, name)
            store.ensure_dir(os.path.dirname(path))
            store.write_atomic(path, data, 0o644)
        carried = _write_requested(os.path.join(staging, manifest.MODULES), kernel, rootfs.modprobe)
        if carried:
            contents[f"{manifest.MODULES}/{manifest.SUMS}"] = carried[manifest.SUMS]
        about = _manifest(request, kernel, rootfs, packages, texts)
        about["requested"] = {"modules": len(kernel.requested.needs), "size": sum(map(len, carried.values()))}
        about["files"] = {name: manifest.describe(data) for name, data in contents.items()}
        image = images.publish(staging, about, make_default=make_default)
    resolved.save(request.code.imports, packages, [*asked, *rootfs.asked], own_kernel=kernel_package is None)
    apt.forget_old(packages)
    progress(f"built guest image {image.digest[:12]} with kernel {image.kernel_version}")
    return image


def _write_requested(directory: str, kernel: KernelTree, modprobe: bytes) -> dict[str, bytes]:
    """Write the modules that the kernel may ask for; return the content of each file."""
    found = requested.files(kernel.requested, kernel.modules, modprobe)
    for name, data in found.items():
        mode = 0o755 if name == requested.MODPROBE else 0o644
        store.write_atomic(os.path.join(store.ensure_dir(directory), name), data, mode)
    return found


def _kernel(
    request: Request, apt: Apt, progress: Callable[[str], None]
) -> tuple[KernelTree, Package | None, list[Package]]:
    """The kernel, the package it is from, and the packages that were asked to find that."""
    if request.own_kernel is not None:
        tree = from_files(*request.own_kernel, request.extra)
        if tree.sha256() != request.kernel_sha256:
            raise ImageError(f"The kernel {request.own_kernel.kernel} or its modules changed meanwhile; try again.")
        return tree, None, []
    meta = apt.get(current().debian_kernel)
    names = [name for name in meta.depends if name.startswith("linux-image-")]
    if len(names) != 1:
        raise ImageError(f"The package {meta.name} {meta.version} does not name one kernel package.")
    package = apt.get(names[0])
    (deb,) = apt.fetch([package])
    return from_package(package, deb, request.extra, progress), package, [meta]


def _manifest(
    request: Request,
    kernel: KernelTree,
    rootfs: Rootfs,
    packages: Sequence[Package],
    texts: dict[str, bytes | None],
) -> dict[str, object]:
    def licences(name: str) -> list[str]:
        text = texts.get(name)
        return licence_names(text) if text is not None else []

    return {
        "format": manifest.FORMAT,
        "form": "initrd",
        "arch": current().name,
        "inputs": request.inputs(packages),
        "kernel": {"version": kernel.version, "from": "file" if request.own_kernel else "package"},
        "modules": {
            "boot": kernel.plan.boot,
            "demand": kernel.plan.demand,
            "builtin": kernel.plan.builtin,
            "absent": kernel.plan.absent,
        },
        "initrd": {"compression": rootfs.compression, "unpacked_size": rootfs.unpacked_size},
        "python": {"version": rootfs.python_version, "modules": rootfs.python_modules},
        "agent": {"version": __version__, "sha256": request.code.sha256, "modules": sorted(request.code.modules)},
        "packages": [
            {"name": p.name, "version": p.version, "sha256": p.sha256, "licences": licences(p.name)} for p in packages
        ],
    }


def _remove_leftovers(parent: str) -> None:
    """Remove what a killed build left; the caller holds the build lock, so no build is under way."""
    for directory in (parent, os.path.join(cache_dir(), "build"), os.path.join(cache_dir(), "guest-kernel")):
        if os.path.isdir(directory):
            for name in os.listdir(directory):
                if name.startswith(".new-"):
                    store.remove_tree(os.path.join(directory, name))
