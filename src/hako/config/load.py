"""From files, annotations and flags to a Config. When there is no configuration file this costs two look-ups."""

from __future__ import annotations

import os

from hako import paths
from hako.config.kinds import ANNOTATION_PREFIX, KATA_PREFIX
from hako.config.settings import SECTIONS, SETTINGS, Config
from hako.errors import ConfigError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


def load(file: str | None = None) -> Config:
    """The configuration in ``file`` (by default hako.paths.config_file()) and the drop-ins beside it.

    The drop-ins are ``config.d/*.toml`` in the file's directory, read in the order of their names; what is read
    later wins. Missing files are fine unless ``$HAKO_CONFIG`` or ``file`` named one. Raises ConfigError.
    """
    named = file is not None or bool(os.environ.get("HAKO_CONFIG"))
    file = file or paths.config_file()
    values: dict[str, object] = {}
    origins: dict[str, str] = {}
    for path in (file, *_drop_ins(file)):
        document = _read_toml(path, must_exist=named and path == file)
        for name, value in _settings_in(document, path):
            values[name] = SETTINGS[name].check(value, f"{path}: {name}")
            origins[name] = path
    return Config(values, origins)


def apply_annotations(config: Config, annotations: Mapping[str, str]) -> Config:
    """``config`` with what the pod's or container's ``annotations`` change.

    Only settings whose row names an annotation can be changed so. Annotations under other prefixes are not
    hako's business. Raises ConfigError for a ``dev.hako.`` annotation that is unknown or has a bad value.
    """
    changes: dict[str, tuple[str, str]] = {}
    ours = {row.annotation: (name, "") for name, row in SETTINGS.items() if row.annotation}
    theirs = {row.kata: (name, row.kata_unit) for name, row in SETTINGS.items() if row.kata}
    for key, value in annotations.items():
        if key.startswith(KATA_PREFIX) and key in theirs:
            name, unit = theirs[key]
            changes.setdefault(name, (_with_unit(str(value), unit), key))
    for key, value in annotations.items():
        if not key.startswith(ANNOTATION_PREFIX):
            continue
        if key not in ours:
            raise _unknown_annotation(key, ours)
        changes[ours[key][0]] = (str(value), key)
    values = {name: SETTINGS[name].parse(text, f"The annotation {key}") for name, (text, key) in changes.items()}
    return _changed(config, values, {name: f"annotation {key}" for name, (_, key) in changes.items()})


def override(config: Config, changes: Mapping[str, str], source: str = "--set") -> Config:
    """``config`` with ``changes`` (full names to texts) that the user gave by ``source``. Raises ConfigError."""
    values = {}
    for name, text in changes.items():
        if name not in SETTINGS:
            raise ConfigError(f"{source}: there is no setting {name!r}{_closest(name, SETTINGS)}.")
        values[name] = SETTINGS[name].parse(text, f"{source}: {name}")
    return _changed(config, values, dict.fromkeys(values, source))


def _changed(config: Config, values: dict[str, object], origins: dict[str, str]) -> Config:
    return Config({**config.values, **values}, {**config.origins, **origins}) if values else config


def _with_unit(text: str, unit: str) -> str:
    return text + unit if unit and text.isdigit() else text


def _unknown_annotation(key: str, known: Iterable[str]) -> ConfigError:
    name = _setting_like(key.removeprefix(ANNOTATION_PREFIX))
    if name:
        return ConfigError(f"The annotation {key} is not allowed: {name} is set in {paths.config_file()} only.")
    return ConfigError(f"The annotation {key} is unknown{_closest(key, known)}.")


def _setting_like(tail: str) -> str:
    """The setting that somebody means who writes ``tail`` as an annotation, if it is one without annotation."""
    wanted = tail.replace("-", "_")
    for name, row in SETTINGS.items():
        if not row.annotation and wanted in (name, name.partition(".")[2], name.replace(".", "_")):
            return name
    return ""


def _drop_ins(file: str) -> list[str]:
    folder = os.path.join(os.path.dirname(file) or ".", "config.d")
    try:
        names = os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise ConfigError(f"Cannot read {folder}: {error.strerror}.") from error
    return [os.path.join(folder, name) for name in sorted(names) if name.endswith(".toml") and name[0] != "."]


def _read_toml(path: str, *, must_exist: bool) -> dict[str, object]:
    try:
        with open(path, "rb") as opened:
            content = opened.read()
    except (FileNotFoundError, NotADirectoryError) as error:
        if must_exist:
            raise ConfigError(f"The configuration file {path} does not exist.") from error
        return {}
    except OSError as error:
        raise ConfigError(f"Cannot read {path}: {error.strerror}.") from error
    if not content.strip():
        return {}
    import tomllib  # 15 ms with the regular expressions it compiles: not for those without a file

    try:
        return tomllib.loads(content.decode())
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not TOML: it is not UTF-8 text.") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not TOML: {error}.") from error


def _settings_in(document: dict[str, object], path: str) -> Iterable[tuple[str, object]]:
    sections = [section.name for section in SECTIONS]
    for section, table in document.items():
        if section not in sections:
            raise _unknown_section(section, table, path, sections)
        if not isinstance(table, dict):
            raise ConfigError(f"{path}: {section} is a section; write [{section}] and its settings below.")
        for key, value in table.items():
            name = f"{section}.{key}"
            if name not in SETTINGS:
                raise ConfigError(f"{path}: there is no setting {name!r}{_closest(name, SETTINGS)}.")
            yield name, value


def _unknown_section(section: str, table: object, path: str, sections: list[str]) -> ConfigError:
    if isinstance(table, dict):
        return ConfigError(f"{path}: there is no section [{section}]{_closest(section, sections)}.")
    homes = [name for name in SETTINGS if name.partition(".")[2] == section]
    hint = f"; write it below [{homes[0].partition('.')[0]}]" if homes else ""
    return ConfigError(f"{path}: {section!r} is outside of any section{hint}.")


def _closest(name: str, known: Iterable[str]) -> str:
    """A hint at the known name most like ``name``: what is after the last dot decides, the rest breaks ties."""
    import difflib

    head, _, tail = name.rpartition(".")
    tails = {}
    for other in sorted(known, key=lambda other: other.startswith(head + ".")):
        tails[other.rpartition(".")[2]] = other
    match = difflib.get_close_matches(tail, tails, n=1, cutoff=0.6)
    return f" (did you mean {tails[match[0]]!r}?)" if match else " (docs/configuration.md lists them all)"
