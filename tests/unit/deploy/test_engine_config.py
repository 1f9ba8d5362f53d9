"""The engine's configuration with the handler hako, read by real containerds, and what is left when it is taken out."""

from __future__ import annotations

import os
import stat
import subprocess
from pathlib import Path

import pytest

from deploy.installer import engine_config
from deploy.installer.engine_config import ConfigError, Node
from support.containerd import VERSIONS
from support.nodeconfigs import CONFIGS, NodeConfig

BINARIES = {
    1: os.path.join(VERSIONS["old"], "usr", "bin", "containerd"),
    2: os.path.join(VERSIONS["new"], "usr", "bin", "containerd"),
}


class Tree:
    """A directory with a node's configuration in it. Its paths are real ones, so that containerd can read it."""

    def __init__(self, base: Path, text: str | None, mode: int = 0o640) -> None:
        self.base = base
        self.config = str(base / "etc" / "containerd" / "config.toml")
        self.state = str(base / "state" / "made")
        if text is not None:
            os.makedirs(os.path.dirname(self.config))
            Path(self.config).write_bytes(self.here(text).encode())
            os.chmod(self.config, mode)
        self.before = self.files()

    def here(self, text: str) -> str:
        """``text`` with the paths of this tree."""
        return text.replace("/etc/containerd/", f"{self.base}/etc/containerd/")

    def files(self) -> dict[str, object]:
        """Everything in it, with modes and contents; not the installer's own state."""
        found: dict[str, object] = {}
        for folder, folders, names in os.walk(self.base):
            folders[:] = [name for name in folders if name != "state"]
            found |= {os.path.join(folder, name): None for name in folders}
            for path in (Path(folder, name) for name in names):
                found[str(path)] = (stat.S_IMODE(path.stat().st_mode), path.read_bytes())
        return found

    def add(self, major: int, sandboxer: str = "podsandbox") -> bool:
        node = Node("/", self.state)
        engine_config.add_containerd(node, self.config, major, sandboxer)
        return node.changed

    def remove(self) -> bool:
        node = Node("/", self.state)
        engine_config.remove_containerd(node, self.config)
        return node.changed

    def dump(self, major: int) -> str:
        """What containerd makes of its configuration, with double quotes throughout."""
        argv = [BINARIES[major], "--config", self.config, "config", "dump"]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout.replace("'", '"')


@pytest.mark.parametrize("config", CONFIGS.values(), ids=list(CONFIGS))
def test_the_handler_is_added_and_removed(tmp_path: Path, config: NodeConfig) -> None:
    tree = Tree(tmp_path, config.text)
    assert tree.add(config.major)
    dump = tree.dump(config.major)
    assert ".containerd.runtimes.hako]\n" in dump
    assert 'runtime_type = "io.containerd.hako.v2"' in dump
    for line in config.kept:
        assert line in dump
    with_hako = tree.files()
    if config.untouched:
        assert with_hako[tree.config] == tree.before[tree.config]
    if config.text is not None:
        assert stat.S_IMODE(os.stat(tree.config).st_mode) == 0o640

    assert not tree.add(config.major)
    assert tree.files() == with_hako
    assert tree.remove()
    assert tree.files() == tree.before
    assert not tree.remove()
    assert tree.files() == tree.before


def test_what_others_change_meanwhile_stays(tmp_path: Path) -> None:
    config = CONFIGS["2 with imports"]
    tree = Tree(tmp_path, config.text)
    tree.add(2)
    text = Path(tree.config).read_text()
    Path(tree.config).write_text(f"{text}# a remark\n")
    other = Path(tree.config).parent / "conf.d" / "other.toml"
    other.write_text("version = 3\n")
    tree.remove()
    assert config.text is not None
    assert Path(tree.config).read_text() == f"{tree.here(config.text)}# a remark\n"
    assert os.listdir(other.parent) == ["other.toml"]


def test_a_file_that_was_made_and_then_used_by_others_stays(tmp_path: Path) -> None:
    tree = Tree(tmp_path, None)
    tree.add(2)
    with open(tree.config, "a") as file:
        file.write("oom_score = -1\n")
    tree.remove()
    assert Path(tree.config).read_text() == "version = 3\noom_score = -1\n"


def test_a_new_containerd_gets_a_drop_in_instead_of_the_lines(tmp_path: Path) -> None:
    tree = Tree(tmp_path, CONFIGS["1 of Debian"].text)
    tree.add(1)
    assert tree.add(2)
    assert "hako]" not in Path(tree.config).read_text()
    assert "runtimes.hako]" in tree.dump(2)
    tree.remove()
    assert tree.files() == tree.before


def test_the_pod_is_left_to_the_shim(tmp_path: Path) -> None:
    tree = Tree(tmp_path, CONFIGS["2 with version 3"].text)
    assert tree.add(2, "shim")
    handler = tree.dump(2).split(".containerd.runtimes.hako]\n")[1].split("[plugins")[0]
    assert 'sandboxer = "shim"' in handler
    assert tree.add(2, "podsandbox")
    tree.remove()
    assert tree.files() == tree.before


_OWN = '[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.hako]\nruntime_type = "io.containerd.hako.v2"\n'
REFUSED = {
    "no version": (1, "", "podsandbox", "is of version 1. Convert it"),
    "version 1": (2, "version = 1\n", "podsandbox", "is of version 1"),
    "not a number": (2, 'version = "2"\n', "podsandbox", "is of version 2. Convert"),
    "no TOML": (1, "version = 2\n[plugins\n", "podsandbox", "is not valid TOML"),
    "somebody's handler": (1, f"version = 2\n{_OWN}", "podsandbox", "of somebody else's"),
    "inline tables": (1, "version = 2\nplugins = {}\n", "podsandbox", "is not valid TOML"),
    "imports in quotes": (2, 'version = 3\n"imports" = []\n', "podsandbox", "cannot be added to `imports`"),
    "imports in a text": (
        2,
        'x = """\nimports = [\n"""\nversion = 3\n"imports" = []\n',
        "podsandbox",
        "cannot be added",
    ),
    "too old for the shim": (1, "version = 2\n", "shim", "needs containerd 2"),
    "too old a file for the shim": (2, "version = 2\n", "shim", "of version 3"),
}


@pytest.mark.parametrize(("major", "text", "sandboxer", "said"), REFUSED.values(), ids=list(REFUSED))
def test_what_cannot_be_changed_safely_is_left_alone(
    tmp_path: Path, major: int, text: str, sandboxer: str, said: str
) -> None:
    tree = Tree(tmp_path, text)
    with pytest.raises(ConfigError, match=said):
        tree.add(major, sandboxer)
    assert tree.files() == tree.before


def test_a_link_is_left_alone(tmp_path: Path) -> None:
    tree = Tree(tmp_path, None)
    os.makedirs(os.path.dirname(tree.config))
    os.symlink("/nowhere", tree.config)
    with pytest.raises(ConfigError, match="is a symbolic link"):
        tree.add(1)
    assert os.readlink(tree.config) == "/nowhere"


def test_an_import_in_other_words_keeps_the_drop_in(tmp_path: Path) -> None:
    tree = Tree(tmp_path, CONFIGS["2 with version 3"].text)
    tree.add(2)
    text = Path(tree.config).read_text()
    Path(tree.config).write_text(text.replace(" # written by hako's installer, and removed with it", ""))
    with pytest.raises(ConfigError, match="in words of somebody else's"):
        tree.remove()
    assert "runtimes.hako]" in tree.dump(2)


def test_crio_gets_a_drop_in(tmp_path: Path) -> None:
    (tmp_path / "etc" / "crio").mkdir(parents=True)
    before = Tree(tmp_path, None).before
    root, state = str(tmp_path), str(tmp_path / "state" / "made")
    node = Node(root, state)
    engine_config.add_crio(node)
    assert node.changed
    assert (tmp_path / "etc/crio/crio.conf.d/50-hako.conf").exists()
    again = Node(root, state)
    engine_config.add_crio(again)
    assert not again.changed
    again.remove(engine_config.CRIO_DROP_IN)
    assert again.changed
    assert Tree(tmp_path, None).before == before
