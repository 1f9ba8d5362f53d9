"""``hako image``: guest images, the kernel and initrd that VMs boot."""

from __future__ import annotations

import argparse
import sys

from hako import units
from hako.cli import options, tables
from hako.guestimage import api

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_ABOUT = "Guest images: the kernel and the initrd that the virtual machines boot."
_REF = "a digest or its start, or the directory of an image"


def parser() -> options.Parser:
    """The command line of this verb; ``parse_args().action`` says which of its own verbs."""
    whole = options.Parser("image", _ABOUT, "build|list|inspect|verify|default|remove [OPTIONS]")
    verbs = whole.add_subparsers(
        dest="action", metavar="", parser_class=options.SubParser, prog="hako image", title="verbs"
    )
    build = verbs.add_parser("build", help="build one from Debian's packages, or find that it is up to date")
    build.add_argument("--refresh", action="store_true", help="ask the archive for newer packages first")
    build.add_argument("--kernel", default=None, metavar="FILE", help="a kernel of your own (vmlinuz or vmlinux)")
    build.add_argument("--modules", default=None, metavar="DIR", help="its modules: /lib/modules/VERSION")
    build.add_argument("--module", action="append", default=[], metavar="NAME", help="one more kernel module to carry")
    build.add_argument("--no-default", action="store_true", help="do not make new sandboxes boot it")
    listing = verbs.add_parser("list", help="list them, the newest first")
    listing.add_argument("-q", "--quiet", action="store_true", help="digests only")
    for name, about in (("inspect", "show a manifest, as JSON"), ("verify", "read a whole image and compare it")):
        one = verbs.add_parser(name, help=f"{about} (the default image if none is named)")
        one.add_argument("image", metavar="IMAGE", nargs="?", default=None, help=_REF)
    default = verbs.add_parser("default", help="make new sandboxes boot an image")
    default.add_argument("image", metavar="IMAGE", help=_REF)
    remove = verbs.add_parser("remove", help="remove images; running VMs go on")
    remove.add_argument("-f", "--force", action="store_true", help="also the default one")
    remove.add_argument("images", metavar="IMAGE", nargs="+", help=_REF)
    return whole


def main(args: list[str]) -> int:
    """Do what the second word says."""
    whole = parser()
    asked = whole.parse_args(args)
    if asked.action is None:
        whole.error("image needs a verb: build, list, inspect, verify, default or remove")
    actions: dict[str, Callable[[argparse.Namespace], int]] = {
        "build": _build,
        "list": _list,
        "inspect": _inspect,
        "verify": _verify,
        "default": _default,
        "remove": _remove,
    }
    return actions[asked.action](asked)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _build(asked: argparse.Namespace) -> int:
    image = api.build(
        _say,
        kernel=asked.kernel,
        modules_dir=asked.modules,
        extra_modules=asked.module,
        refresh=asked.refresh,
        make_default=not asked.no_default,
    )
    print(image.digest)
    return 0


def _list(asked: argparse.Namespace) -> int:
    default = api.default_digest()
    images = api.list_images()
    if asked.quiet:
        for image in images:
            print(image.digest)
        return 0
    rows = [
        (
            image.digest[:12],
            image.kernel_version,
            image.form,
            f"{tables.since(int(api.built_at(image) * 1e9))} ago",
            units.format_size(sum(entry["size"] for entry in image.files.values())),
            "yes" if image.digest == default else "",
        )
        for image in images
    ]
    print(tables.table(("DIGEST", "KERNEL", "FORM", "BUILT", "SIZE", "DEFAULT"), rows))
    return 0


def _inspect(asked: argparse.Namespace) -> int:
    import json

    print(json.dumps(api.inspect(asked.image), indent=2))
    return 0


def _verify(asked: argparse.Namespace) -> int:
    image = api.find(asked.image)
    api.verify(image)
    print(image.digest)
    return 0


def _default(asked: argparse.Namespace) -> int:
    image = api.find(asked.image)
    api.set_default(image)
    print(image.digest)
    return 0


def _remove(asked: argparse.Namespace) -> int:
    for name in asked.images:
        print(api.remove(name, force=asked.force), flush=True)
    return 0
