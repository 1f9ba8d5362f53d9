"""What ``hako-runtime --version`` prints."""

from __future__ import annotations

from hako.version import __version__

#: The newest version of the OCI runtime specification that is understood.
SPEC_VERSION = "1.2.0"


def text() -> str:
    """Name and version, and the version of the specification. Engines look for the word "version" in a line."""
    return f"hako-runtime version {__version__}\nspec: {SPEC_VERSION}\n"
