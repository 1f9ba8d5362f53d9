"""The help of ``hako-runtime`` and of its verbs, in the shape of runc's."""

from __future__ import annotations

from hako.runtime.verbs import GLOBAL_FLAGS, HELP, VERBS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from hako.runtime.flags import Flag

_ABOUT = """\
NAME:
   hako-runtime - OCI runtime that gives every container its own virtual machine

It is used as runc is: a bundle is a directory with config.json and a root filesystem,

    # hako-runtime run [ -b bundle ] <container-id>

USAGE:
   hako-runtime [global options] command [command options] [arguments...]
"""


def whole() -> str:
    """The help of the command."""
    verbs = [(name, verb.about) for name, verb in VERBS.items() if not verb.refused]
    verbs.append(("help", "show this list, or the help of one command"))
    return f"{_ABOUT}\nCOMMANDS:\n{_columns(verbs)}\nGLOBAL OPTIONS:\n{_columns(_options(GLOBAL_FLAGS))}"


def of_verb(name: str) -> str:
    """The help of the verb ``name``."""
    verb = VERBS[name]
    options = "[command options] " if verb.flags else ""
    text = (
        f"NAME:\n   hako-runtime {name} - {verb.about}\n\nUSAGE:\n   hako-runtime {name} {options}{verb.usage}".rstrip()
    )
    if verb.more:
        text += f"\n\n{verb.more}"
    return f"{text}\n\nOPTIONS:\n{_columns(_options((*verb.flags, HELP)))}"


def _options(flags: Iterable[Flag]) -> Iterator[tuple[str, str]]:
    for flag in flags:
        if not flag.help or flag.refused:
            continue
        value = "" if flag.kind == "bool" else " value"
        short = f", -{flag.short}{value}" if flag.short else ""
        default = f' (default: "{flag.default}")' if flag.kind == "text" and flag.default else ""
        yield f"--{flag.name}{value}{short}", flag.help + default


def _columns(rows: Iterable[tuple[str, str]]) -> str:
    rows = list(rows)
    width = max(len(left) for left, _ in rows)
    return "".join(f"   {left:<{width}}  {right}\n" for left, right in rows)
