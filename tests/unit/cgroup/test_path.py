"""What a cgroupsPath means, and what is refused."""

from __future__ import annotations

import pytest

from hako.cgroup.path import CgroupPath, path_for
from hako.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("/docker/abc", "/docker/abc"),
        ("//docker///abc/", "/docker/abc"),
        ("/docker/./abc", "/docker/abc"),
        ("a/b", "a/b"),
        ("", "box"),
        ("/kubepods/pod1/x..y", "/kubepods/pod1/x..y"),
        ("/has blanks/and: colons", "/has blanks/and: colons"),
        ("/" + "n" * 255, "/" + "n" * 255),
    ],
)
def test_plain_paths(text: str, path: str) -> None:
    assert path_for(text, "box", systemd=False) == CgroupPath(path)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("/docker/../etc", "must not contain '..'"),
        ("../x", "must not contain '..'"),
        ("..", "must not contain '..'"),
        ("/", "must name a cgroup"),
        ("/.", "must name a cgroup"),
        ("/a\0b", "control characters"),
        ("/a\nb", "control characters"),
        ("/a\x7fb", "control characters"),
        ("/" + "n" * 256, "more than 255 bytes"),
        ("/" + "ü" * 128, "more than 255 bytes"),
    ],
)
def test_plain_paths_that_are_refused(text: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason) as caught:
        path_for(text, "box", systemd=False)
    assert "$.linux.cgroupsPath" in str(caught.value)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("text", "path", "unit", "slice_name"),
    [
        ("user.slice:x:y", "/user.slice/x-y.scope", "x-y.scope", "user.slice"),
        ("machine.slice:libpod:abc", "/machine.slice/libpod-abc.scope", "libpod-abc.scope", "machine.slice"),
        (":docker:abc", "/system.slice/docker-abc.scope", "docker-abc.scope", "system.slice"),
        ("", "/system.slice/hako-box.scope", "hako-box.scope", "system.slice"),
        ("a-b-c.slice:p:n", "/a.slice/a-b.slice/a-b-c.slice/p-n.scope", "p-n.scope", "a-b-c.slice"),
        ("-.slice:p:n", "/p-n.scope", "p-n.scope", "-.slice"),
        ("-:p:n", "/p-n.scope", "p-n.scope", "-.slice"),
        ("x.slice::n", "/x.slice/-n.scope", "-n.scope", "x.slice"),
    ],
)
def test_systemd_paths(text: str, path: str, unit: str, slice_name: str) -> None:
    assert path_for(text, "box", systemd=True) == CgroupPath(path, unit, slice_name)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("/docker/abc", "must have systemd's form"),
        ("a:b", "must have systemd's form"),
        ("a.slice:b:c:d", "must have systemd's form"),
        ("a.slice:b:", "must have a name"),
        ("a.slice:b:c.slice", "must name a scope"),
        ("a.slice:../b:c", "must not have '/'"),
        ("a.slice:b:../../c", "must not have '/'"),
        ("../a.slice:b:c", "where a slice"),
        ("a:b:c", "where a slice"),
        ("a--b.slice:b:c", "where a slice"),
        ("a-.slice:b:c", "where a slice"),
        ("-a.slice:b:c", "where a slice"),
        (".slice:b:c", "where a slice"),
        ("a.slice:b:c\n", "control characters"),
        ("a.slice:b:" + "n" * 250, "more than 255 bytes"),
    ],
)
def test_systemd_paths_that_are_refused(text: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        path_for(text, "box", systemd=True)
