"""Templates on disk: one directory each, complete or not there at all.

<directory>/<key>/manifest.json   what it is, and the checksums of the rest
<directory>/<key>/memory          the guest's memory, packed
<directory>/<key>/state           the state of its devices, QEMU's format
<directory>/<key>/used            touched by each process that loads it
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from typing import Any

from hako import paths, store
from hako.errors import HostError, ImageError, NotFoundError
from hako.named import NamedTuple
from hako.template import identity, memory

#: Largest state that is believed; it is half a megabyte.
_MAX_STATE = 64 << 20
_MANIFEST = "manifest.json"


class Template(NamedTuple):
    """A template on disk."""

    key: str
    path: str
    created_ns: int
    identity: dict[str, Any]  #: see identity.describe
    memory: memory.Packed
    state_size: int
    state_sha256: str

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return self.memory.used + self.state_size

    def describe(self) -> dict[str, Any]:
        """All that is known of it, as JSON."""
        state = {"size": self.state_size, "sha256": self.state_sha256}
        times = {"created_ns": self.created_ns, "used_ns": self.used_ns()}
        head = {"key": self.key, "path": self.path, **times}
        return {**head, "memory": self.memory._asdict(), "state": state, "identity": self.identity}

    def used_ns(self) -> int:
        """When it was last loaded, in nanoseconds since 1970."""
        try:
            return os.stat(os.path.join(self.path, "used")).st_mtime_ns
        except OSError:
            return self.created_ns

    def touch(self) -> None:
        """It is used now."""
        with contextlib.suppress(OSError):
            os.close(os.open(os.path.join(self.path, "used"), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
            os.utime(os.path.join(self.path, "used"))

    def load(self) -> tuple[int, int]:
        """Memory and state in sealed memory files: two descriptors. Raises ImageError when something is damaged."""
        state = self._read_state()
        fd = memory.new("hako-state", len(state))
        try:
            _write(fd, state)
            memory.seal(fd)
            return memory.unpack(os.path.join(self.path, "memory"), self.memory, f"hako-template-{self.key}"), fd
        except BaseException:
            os.close(fd)
            raise

    def check(self) -> None:
        """Raise ImageError unless everything is as it was written."""
        self._read_state()
        memory.check(os.path.join(self.path, "memory"), self.memory)

    def _read_state(self) -> bytes:
        import hashlib

        path = os.path.join(self.path, "state")
        try:
            with open(path, "rb") as file:
                data = file.read(_MAX_STATE)
        except OSError as error:
            raise ImageError(f"The template's state {path} cannot be read: {error.strerror}.") from error
        if hashlib.sha256(data).hexdigest() != self.state_sha256:
            raise ImageError(f"The template's state {path} is damaged: its checksum is another one.")
        return data


def directory(configured: str = "") -> str:
    """Where templates are kept."""
    return configured or os.path.join(paths.data_root(), "templates")


def find(root: str, key: str) -> Template | None:
    """The template ``key``, None when there is none. Raises ImageError when its manifest is damaged."""
    path = os.path.join(root, key)
    if not os.path.isdir(path):
        return None
    raw = store.read_json(os.path.join(path, _MANIFEST))
    template = _parse(key, path, raw)
    if template is None:
        raise ImageError(f"The template {path} is damaged: its manifest cannot be read.")
    return template


def list_all(root: str) -> Iterator[Template]:
    """All templates whose manifests can be read, in no order."""
    for key in names(root):
        with contextlib.suppress(ImageError):
            template = find(root, key)
            if template is not None:
                yield template


def names(root: str) -> list[str]:
    """The keys of all templates, damaged ones too."""
    try:
        entries = os.listdir(root)
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted(name for name in entries if len(name) == identity.KEY_LENGTH and name.isalnum())


def resolve(root: str, prefix: str) -> str:
    """The one key that begins with ``prefix``. Raises NotFoundError."""
    found = [name for name in names(root) if prefix and name.startswith(prefix)]
    if len(found) != 1:
        what = "is not unique" if found else "does not exist"
        raise NotFoundError(f"Template {prefix!r} {what}; see hako template list.")
    return found[0]


def publish(root: str, key: str, what: dict[str, Any], memory_fd: int, state_fd: int) -> Template:
    """Write a template that is complete or not there. Raises HostError when there is no room for it."""
    store.ensure_dir(root, 0o700)
    remove_unfinished(root)
    import hashlib

    state = os.pread(state_fd, os.fstat(state_fd).st_size, 0)
    try:
        with store.staging_dir(root) as staging:
            packed = memory.pack(memory_fd, os.path.join(staging, "memory"))
            store.write_atomic(os.path.join(staging, "state"), state)
            manifest = {
                "key": key,
                "created_ns": time.time_ns(),
                "identity": what,
                "memory": packed._asdict(),
                "state": {"size": len(state), "sha256": hashlib.sha256(state).hexdigest()},
            }
            store.write_json(os.path.join(staging, _MANIFEST), manifest)
            remove(root, key)
            os.rename(staging, os.path.join(root, key))
    except OSError as error:
        raise HostError(f"Cannot keep a template in {root}: {error.strerror}.") from error
    template = find(root, key)
    assert template is not None
    return template


def remove(root: str, key: str) -> None:
    """Remove the template ``key``. VMs that were cloned from it do not mind. Raises HostError."""
    path = os.path.join(root, key)
    # Under another name first: nobody finds half of it.
    doomed = os.path.join(root, f"{store.STAGING_PREFIX}{key}.{os.getpid()}")
    try:
        os.rename(path, doomed)
        store.remove_tree(doomed)
    except FileNotFoundError:
        return
    except OSError as error:
        raise HostError(f"Cannot remove the template {path}: {error.strerror}.") from error


def remove_unfinished(root: str) -> None:
    """What builders and removers that were killed have left. Hold the build lock."""
    for name in os.listdir(root):
        if name.startswith(store.STAGING_PREFIX):
            store.remove_tree(os.path.join(root, name))


def collect(root: str, keep: Template, max_size: int, max_age: float) -> list[str]:
    """Remove templates that were not used for ``max_age`` seconds, that another QEMU or hako made, or that are damaged,
    and the longest unused ones until all fit into ``max_size`` bytes; never ``keep``. Returns what was removed."""
    doomed = []
    room = max_size - keep.size
    others = [template for template in list_all(root) if template.key != keep.key]
    for template in sorted(others, key=Template.used_ns, reverse=True):
        age = time.time() - template.used_ns() / 1e9
        room -= template.size
        if room < 0 or age > max_age or _is_replaced(template, keep):
            doomed.append(template.key)
            room += template.size
    damaged = set(names(root)) - {template.key for template in others} - {keep.key}
    for key in (*doomed, *damaged):
        remove(root, key)
    return [*doomed, *damaged]


def _is_replaced(template: Template, by: Template) -> bool:
    """Whether nothing can be cloned from ``template`` any more, since ``by`` was made."""
    return any(template.identity.get(name) != by.identity[name] for name in ("format", "hako", "protocol", "qemu"))


def _parse(key: str, path: str, raw: dict[str, Any] | None) -> Template | None:
    try:
        # The rest has checksums; what this file itself says is held against the name, which is a digest of it.
        if raw is None or raw["key"] != key or identity.key(raw["identity"]) != key:
            return None
        packed = memory.Packed(int(raw["memory"]["size"]), int(raw["memory"]["used"]), str(raw["memory"]["sha256"]))
        if packed.size != raw["identity"]["memory"]:
            return None
        state = raw["state"]
        return Template(
            key, path, int(raw["created_ns"]), raw["identity"], packed, int(state["size"]), str(state["sha256"])
        )
    except (KeyError, TypeError, ValueError):
        return None


def _write(fd: int, data: bytes) -> None:
    view = memoryview(data)
    done = 0
    while done < len(data):
        done += os.pwrite(fd, view[done:], done)
