"""A container's environment: the image's, then the user's, from the command line and from files."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping

from hako.errors import ConfigError

_MAX_FILE = 4 << 20


def name(entry: str) -> str:
    """The variable's name in ``NAME=VALUE`` or ``NAME``."""
    return entry.partition("=")[0]


def merge(base: Iterable[str], extra: Iterable[str], client: Mapping[str, str] | None = None) -> list[str]:
    """``base`` (``NAME=VALUE`` each) overridden by ``extra``; the first place of a variable is kept.

    An entry of ``extra`` without ``=`` takes its value from ``client``, by default this process's environment; when
    it is not set there, the variable is taken out. Raises ConfigError for an entry without a name.
    """
    source = os.environ if client is None else client
    merged = {name(entry): entry for entry in base}
    for entry in extra:
        key = name(entry)
        if not key or "\0" in entry:
            raise ConfigError(f"{entry!r} is not an environment variable: write NAME=VALUE, or NAME to pass yours on.")
        if "=" in entry:
            merged[key] = entry
        elif key in source:
            merged[key] = f"{key}={source[key]}"
        else:
            merged.pop(key, None)
    return list(merged.values())


def defaults(entries: list[str], preset: Iterable[tuple[str, str]]) -> list[str]:
    """``entries`` with those variables of ``preset`` put before them that they do not set."""
    present = {name(entry) for entry in entries}
    return [*(f"{key}={value}" for key, value in preset if key not in present), *entries]


def read_file(path: str) -> list[str]:
    """The entries of an environment file: one a line, ``NAME=VALUE`` or ``NAME``; ``#`` starts a comment line.

    Values are taken as they stand: no quotes, no expansion. Raises ConfigError with the line that is wrong.
    """
    try:
        with open(path, "rb") as file:
            data = file.read(_MAX_FILE + 1)
    except OSError as error:
        raise ConfigError(f"Cannot read the environment file {path}: {error.strerror}.") from error
    if len(data) > _MAX_FILE:
        raise ConfigError(f"The environment file {path} is larger than {_MAX_FILE >> 20} MiB.")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        number = data[: error.start].count(b"\n") + 1
        raise ConfigError(f"{path}, line {number}: is not UTF-8 text.") from None
    entries = []
    for number, raw in enumerate(text.split("\n"), 1):
        line = raw.removesuffix("\r").lstrip()
        if not line or line.startswith("#"):
            continue
        key = name(line)
        if not key or "\0" in line or any(char.isspace() for char in key):
            raise ConfigError(f"{path}, line {number}: {key!r} is not the name of an environment variable.")
        entries.append(line)
    return entries
