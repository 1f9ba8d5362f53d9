"""Where a shim is found: by containerd at a socket, by hako as a sandbox. Both names follow from what containerd says.

A pod's further containers find the pod's shim that way, and ``delete`` what a shim that was killed has left.
"""

from __future__ import annotations

import errno
import os

from hako import digests
from hako.errors import HostError
from hako.wire import jsontext

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket

    from hako.shim.call import Call

_SOCKETS = "/run/containerd/s"
_PREFIX = "unix://"
#: A UNIX socket's address is that long at most.
_MAX_PATH = 106
_BACKLOG = 128
_ADDRESS_FILE, _CONFIG_FILE = "address", "config.json"
_MAX_CONFIG = 16 << 20


def _digest(call: Call, container_id: str) -> str:
    return digests.of(os.path.join(call.address, call.namespace, container_id).encode())


def sandbox_id(call: Call, container_id: str) -> str:
    """hako's id of the sandbox that containerd's container ``container_id`` has made."""
    return _digest(call, container_id)[:32]


def address(call: Call, container_id: str, directory: str = "") -> str:
    """The address of that container's shim, as containerd dials it; ``directory`` is where containerd wants it."""
    path = os.path.join(directory or _SOCKETS, _digest(call, container_id))
    if len(os.fsencode(path)) > _MAX_PATH:
        raise HostError(f"The directory {directory} for the shim's socket has too long a name; choose a shorter one.")
    return _PREFIX + path


def listen(at: str) -> socket.socket:
    """A listening socket at the address ``at``, in place of one where nobody listens any more. Raises HostError."""
    import socket

    path = at.removeprefix(_PREFIX)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        os.makedirs(os.path.dirname(path), mode=0o711, exist_ok=True)
        try:
            listener.bind(path)
        except OSError as error:
            if error.errno != errno.EADDRINUSE or answers(at):
                raise
            os.unlink(path)
            listener.bind(path)
        os.chmod(path, 0o600)
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise HostError(f"Cannot listen at {path} for containerd: {error.strerror}.") from error
    return listener


def answers(at: str) -> bool:
    """Whether somebody listens at the address ``at``."""
    import socket

    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as sock:
        try:
            sock.connect(at.removeprefix(_PREFIX))
        except OSError:
            return False
    return True


def forget(at: str) -> None:
    """Remove the socket at the address ``at``, if there is one."""
    if at.startswith(_PREFIX):
        try:
            os.unlink(at.removeprefix(_PREFIX))
        except OSError:
            return


def write_address(bundle: str, at: str) -> None:
    """Write the address where CRI-O, and people, look for it. Raises HostError."""
    from hako import store

    store.write_atomic(os.path.join(bundle, _ADDRESS_FILE), at.encode(), 0o600)


def read_address(bundle: str) -> str:
    """What write_address() has written; empty when it has not."""
    try:
        with open(os.path.join(bundle, _ADDRESS_FILE), encoding="utf-8") as file:
            return file.read(4096).strip()
    except (OSError, ValueError):
        return ""


def has_config(bundle: str) -> bool:
    """Whether there is a config.json in the bundle."""
    return os.path.exists(os.path.join(bundle, _CONFIG_FILE))


def annotations_of(bundle: str) -> dict[str, str]:
    """Those of the bundle's config.json, unchecked; none where there is no such file, or no such thing in it."""
    try:
        with open(os.path.join(bundle, _CONFIG_FILE), "rb") as file:
            spec = jsontext.loads(file.read(_MAX_CONFIG))
    except (OSError, ValueError, RecursionError):
        return {}
    found = spec.get("annotations") if isinstance(spec, dict) else None
    return {key: value for key, value in found.items() if isinstance(value, str)} if isinstance(found, dict) else {}
