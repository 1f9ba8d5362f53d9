"""``hako pull``: fetches container images."""

from __future__ import annotations

from hako.cli import options
from hako.cli.run import progress
from hako.config.load import load
from hako.ociimage import api


def parser() -> options.Parser:
    """The command line of this verb."""
    parser = options.Parser("pull", "Fetch a container image, or a newer one, and print its digest.", "IMAGE...")
    parser.add_argument("images", metavar="IMAGE", nargs="+", help="a name, or the path of an archive or OCI layout")
    return parser


def main(args: list[str]) -> int:
    """Fetch the images."""
    asked = parser().parse_args(args)
    config = load()
    for ref in asked.images:
        image = api.pull(ref, progress, insecure_registries=config.image.insecure_registries)
        print(image.digest, flush=True)
    return 0
