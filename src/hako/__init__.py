"""hako: every container, or every pod, in its own lightweight virtual machine.

Importing this package imports nothing else; the public names are loaded on first use, so that command
lines pay only for what they touch.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from hako.errors import HakoError
    from hako.sandbox.api import Result, Sandbox
    from hako.version import __version__

__all__ = ["HakoError", "Result", "Sandbox", "__version__"]

_HOMES = {
    "HakoError": "hako.errors",
    "Result": "hako.sandbox.api",
    "Sandbox": "hako.sandbox.api",
    "__version__": "hako.version",
}


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'hako' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(home), name)
