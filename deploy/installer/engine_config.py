"""Makes the runtime handler ``hako`` known to a node's container engine, and takes it out again.

    engine_config.py add containerd --root /host --state FILE --major 2 [--sandboxer shim] [--config PATH]
    engine_config.py add crio --root /host --state FILE
    engine_config.py remove containerd|crio --root /host --state FILE [--config PATH]

It prints ``changed`` or ``unchanged``: whether the engine has to be started again. The state file keeps the paths that
were made, so that what was there before stays. Whatever else the engine's own file says is left as it is, to the byte.

CRI-O reads drop-ins, and so does containerd from 2.0 on, where its config.toml imports them. containerd 1.x replaces
all settings of a plugin by what a drop-in has of them (its issue 7982), so there the lines go into config.toml.
"""

from __future__ import annotations

import argparse
import contextlib
import fnmatch
import json
import os
import re
import sys
import tomllib
from typing import Any

HERE = os.path.dirname(os.path.abspath(__file__))
SNIPPETS = os.path.dirname(HERE)

CONTAINERD_CONFIG = "/etc/containerd/config.toml"
CRIO_DROP_IN = "/etc/crio/crio.conf.d/50-hako.conf"
_RUNTIMES = {
    2: ("plugins", "io.containerd.grpc.v1.cri", "containerd", "runtimes"),
    3: ("plugins", "io.containerd.cri.v1.runtime", "containerd", "runtimes"),
}
_BEGIN = "# >>> hako: written by its installer, and removed with it\n"
_END = "# <<< hako\n"
_BLOCK = re.compile(f"\n?{re.escape(_BEGIN)}.*?{re.escape(_END)}", re.DOTALL)
_IMPORTS = re.compile(r"^[ \t]*imports[ \t]*=[ \t]*\[", re.MULTILINE)


class ConfigError(Exception):
    """A configuration that cannot be changed safely; the text says why, and what to do."""


class Node:
    """The files of a node, with ``root`` before their paths, and what was made among them."""

    def __init__(self, root: str, state: str) -> None:
        self._root = root.rstrip("/")
        self._state = state
        self.changed = False
        self._made: list[str] = []
        with contextlib.suppress(FileNotFoundError), open(state, encoding="utf-8") as file:
            self._made = json.load(file)

    def read(self, path: str) -> str | None:
        """The text of a file, None when there is none. Raises ConfigError for one that is no plain file."""
        real = self._root + path
        if os.path.islink(real):
            raise ConfigError(f"{path} is a symbolic link. Put the runtime handler into the file it leads to by hand.")
        try:
            with open(real, encoding="utf-8", newline="") as file:
                return file.read()
        except FileNotFoundError:
            return None

    def write(self, path: str, text: str) -> None:
        """Replace the file in one step, with its mode and owner, if its text is another one."""
        old = self.read(path)
        if old == text:
            return
        self._make_directory(os.path.dirname(path))
        if old is None:
            self._remember(path)
        real = self._root + path
        temp = f"{real}.hako-new"
        with open(temp, "w", encoding="utf-8", newline="") as file:
            if old is not None:
                info = os.stat(real)
                os.fchown(file.fileno(), info.st_uid, info.st_gid)
                os.fchmod(file.fileno(), info.st_mode & 0o7777)
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temp, real)
        self.changed = True

    def remove(self, path: str) -> None:
        """Remove the file if it is there, and directories that were made for it and are empty."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._root + path)
            self.changed = True
        self._forget(path)
        directory = os.path.dirname(path)
        while directory in self._made:
            try:
                os.rmdir(self._root + directory)
            except OSError:  # there is something else in it
                return
            self._forget(directory)
            directory = os.path.dirname(directory)

    def made(self, path: str) -> bool:
        """Whether the file was made here, and not just changed."""
        return path in self._made

    def _make_directory(self, path: str) -> None:
        if not os.path.isdir(self._root + path):
            self._make_directory(os.path.dirname(path))
            self._remember(path)
            os.mkdir(self._root + path)

    def _remember(self, path: str) -> None:
        if path not in self._made:
            self._save([*self._made, path])

    def _forget(self, path: str) -> None:
        if path in self._made:
            self._save([other for other in self._made if other != path])

    def _save(self, made: list[str]) -> None:
        self._made = made
        os.makedirs(os.path.dirname(self._state), exist_ok=True)
        with open(f"{self._state}.new", "w", encoding="utf-8") as file:
            json.dump(made, file)
        os.replace(f"{self._state}.new", self._state)


def add_containerd(node: Node, config: str, major: int, sandboxer: str) -> None:
    """Make containerd ``major`` know the handler. Raises ConfigError when its file cannot be changed safely."""
    text = node.read(config)
    if text is None:
        text = f"version = {2 if major < 2 else 3}\n"
    drop_in = drop_in_of(config)
    bare = without_ours(text, drop_in)
    settings = parse(bare, config)
    version = version_of(settings, config)
    if "hako" in runtimes_of(settings, version):
        raise ConfigError(f"{config} has a runtime handler hako of somebody else's. Remove it there.")
    if sandboxer == "shim" and (major < 2 or version < 3):
        raise ConfigError(f'sandboxer = "shim" needs containerd 2 and a {config} of version 3.')
    lines = snippet(f"hako-v{version}{'-shim' if sandboxer == 'shim' else ''}.toml")
    if major < 2:
        # 1.x forgets the runc that it knows by itself when its configuration names any runtime.
        tables = [lines] if runtimes_of(settings, version) else [snippet("runc-v2.toml"), lines]
        new = with_block(bare, tables)
        parse(new, config)  # tables may be written in a way that nothing can be added to
        node.write(config, new)
        return
    new = with_import(bare, drop_in, settings, config)
    # First what is imported: containerd does not start with an import that leads nowhere.
    node.write(drop_in, lines)
    node.write(config, new)


def remove_containerd(node: Node, config: str) -> None:
    """Undo add_containerd(). Raises ConfigError when somebody else's line still imports the drop-in."""
    drop_in = drop_in_of(config)
    text = node.read(config)
    if text is not None:
        bare = without_ours(text, drop_in)
        if drop_in in parse(bare, config).get("imports", []):
            raise ConfigError(f"`imports` in {config} names {drop_in} in words of somebody else's. Remove it there.")
        if node.made(config) and re.fullmatch(r"version = [23]\n", bare):
            node.remove(config)
        else:
            node.write(config, bare)
    node.remove(drop_in)


def drop_in_of(config: str) -> str:
    """The path of containerd's drop-in that belongs to ``config``."""
    return os.path.join(os.path.dirname(config), "conf.d", "hako.toml")


def parse(text: str, path: str) -> dict[str, Any]:
    """The settings in ``text``, which is that of ``path``. Raises ConfigError when it is no TOML."""
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not valid TOML: {error}.") from error


def version_of(settings: dict[str, Any], path: str) -> int:
    """The version, 2 or 3, of the tables that fit. Raises ConfigError for a configuration of version 1."""
    version = settings.get("version", 1)
    if type(version) is not int or version < 2:
        raise ConfigError(f"{path} is of version {version}. Convert it with `containerd config migrate` first.")
    # Newer ones are read too: containerd converts older drop-ins, but no newer ones.
    return min(version, 3)


def runtimes_of(settings: dict[str, Any], version: int) -> dict[str, Any]:
    """The runtimes that the configuration names."""
    found: Any = settings
    for key in _RUNTIMES[version]:
        found = found.get(key) if isinstance(found, dict) else None
    return found if isinstance(found, dict) else {}


def snippet(name: str) -> str:
    """The text of a file in deploy/containerd."""
    with open(os.path.join(SNIPPETS, "containerd", name), encoding="utf-8") as file:
        return file.read()


def with_block(text: str, snippets: list[str]) -> str:
    """``text`` with the tables of the snippets at its end, between two lines that say whose they are."""
    # Comment and version come before the first empty line: the file has a version.
    body = "".join(found.partition("\n\n")[2] for found in snippets)
    return f"{text}\n{_BEGIN}{body}{_END}"


def with_import(text: str, drop_in: str, settings: dict[str, Any], path: str) -> str:
    """``text`` importing ``drop_in``; unchanged if it does. Raises ConfigError when that is not possible safely."""
    imports = settings.get("imports", [])
    if any(fnmatch.fnmatchcase(drop_in, os.path.join(os.path.dirname(path), pattern)) for pattern in imports):
        return text
    if "imports" in settings:
        new = _IMPORTS.sub(lambda match: match[0] + _entry(drop_in), text, count=1)
    else:
        new = _line(drop_in) + text  # a first line belongs to no table
    if parse(new, path) != {**settings, "imports": [drop_in, *imports]}:
        raise ConfigError(f"{path} is written in a way that {drop_in} cannot be added to `imports`. Add it by hand.")
    return new


def without_ours(text: str, drop_in: str) -> str:
    """``text`` as it was before anything was added to it."""
    return _BLOCK.sub("", text).replace(_line(drop_in), "").replace(_entry(drop_in), "")


def _line(drop_in: str) -> str:
    return f'imports = ["{drop_in}"] # written by hako\'s installer, and removed with it\n'


def _entry(drop_in: str) -> str:
    return f'"{drop_in}", '


def add_crio(node: Node) -> None:
    """Make CRI-O know the handler."""
    with open(os.path.join(SNIPPETS, "crio", os.path.basename(CRIO_DROP_IN)), encoding="utf-8") as file:
        node.write(CRIO_DROP_IN, file.read())


def main(argv: list[str]) -> int:
    """The command line; 1 and a sentence when the configuration cannot be changed."""
    parser = argparse.ArgumentParser(description="Add the runtime handler hako to an engine, or remove it.")
    parser.add_argument("verb", choices=["add", "remove"])
    parser.add_argument("engine", choices=["containerd", "crio"])
    parser.add_argument("--root", required=True, help="where the node's file system is")
    parser.add_argument("--state", required=True, help="the file that keeps what was made")
    parser.add_argument("--config", default=CONTAINERD_CONFIG, help="containerd's configuration, without the root")
    parser.add_argument("--major", type=int, default=2, help="containerd's version: 1 or 2")
    parser.add_argument("--sandboxer", choices=["podsandbox", "shim"], default="podsandbox")
    asked = parser.parse_args(argv)
    node = Node(asked.root, asked.state)
    try:
        if asked.engine == "crio":
            add_crio(node) if asked.verb == "add" else node.remove(CRIO_DROP_IN)
        elif asked.verb == "add":
            add_containerd(node, asked.config, asked.major, asked.sandboxer)
        else:
            remove_containerd(node, asked.config)
    except (ConfigError, OSError) as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    print("changed" if node.changed else "unchanged")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
