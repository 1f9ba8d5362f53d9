"""``hako images``: lists container images."""

from __future__ import annotations

import time

from hako import units
from hako.cli import options, tables
from hako.ociimage import api


def parser() -> options.Parser:
    """The command line of this verb."""
    parser = options.Parser("images", "List container images.", "[OPTIONS]")
    parser.add_argument("-q", "--quiet", action="store_true", help="digests only")
    parser.add_argument("--no-trunc", action="store_true", help="whole digests")
    return parser


def main(args: list[str]) -> int:
    """Print the list."""
    asked = parser().parse_args(args)
    rows = []
    for image in api.list_images():
        digest = image.digest if asked.no_trunc else image.digest.removeprefix("sha256:")[:12]
        rows += [(name, digest, _age(image.created), units.format_size(image.size)) for name in image.names or ("-",)]
    if asked.quiet:
        for digest in dict.fromkeys(row[1] for row in rows):
            print(digest)
    else:
        print(tables.table(("NAME", "DIGEST", "CREATED", "SIZE"), rows))
    return 0


def _age(created: str) -> str:
    """How old the image says it is; it may say nonsense."""
    import calendar

    try:
        then = calendar.timegm(time.strptime(created[:19], "%Y-%m-%dT%H:%M:%S"))
    except ValueError:
        return "-"
    return f"{tables.duration(time.time() - then)} ago"
