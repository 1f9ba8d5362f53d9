"""Users and groups come from the container's own files, whatever an image has put there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hako.errors import ConfigError, ImageError
from hako.oci import users

PASSWD = """root:x:0:0:root:/root:/bin/sh
# a comment

broken
web:x:33:34:web:/var/www:/bin/false
app:x:1000:1000::/home/app:/bin/sh
1234:x:7:7::/seven:/bin/sh
noid:x:abc:1::/x:/bin/sh
huge:x:99999999999:1::/x:/bin/sh
nohome:x:50:50
"""
GROUP = "root:x:0:\nadm:x:4:app,web\nwheel:x:10:root, app\ngame:x:60:\nbad\nworse:x:y:app\n"


@pytest.fixture
def rootfs(tmp_path: Path) -> str:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/passwd").write_text(PASSWD)
    (tmp_path / "etc/group").write_text(GROUP)
    return str(tmp_path)


@pytest.mark.parametrize(
    ("user", "expected"),
    [
        ("", users.User(0, 0, (0, 10), "/root")),
        ("root", users.User(0, 0, (0, 10), "/root")),
        ("app", users.User(1000, 1000, (4, 10, 1000), "/home/app")),
        ("1000", users.User(1000, 1000, (4, 10, 1000), "/home/app")),
        ("web", users.User(33, 34, (4, 34), "/var/www")),
        ("web:game", users.User(33, 60, (60,), "/var/www")),
        ("app:4", users.User(1000, 4, (4,), "/home/app")),
        ("app:77", users.User(1000, 77, (77,), "/home/app")),
        ("4242", users.User(4242, 0, (0,), "/")),
        ("4242:4243", users.User(4242, 4243, (4243,), "/")),
        ("1234", users.User(7, 7, (7,), "/seven")),  # a name of digits is a name first
        ("nohome", users.User(50, 50, (50,), "/")),
        (":60", users.User(0, 60, (60,), "/root")),
        ("2147483647", users.User(2147483647, 0, (0,), "/")),
    ],
)
def test_users(rootfs: str, user: str, expected: users.User) -> None:
    assert users.resolve(user, rootfs) == expected


@pytest.mark.parametrize(
    ("user", "sentence"),
    [
        ("nobody", "There is no user nobody"),
        ("noid", "There is no user noid"),
        ("huge", "There is no user huge"),
        ("app:staff", "There is no group staff"),
        ("app:", "is not valid"),
        ("a:b:c", "is not valid"),
        ("2147483648", "too large"),
        ("9" * 5000, "too large"),
        ("-1", "There is no user -1"),
    ],
)
def test_users_that_do_not_exist(rootfs: str, user: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        users.resolve(user, rootfs)


def test_no_files_leave_numbers_only(tmp_path: Path) -> None:
    assert users.resolve("5:6", str(tmp_path)) == users.User(5, 6, (6,), "/")
    assert users.resolve("5", "") == users.User(5, 0, (0,), "/")
    with pytest.raises(ConfigError, match="no user app"):
        users.resolve("app", str(tmp_path))


def test_a_link_stays_inside_the_root(tmp_path: Path, rootfs: str) -> None:
    os.rename(f"{rootfs}/etc/passwd", f"{rootfs}/passwd")
    os.symlink("/passwd", f"{rootfs}/etc/passwd")
    assert users.resolve("web", rootfs).uid == 33
    os.unlink(f"{rootfs}/etc/passwd")
    os.symlink("../../../../../../../../etc/shadow", f"{rootfs}/etc/passwd")
    with pytest.raises(ConfigError, match="no user web"):
        users.resolve("web", rootfs)


def test_what_is_not_a_file_is_not_opened(rootfs: str) -> None:
    os.unlink(f"{rootfs}/etc/passwd")
    os.mkfifo(f"{rootfs}/etc/passwd")  # opening it would wait forever
    with pytest.raises(ImageError, match="not an ordinary file"):
        users.resolve("web", rootfs)


def test_an_endless_file_is_not_read(rootfs: str) -> None:
    with open(f"{rootfs}/etc/passwd", "wb") as file:
        file.truncate(users.MAX_FILE + 1)
    with pytest.raises(ImageError, match="larger than 1 MiB"):
        users.resolve("web", rootfs)


def test_bytes_that_are_no_text_do_not_matter(rootfs: str) -> None:
    Path(f"{rootfs}/etc/passwd").write_bytes(b"\xff\xfe:x:1:1::/\n" + b"ok:x:2:3::/home/a\0b:/bin/sh\n")
    assert users.resolve("ok", rootfs) == users.User(2, 3, (3,), "/")
