"""The warm pool: sandbox processes without identity, each with an idle clone, for starts that come later.

    <pool>/lock           held by whoever makes warm processes
    <pool>/failed.json    the last failures to make one, for the back-off
    <pool>/<id>/          lock, state.json, warm.sock, warm.log, console.log, shared/

A warm process (warm.py) holds its lock as long as it lives. Whoever starts a sandbox claims it as always and offers
it to a warm process that fits; if none takes it in time, it is started as if there were no pool. The one that takes
it moves its directory into the sandbox's, so that it is in the pool no longer.
"""

from __future__ import annotations

import binascii
import contextlib
import json
import os
import signal
import socket
import stat
import time
from collections.abc import Sequence
from typing import Any

from hako import ids, paths, store
from hako.config.load import apply_annotations
from hako.config.settings import Config
from hako.errors import HakoError
from hako.named import NamedTuple
from hako.sandbox import records
from hako.sandbox.records import STATE_VERSION
from hako.sandbox.spec import SandboxSpec
from hako.sandbox.trace import Trace
from hako.version import __version__

#: What a warm process answers when it has taken a sandbox.
TAKEN = b"taken"
#: Largest message to a warm process; the kernel's limit for one is a little above.
MAX_MESSAGE = 192 << 10

#: Seconds for all warm processes together to answer a start. They do in a few milliseconds.
_ANSWER_SECONDS = 0.25
#: Seconds for one that has begun to take a sandbox to say so.
_COMMITTED_SECONDS = 5.0
#: Memory that a VM has from the start is never more than this: asking for more makes no other clone.
_FIRST_MEMORY = 512 << 20
#: Settings that make a VM another one; sections, and single ones.
_RELEVANT = ("hypervisor.", "guest.", "template.", "share.", "console.", "sandbox.vcpus")


class Entry(NamedTuple):
    """A warm process. ``state`` is what it last wrote; see new_state."""

    id: str
    state: dict[str, Any]

    @property
    def ready(self) -> bool:
        """Whether it can take a sandbox."""
        return self.state.get("status") == "ready"

    @property
    def pid(self) -> int:
        """The process, 0 when it has not said yet."""
        pid = self.state.get("pid")
        return pid if type(pid) is int else 0


def directory() -> str:
    """Where the pool is."""
    return os.path.join(paths.state_root(), "pool")


def entry_dir(warm_id: str) -> str:
    """The directory of one warm process."""
    return os.path.join(directory(), warm_id)


def new_state(warm_id: str) -> dict[str, Any]:
    """What is known of a warm process that is being made."""
    return {"id": warm_id, "status": "starting", "pid": 0, "vm_pid": 0, "key": "", "created_ns": time.time_ns()}


def write(state: dict[str, Any]) -> None:
    """Save the state of a warm process. Raises HostError."""
    store.write_json(os.path.join(entry_dir(state["id"]), "state.json"), state)


# --- who is in it ---


def entries() -> list[Entry]:
    """All warm processes that live, the oldest first; cleans up after those that do not."""
    found = []
    for name in _names():
        if reap(name):
            continue
        state = store.read_json(os.path.join(entry_dir(name), "state.json"))
        if state is None or type(state.get("created_ns")) is not int:
            state = new_state(name)  # it counts, whatever its state is
        found.append(Entry(name, state))
    return sorted(found, key=lambda entry: int(entry.state["created_ns"]))


def _names() -> list[str]:
    try:
        names = os.listdir(directory())
    except FileNotFoundError:
        return []
    return [name for name in names if ids.is_valid(name) and os.path.isdir(entry_dir(name))]


def reap(warm_id: str) -> bool:
    """Clean up after a warm process that died; False when it lives, or has left the pool."""
    path = entry_dir(warm_id)
    try:
        lock = store.lock(os.path.join(path, "lock"), wait=False, create=False)
    except (FileNotFoundError, NotADirectoryError):
        store.remove_tree(path)  # whoever cleaned up before was killed at the very end
        return True
    if lock is None:
        return False
    try:
        # Its VM, and the helper of its share, have died with it.
        store.remove_tree(path)
    finally:
        os.close(lock)
    return True


def clean_up(warm_id: str, *sandboxes: str) -> None:
    """What a warm process that was killed has left, and the sandbox that it may have taken; for its guardian."""
    reap(warm_id)
    for sandbox_id in sandboxes:
        records.reap(sandbox_id)


# --- what fits ---


def key(config: Config, around: list[int]) -> str:
    """What must be the same for a warm process to be of use to whoever asks: settings, versions, surroundings().

    Quick, for each start computes it. What it does not see, such as another accelerator, warm processes notice
    themselves after a while.
    """
    values = {name: value for name, value in config.as_dict().items() if name.startswith(_RELEVANT)}
    what = [__version__, STATE_VERSION, values, min(config.sandbox.memory, _FIRST_MEMORY)]
    what += [_default_image(), _program(config.hypervisor.qemu), around]
    return json.dumps(what, sort_keys=True, separators=(",", ":"))


def _default_image() -> str:
    try:
        return os.readlink(os.path.join(paths.guest_images_dir(), "default"))
    except OSError:
        return ""


def _program(configured: str) -> list[int]:
    """Which QEMU this is. The driver's own way to find it takes a hundred times longer."""
    from hako import arch

    name = configured or arch.current().qemu_binary
    for folder in ("/usr/local/bin", "/usr/bin", "/bin"):
        with contextlib.suppress(OSError):
            status = os.stat(os.path.join(folder, name))
            return [status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns]
    return []


def surroundings() -> list[int]:
    """Where paths lead and packets go. A sandbox process is where its starter is, and so must a warm one be."""
    found: list[int] = []
    for path in ("/", "/proc/self/ns/mnt", "/proc/self/ns/net", "/proc/self/ns/user"):
        status = os.stat(path)
        found += [status.st_dev, status.st_ino]
    return found


def _may_be_warm(spec: SandboxSpec, config: Config) -> bool:
    """Whether warm processes can be right for this sandbox: with the default guest image, and not with too many vCPUs.

    VMs get vCPUs while they run, but never lose any.
    """
    usual = config.template.enabled and not spec.guest_image and not config.guest.kernel
    return usual and config.sandbox.vcpus <= spec.vcpus <= (os.cpu_count() or 1)


# --- starting a sandbox ---


def hand_over(spec: SandboxSpec, config: Config, fds: Sequence[int], trace: Trace) -> bool:
    """Offer a sandbox that has been claimed to a warm process; False when it must be started in the usual way.

    ``fds`` are its lock, control socket and owner's connection; they stay the caller's. Never raises HakoError.
    """
    try:
        own = apply_annotations(config, spec.annotations)
        if not _may_be_warm(spec, own):
            return False
        wanted = key(own, surroundings())
        ready = [name for name in _names() if _is_ready(name, wanted)]
    except (HakoError, OSError):
        return False
    # Those who start at the same time do not all ask the same one first.
    ready.sort(key=lambda name: binascii.crc32(f"{spec.id}{name}".encode()))
    spans = [["pool" if name == "fork" and end is None else name, *rest, end] for name, *rest, end in trace.spans]
    message = {"do": "adopt", "key": wanted, "spec": spec.to_json(), "spans": spans}
    message |= {"values": config.values, "origins": config.origins}
    data = json.dumps(message, separators=(",", ":")).encode()
    deadline = time.monotonic() + _ANSWER_SECONDS
    return len(data) <= MAX_MESSAGE and any(_offer(name, data, fds, deadline) for name in ready)


def _is_ready(warm_id: str, wanted: str) -> bool:
    state = store.read_json(os.path.join(entry_dir(warm_id), "state.json"))
    return state is not None and state.get("status") == "ready" and state.get("key") == wanted


def _offer(warm_id: str, message: bytes, fds: Sequence[int], deadline: float) -> bool:
    """Offer a sandbox to one warm process until ``deadline``; True when that has taken it.

    The byte in a pipe that goes along decides: the sandbox is his who reads it, and there is no second one.
    """
    left = deadline - time.monotonic()
    if left <= 0:
        return False
    token, write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        os.write(write, b"1")
        with connect(warm_id, left) as sock:
            try:
                socket.send_fds(sock, [message], [*fds, token])
                return sock.recv(len(TAKEN)) == TAKEN  # nothing: it refuses, or it has just died
            except TimeoutError:
                if take(token):
                    return False  # it is too slow, and will find that there is nothing to take
                return _committed(sock)
    except OSError:
        return False
    finally:
        os.close(token)
        os.close(write)


def take(token: int) -> bool:
    """Whether the sandbox whose ``token`` this is is the caller's from now on; see _offer()."""
    try:
        return os.read(token, 1) == b"1"
    except BlockingIOError:
        return False


def _committed(sock: socket.socket) -> bool:
    """Wait for the word of a warm process that has taken the sandbox. One that does not say it is killed."""
    sock.settimeout(_COMMITTED_SECONDS)
    try:
        return sock.recv(len(TAKEN)) == TAKEN
    except TimeoutError:
        pid = peer(sock)[0]
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)
        sock.recv(len(TAKEN))
        return False


def connect(warm_id: str, timeout: float) -> socket.socket:
    """A connection to a warm process. Raises OSError."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
    folder = -1
    try:
        sock.settimeout(timeout)
        # Through a descriptor, because a socket's address is limited to 107 bytes.
        folder = os.open(entry_dir(warm_id), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        sock.connect(f"/proc/self/fd/{folder}/warm.sock")
    except BaseException:
        sock.close()
        raise
    finally:
        if folder >= 0:
            os.close(folder)
    return sock


def listen(warm_id: str) -> socket.socket:
    """The socket of a warm process. Raises OSError."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    folder = os.open(entry_dir(warm_id), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        listener.bind(f"/proc/self/fd/{folder}/warm.sock")
        os.chmod(f"/proc/self/fd/{folder}/warm.sock", stat.S_IRUSR | stat.S_IWUSR)
        listener.listen(64)
    except BaseException:
        listener.close()
        raise
    finally:
        os.close(folder)
    return listener


def peer(sock: socket.socket) -> tuple[int, int]:
    """Process and user at the other end."""
    import struct

    pid, uid, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return pid, uid
