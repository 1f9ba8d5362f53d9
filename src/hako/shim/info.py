"""``-v`` and ``-info``: what people and containerd ask about the runtime before they run anything."""

from __future__ import annotations

import sys

from hako.shim.bootstrap_messages import RuntimeInfo, RuntimeVersion
from hako.shim.messages import Any as AnyMessage
from hako.version import __version__
from hako.wire import jsontext

_NAME = "io.containerd.hako.v2"
#: As containerd's own marshalling of Go's type names it (typeurl), for ``ctr`` and CRI.
_FEATURES = "types.containerd.io/opencontainers/runtime-spec/1/features/Features"


def print_version() -> int:
    """Print name and version."""
    sys.stdout.write(f"containerd-shim-hako-v2 version {__version__}\nRuntime: {_NAME}\n")
    sys.stdout.flush()
    return 0


def main() -> int:
    """Print a RuntimeInfo. Its input, options of the runtime, changes nothing of it."""
    from hako.runtime import features

    info = RuntimeInfo(
        name=_NAME,
        version=RuntimeVersion(version=__version__),
        features=AnyMessage(type_url=_FEATURES, value=jsontext.dumps(features.features())),
    )
    sys.stdout.buffer.write(info.encode())
    sys.stdout.flush()
    return 0
