"""The public interface of hako.guestimage: build a guest image, and find, inspect, check and remove those there are.

::

    image = find()          # the default image: image.kernel, image.initrd, image.digest
    image = build(print)    # quick when nothing changed
    image = build(print, kernel="/boot/vmlinuz-6.12", modules_dir="/lib/modules/6.12")
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from hako.errors import ImageError
from hako.guestimage.images import built_at, default_digest, find, inspect, list_images, remove, set_default, verify
from hako.guestimage.manifest import GuestImage

__all__ = [
    "GuestImage",
    "build",
    "built_at",
    "default_digest",
    "find",
    "inspect",
    "list_images",
    "remove",
    "set_default",
    "verify",
]


def build(
    progress: Callable[[str], None],
    *,
    kernel: str | None = None,
    modules_dir: str | None = None,
    extra_modules: Sequence[str] = (),
    refresh: bool = False,
    make_default: bool = True,
) -> GuestImage:
    """Build a guest image from Debian packages, or return the one that was built from the same inputs.

    ``progress`` gets a line of text for each step of a real build. ``kernel`` (a vmlinuz or vmlinux file) with
    ``modules_dir`` (its /lib/modules/VERSION) takes the place of Debian's kernel. ``extra_modules`` are kernel
    modules to carry besides, loaded on demand. ``refresh`` asks the archive for newer packages first, and
    ``make_default`` lets new sandboxes boot the image. Builds at the same time wait for each other.

    Raises ImageError or HostError with one sentence: an unusable kernel, missing modules (named), a package that
    cannot be fetched, a full disk.
    """
    from hako.guestimage import builder

    if modules_dir is not None and kernel is None:
        raise ImageError("A directory of kernel modules was named without the kernel; name both or neither.")
    if kernel is not None and modules_dir is None:
        raise ImageError(
            f"The kernel {kernel} was named without its modules; name their directory too (/lib/modules/VERSION: "
            "its modules.builtin tells what is built in, even if nothing else is there)."
        )
    own = builder.OwnKernel(kernel, modules_dir) if kernel is not None and modules_dir is not None else None
    return builder.build(progress, own_kernel=own, extra=extra_modules, refresh=refresh, make_default=make_default)
