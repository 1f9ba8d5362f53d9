"""Volumes as a kubelet has them: directories of the node, memory, configuration that changes, single files."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from support import cri_messages as m
from support.engines import differs
from support.machine import until
from support.pods import Ctr, Node, Pod, either

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

#: How soon a container sees what has changed on the node, in seconds.
_SOON = 5.0
_MIB = 1 << 20

MEMORY = differs(
    "an emptyDir with `medium: Memory`",
    runc="the host's tmpfs",
    hako="a tmpfs of the same size in the guest, common to the pod's containers; the host's stays empty",
    why="the pod's memory is the VM's",
)


def mount(source: str, path: str = "/volume", **options: object) -> m.Mount:
    return m.Mount(container_path=path, host_path=source, **options)


class Projected:
    """A ConfigMap, Secret or projected volume, which a kubelet changes as a whole by moving one link.

    Source: kubernetes, pkg/volume/util/atomic_writer.go.
    """

    def __init__(self, directory: str) -> None:
        self.directory = directory
        self._version = 0

    def write(self, **files: str) -> None:
        """Make these the files of the volume; ``__`` stands for a dot in a name."""
        self._version += 1
        folder = f"..2026_11_26_{self._version:02}"
        os.mkdir(f"{self.directory}/{folder}")
        names = {name.replace("__", "."): text for name, text in files.items()}
        for name, text in names.items():
            Path(self.directory, folder, name).write_text(text)
        link = f"{self.directory}/..data"
        former = os.readlink(link) if os.path.islink(link) else ""
        os.symlink(folder, f"{link}_tmp")
        os.rename(f"{link}_tmp", link)
        for name in names:
            if not os.path.islink(f"{self.directory}/{name}"):
                os.symlink(f"..data/{name}", f"{self.directory}/{name}")
        if former:
            for name in os.listdir(f"{self.directory}/{former}"):
                os.unlink(f"{self.directory}/{former}/{name}")
                if name not in names:
                    os.unlink(f"{self.directory}/{name}")
            os.rmdir(f"{self.directory}/{former}")


def until_sees(container: Ctr, script: str, wanted: str) -> None:
    """A container sees ``wanted`` soon."""
    until(lambda: container.exec("sh", "-c", script).stdout.decode() == wanted, f"{script} says {wanted!r}", _SOON)


def test_empty_directory(pod: Pod) -> None:
    """It is common to the containers of the pod, outlives each of them, and keeps owners and modes."""
    source = pod.volume("empty-dir", "scratch")
    writer = pod.start("writer", mounts=[mount(source)], run_as_user=1000, run_as_group=1000)
    reader = pod.start("reader", mounts=[mount(source, "/elsewhere", readonly=True)])
    writer.sh("echo written >/volume/file; chmod 640 /volume/file; ln -s file /volume/link; mkdir /volume/d")
    assert reader.sh("cat /elsewhere/link; stat -c '%u %g %a' /elsewhere/file") == "written\n1000 1000 640"
    assert reader.exec("touch", "/elsewhere/x").exit_code == 1
    writer.stop()
    writer.remove()
    assert Path(source, "file").read_text() == "written\n"
    assert os.stat(f"{source}/file").st_uid == 1000
    Path(source, "from-the-node").write_text("here\n")
    until_sees(reader, "cat /elsewhere/from-the-node", "here\n")
    reader.stop()
    reader.remove()


def test_memory(node: Node, handler: str, pod: Pod) -> None:
    source = pod.memory_volume("empty-dir", "memory", size="16m")
    one = pod.start("one", mounts=[mount(source)])
    two = pod.start("two", mounts=[mount(source, "/other")])
    assert "tmpfs" in one.sh("grep ' /volume ' /proc/mounts").split()
    one.sh("echo written >/volume/file")
    assert two.sh("cat /other/file") == "written"
    assert os.listdir(node.path(source)) == either(handler, MEMORY, runc=["file"], hako=[])
    # The limit is the volume's, whoever fills it.
    assert 15 * _MIB < int(two.sh("df -k /other | awk 'NR == 2 {print $2}'")) << 10 <= 16 * _MIB
    assert one.exec("sh", "-c", f"head -c {10 * _MIB} /dev/zero >/volume/big").exit_code == 0
    assert two.exec("sh", "-c", f"head -c {10 * _MIB} /dev/zero >/other/more").exit_code == 1
    assert int(two.sh("stat -c %s /other/more; rm /other/more")) < 6 * _MIB
    # It outlives a container that is made again.
    one.stop()
    one.remove()
    again = pod.start("one", mounts=[mount(source)], attempt=1)
    assert again.sh("cat /volume/file; stat -c %s /volume/big") == f"written\n{10 * _MIB}"
    for made in (again, two):
        made.stop()
        made.remove()


def test_memory_without_a_limit(pod: Pod) -> None:
    source = pod.memory_volume("empty-dir", "unlimited")
    made = pod.start("main", mounts=[mount(source)])
    assert made.sh(f"head -c {20 * _MIB} /dev/zero >/volume/big; stat -c '%s %a' /volume /volume/big").endswith(" 644")
    made.stop()
    made.remove()


@pytest.mark.parametrize("kind", ["configmap", "secret", "projected"])
def test_configuration(node: Node, pod: Pod, kind: str) -> None:
    """What changes is seen within seconds, all files at once. Secrets and projected volumes are memory on the node."""
    in_memory = kind != "configmap"
    source = pod.memory_volume(kind, "settings") if in_memory else pod.volume(kind, "settings")
    volume = Projected(node.path(source) if in_memory else source)
    volume.write(color="red", app__conf="size = 1\n")
    made = pod.start("main", mounts=[mount(source, readonly=True)])
    look = "cd /volume; cat color app.conf; ls"
    assert made.sh(look) == "redsize = 1\napp.conf\ncolor"
    started = time.monotonic()
    volume.write(color="green", app__conf="size = 2\n", new="more")
    until_sees(made, look, "greensize = 2\napp.conf\ncolor\nnew\n")
    assert time.monotonic() - started < _SOON
    volume.write(color="blue", app__conf="size = 3\n")
    until_sees(made, look, "bluesize = 3\napp.conf\ncolor\n")
    assert made.exec("touch", "/volume/x").exit_code == 1
    made.stop()
    made.remove()


def test_configuration_is_whole(pod: Pod) -> None:
    """A reader never sees a file of one version beside one of another through one link."""
    source = pod.volume("configmap", "whole")
    volume = Projected(source)
    volume.write(one="0", two="0")
    script = "while :; do cd /volume/..data; echo $(cat one 2>/dev/null) $(cat two 2>/dev/null); cd /; sleep 0.02; done"
    made = pod.start("main", "sh", "-c", script, mounts=[mount(source)])
    made.until_logged("0 0\n")
    for number in range(1, 21):
        volume.write(one=str(number), two=str(number))
        time.sleep(0.05)
    until(lambda: made.text().endswith("20 20\n"), "the last version", _SOON)
    # A directory that is gone has nothing in it, which is no mixture.
    seen = [line.split() for line in made.text().splitlines()]
    assert [words for words in seen if len(words) == 2 and words[0] != words[1]] == []
    made.stop()
    made.remove()


def test_single_file_and_directory_of_a_volume(pod: Pod) -> None:
    """subPath: a file or a directory out of a volume; a file stays the one that it was."""
    source = pod.volume("configmap", "parts")
    Projected(source).write(color="red")
    Path(source, "sub").mkdir()
    Path(source, "sub", "inner").write_text("inner\n")
    # A kubelet binds the file itself, see doBindSubPath in pkg/volume/util/subpath.
    mounts = [mount(f"{source}/..data/color", "/etc/color", readonly=True), mount(f"{source}/sub", "/sub")]
    made = pod.start("main", mounts=mounts)
    assert made.sh("cat /etc/color; ls /sub; cat /sub/inner; ls /etc").startswith("redinner\ninner\n")
    made.sh("echo more >/sub/inner; echo new >/sub/new")
    assert Path(source, "sub", "inner").read_text() == "more\n"
    assert made.exec("sh", "-c", "echo x >/etc/color").exit_code == 1
    made.stop()
    made.remove()


def test_directory_and_file_of_the_node(pod: Pod, tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "f").write_text("first\n")
    mounts = [mount(str(tmp_path / name), f"/{name}") for name in ("d", "f")]
    mounts.append(mount(str(tmp_path), "/ro", readonly=True))
    made = pod.start("main", mounts=mounts)
    made.sh("echo new >/d/new; echo second >>/f")
    assert (tmp_path / "d" / "new").read_text() == "new\n"
    assert (tmp_path / "f").read_text() == "first\nsecond\n"
    with open(tmp_path / "f", "a", encoding="ascii") as file:
        file.write("third\n")
    until_sees(made, "cat /f", "first\nsecond\nthird\n")
    assert made.sh("cat /ro/d/new") == "new"
    assert made.exec("touch", "/ro/x").exit_code == 1
    made.stop()
    made.remove()


def test_mount_that_comes_later(node: Node, pod: Pod) -> None:
    """mountPropagation HostToContainer: what the node mounts below a volume appears in it."""
    source = pod.volume("host-path", "propagated")
    os.mkdir(f"{source}/below")
    made = pod.start("main", mounts=[mount(source, propagation=m.HOST_TO_CONTAINER)])
    assert made.sh("ls /volume/below") == ""
    node.machine.output("mount", "-t", "tmpfs", "tmpfs", f"{source}/below")
    Path(node.path(f"{source}/below/file")).write_text("mounted\n")
    until_sees(made, "cat /volume/below/file", "mounted\n")
    made.stop()
    made.remove()


def test_missing_source(pod: Pod, tmp_path: Path) -> None:
    """containerd makes a directory where there is nothing, as Docker did."""
    made = pod.start("main", mounts=[mount(str(tmp_path / "missing"))])
    made.sh("touch /volume/file")
    assert (tmp_path / "missing" / "file").exists()
    made.stop()
    made.remove()
