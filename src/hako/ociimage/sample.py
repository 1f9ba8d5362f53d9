"""The sample image ``busybox``, made from Debian's busybox-static package, so that trying hako needs no registry."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from typing import TYPE_CHECKING

from hako import arch, paths, proc, store
from hako.errors import HostError, ImageError
from hako.ociimage import index, layout, reference, staging, unpack
from hako.ociimage.index import Image

if TYPE_CHECKING:
    import tarfile

_PACKAGE = "busybox-static"
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_BUSYBOX = "bin/busybox"

_DIRECTORIES = {
    "bin": 0o755,
    "dev": 0o755,
    "etc": 0o755,
    "home": 0o755,
    "home/hako": 0o755,
    "mnt": 0o755,
    "proc": 0o755,
    "root": 0o700,
    "run": 0o755,
    "sbin": 0o755,
    "srv": 0o755,
    "sys": 0o755,
    "tmp": 0o1777,
    "usr": 0o755,
    "usr/bin": 0o755,
    "usr/sbin": 0o755,
    "usr/share": 0o755,
    "usr/share/doc": 0o755,
    f"usr/share/doc/{_PACKAGE}": 0o755,
    "var": 0o755,
    "var/log": 0o755,
    "var/tmp": 0o1777,
}
_FILES = {
    "etc/passwd": (
        "root:x:0:0:root:/root:/bin/sh\n"
        "hako:x:1000:1000:an ordinary user:/home/hako:/bin/sh\n"
        "nobody:x:65534:65534:nobody:/nonexistent:/bin/false\n"
    ),
    "etc/group": "root:x:0:\ntty:x:5:\nusers:x:100:hako\nhako:x:1000:\nnogroup:x:65534:\n",
    "etc/hosts": "127.0.0.1\tlocalhost\n",
    "etc/resolv.conf": "",
    "etc/hostname": "",
}
_OWNED_BY_USER = "home/hako"


def make_sample(name: str = "busybox", progress: Callable[[str], None] | None = None) -> Image:
    """The image ``name`` made from busybox-static, as new as apt knows; made again only for a newer package.

    Raises HostError when the package cannot be fetched, ImageError when it is not what it should be.
    """
    say = progress or (lambda _: None)
    key = reference.parse_name(name).key
    with staging.pull_lock(key):
        present = index.read_names().get(key)
        version = _candidate()
        label = f"{_PACKAGE}={version}"
        if present is not None and (version is None or present.version == label):
            return index.load(present.digest)
        if version is None:
            raise HostError(f"apt knows no package {_PACKAGE}: run apt-get update and try again.")
        with staging.staging() as where:
            store.check_free_space(where, 16 << 20, f"the image {name}")
            say(f"Fetching {_PACKAGE} {version}")
            package = os.path.join(where, "package")
            proc.run(["dpkg-deb", "-x", _download(version), package])
            say(f"Making the image {name}")
            created = _write_layout(where, package, version)
            digest = unpack.install(where, f"{name} ({created})", say)
            with staging.index_lock():
                index.set_name(key, digest, label)
    return index.load(digest)


def _candidate() -> str | None:
    """The newest version of the package that apt could install, or None when it knows none."""
    done = proc.run(["apt-cache", "show", "--no-all-versions", _PACKAGE], check=False, missing="hako needs Debian.")
    for line in done.stdout.decode(errors="replace").splitlines():
        if line.startswith("Version: "):
            return line.removeprefix("Version: ").strip()
    return None


def _download(version: str) -> str:
    """The package file in the cache, fetched when it is not there."""
    cache = store.ensure_dir(os.path.join(paths.cache_dir(), "packages"))
    path = os.path.join(cache, f"{_PACKAGE}_{version.replace(':', '%3a')}_{arch.current().debian}.deb")
    if not os.path.exists(path):
        proc.run(["apt-get", "-qq", "download", f"{_PACKAGE}={version}"], cwd=cache, timeout=300)
    if not os.path.exists(path):
        raise HostError(f"apt-get downloaded {_PACKAGE} {version}, but not as {path}.")
    return path


def _write_layout(where: str, package: str, version: str) -> str:
    """Write the layout of the image into the staging directory; return when the package's program was built."""
    import time

    program = os.path.join(package, _BUSYBOX)
    if not os.path.isfile(program):
        raise ImageError(f"The package {_PACKAGE} {version} holds no /{_BUSYBOX}.")
    # The image is dated by its content: the same package gives the same image, and the same digest.
    built = int(os.stat(program).st_mtime)
    created = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(built))
    tar = os.path.join(where, "root.tar")
    _write_tar(tar, package, built)
    config: dict[str, object] = {
        "Env": [f"PATH={_PATH}"],
        "Cmd": ["sh"],
        "Labels": {"org.opencontainers.image.title": "busybox", "org.opencontainers.image.version": version},
    }
    native = arch.current().oci
    layout.write(
        os.path.join(where, unpack.LAYOUT), tar, config=config, architecture=native, created=created, tag=unpack.TAG
    )
    os.unlink(tar)
    return created


def _write_tar(path: str, package: str, built: int) -> None:
    import tarfile

    program = os.path.join(package, _BUSYBOX)
    applets = proc.run([program, "--list-full"]).stdout.decode().split()
    copyright_file = f"usr/share/doc/{_PACKAGE}/copyright"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for name, mode in _DIRECTORIES.items():
            tar.addfile(_member(name, tarfile.DIRTYPE, mode, built))
        for name in (_BUSYBOX, copyright_file):
            with open(os.path.join(package, name), "rb") as file:
                _add_data(tar, name, file.read(), 0o755 if name == _BUSYBOX else 0o644, built)
        for name, text in _FILES.items():
            _add_data(tar, name, text.encode(), 0o644, built)
        for applet in applets:
            if os.path.dirname(applet) not in _DIRECTORIES or applet == _BUSYBOX:
                continue
            link = _member(applet, tarfile.SYMTYPE, 0o777, built)
            link.linkname = f"/{_BUSYBOX}"
            tar.addfile(link)


def _add_data(tar: tarfile.TarFile, name: str, data: bytes, mode: int, built: int) -> None:
    import tarfile

    member = _member(name, tarfile.REGTYPE, mode, built)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def _member(name: str, kind: bytes, mode: int, built: int) -> tarfile.TarInfo:
    import tarfile

    member = tarfile.TarInfo(name)
    member.type, member.mode, member.mtime = kind, mode, built
    if name == _OWNED_BY_USER:
        member.uid = member.gid = 1000
    return member
