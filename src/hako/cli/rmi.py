"""``hako rmi``: removes container images."""

from __future__ import annotations

import os

from hako.cli import options
from hako.errors import HakoError
from hako.ociimage import api
from hako.ociimage.index import image_dir
from hako.sandbox import records


def parser() -> options.Parser:
    """The command line of this verb."""
    parser = options.Parser(
        "rmi", "Take names away from images, and remove images that have none left.", "[-f] IMAGE..."
    )
    parser.add_argument("-f", "--force", action="store_true", help="with a digest: all names of the image")
    parser.add_argument("images", metavar="IMAGE", nargs="+", help="a name, or a digest or its start")
    return parser


def main(args: list[str]) -> int:
    """Remove the images; an error of one does not keep the others from it."""
    from hako.cli.main import complain

    asked = parser().parse_args(args)
    status = 0
    for ref in asked.images:
        try:
            for removed in api.remove(ref, force=asked.force, in_use=in_use):
                print(removed, flush=True)
        except HakoError as error:
            complain(str(error))
            status = error.exit_code
    return status


def in_use(digest: str) -> bool:
    """Whether a container, running or kept, has the image as its lower layer."""
    rootfs = os.path.join(image_dir(digest), "rootfs")
    return any(
        os.path.realpath(record["lower"]) == os.path.realpath(rootfs)
        for state in records.list_states()
        for record in state["containers"].values()
    )
