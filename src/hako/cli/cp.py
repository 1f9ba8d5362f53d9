"""``hako cp``: copies files between a container and the host."""

from __future__ import annotations

import os
import sys

from hako.cli import containers, options
from hako.cli.main import complain
from hako.errors import ConfigError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from hako.cli.copying import Destination, Place, Source


def parser() -> options.Parser:
    """The command line of this verb."""
    about = (
        "Copy files or directories between a container, running or stopped, and the host. Modes, times and links are "
        "kept, and owners when root does it; files that come to the host lose set-user-id bits. DIRECTORY/. means "
        "what is in the directory; - is a tar archive on standard input or output."
    )
    usage = "[-L] CONTAINER:SOURCE DESTINATION|-\n       hako cp [-L] SOURCE|- CONTAINER:DESTINATION"
    parser = options.Parser("cp", about, usage)
    parser.add_argument("-L", "--follow-link", action="store_true", help="copy what SOURCE links to, not the link")
    parser.add_argument(
        "-a", "--archive", action="store_true", help="accepted for docker's sake: owners are kept always"
    )
    parser.add_argument("source", metavar="SOURCE")
    parser.add_argument("destination", metavar="DESTINATION")
    return parser


def split(text: str) -> tuple[str, str]:
    """Container and path of an argument; the container is empty for a path of the host."""
    if text.startswith(("/", ".")) or text == "-":
        return "", text
    container, colon, path = text.partition(":")
    # A slash before the colon: a path such as dir/a:b, or SANDBOX/CONTAINER.
    return (container, path) if colon else ("", text)


def main(args: list[str]) -> int:
    """Copy."""
    asked = parser().parse_args(args)
    (from_container, source), (to_container, destination) = split(asked.source), split(asked.destination)
    if bool(from_container) == bool(to_container):
        raise ConfigError(
            "One of the two paths must be CONTAINER:PATH and the other one of the host; see hako cp --help."
        )
    if not source or not destination:
        raise ConfigError("There is no path after the container's name; see hako cp --help.")
    target = containers.find_container(from_container or to_container)
    skipped: list[str] = []
    if from_container:
        _copy_out(target, source, destination, follow=asked.follow_link, skipped=skipped)
    else:
        _copy_in(target, source, destination, follow=asked.follow_link, skipped=skipped)
    for path in skipped:
        complain(f"{path} was left out: it is neither a file nor a directory nor a link.")
    return 0


def _copy_out(target: containers.Target, source: str, destination: str, *, follow: bool, skipped: list[str]) -> None:
    from hako.cli import containerfs, copying, copytree

    here = copying.Place()
    if destination == "-":
        if os.isatty(1):
            raise ConfigError("An archive is not for the terminal: redirect standard output to a file or a program.")
        from hako.cli import copytar

        found = _find_inside(containerfs.ContainerPlace(target), source, follow=follow)
        entries = copytree.read_tree(found.parent, found.name, skipped.append)
        copytar.write_tar(entries, sys.stdout.buffer, found.base.strip(".") or ".")
        return
    # Before the container's mounts are entered: paths of the host mean what they mean to the caller.
    to = copying.find_destination(here, destination)
    found = _find_inside(containerfs.ContainerPlace(target), source, follow=follow)
    _copy(found, to, here, destination, skipped)


def _copy_in(target: containers.Target, source: str, destination: str, *, follow: bool, skipped: list[str]) -> None:
    from hako.cli import containerfs, copying, copytree

    found = None if source == "-" else copying.find_source(copying.Place(), source, follow=follow)
    if found is None:
        from hako.cli import copytar  # before the mounts change under the interpreter
    inside = containerfs.ContainerPlace(target)
    to = copying.find_destination(inside, _absolute(destination))
    shown = inside.describe(destination)
    if found is not None:
        _copy(found, to, inside, shown, skipped)
    elif to.name:
        raise ConfigError(f"Cannot unpack an archive to {shown}: there is no such directory.")
    else:
        copytree.copy(copytar.read_tar(sys.stdin.buffer, skipped), copytree.TreeWriter(to.parent, "."), shown)


def _find_inside(inside: Place, path: str, *, follow: bool) -> Source:
    from hako.cli import copying

    return copying.find_source(inside, _absolute(path), follow=follow)


def _absolute(path: str) -> str:
    """Paths in a container count from its root."""
    return path if path.startswith("/") else f"/{path}"


def _copy(source: Source, to: Destination, place: Place, shown: str, skipped: list[str]) -> None:
    from hako.cli import copying

    copying.copy_path(source, to, place, shown, skipped.append)
