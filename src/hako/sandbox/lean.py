"""Loading less: modules that others import in case they are ever needed, which in a sandbox process they hardly are.

A VM waits for what its process loads first. This is for processes of hako's own alone: programs that use the library
have their modules as they are.
"""

from __future__ import annotations

import importlib
import sys
import types

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

#: What asyncio and logging import and use only for coroutines in a debugger's eyes, TLS, or the text of a traceback: a
#: third of what they load.
_LATER = ("inspect", "textwrap", "tokenize", "asyncio.sslproto", "asyncio.staggered")


def load_less() -> None:
    """Have what is imported from now on do without some modules until it uses them, and without ssl for good."""
    _do_without_ssl()
    for name in _LATER:
        sys.modules.setdefault(name, _Later(name))


class _Later(types.ModuleType):
    """Stands for a module that is loaded when something of it is wanted."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)  # the import system asks every module for its __path__ and __spec__
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        module = importlib.import_module(self.__name__)
        self.__dict__.update(module.__dict__)
        return getattr(module, name)


def _do_without_ssl() -> None:
    """Spare what is imported from now on ssl, which it asks for in case somebody wants TLS: 4 ms and 1 MB."""
    ssl: Any = types.ModuleType("ssl")
    ssl.SSLContext = ssl.SSLSocket = type("Unused", (), {})
    ssl.SSLWantReadError = ssl.SSLSyscallError = type("UnusedError", (OSError,), {})
    sys.modules.setdefault("ssl", ssl)
