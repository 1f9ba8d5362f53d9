"""Which cgroup hierarchies the host has, and where a container's cgroup is in each of them.

Three layouts are in use: version 1 has a hierarchy for each controller or for a few of them; the hybrid layout has in
addition version 2's without controllers; the unified layout has version 2's alone.
"""

from __future__ import annotations

import errno
import os
import posixpath

from hako.cgroup import files
from hako.cgroup.path import CgroupPath
from hako.errors import HostError
from hako.named import NamedTuple

MOUNT = "/sys/fs/cgroup"
#: The key of version 2's hierarchy, where version 1's have the name of a controller.
UNIFIED = ""


class Hierarchy(NamedTuple):
    """One mounted hierarchy."""

    mount: str  #: where it is mounted
    own: str  #: this process's cgroup, from there, such as ``/user.slice``


class Host(NamedTuple):
    """The host's hierarchies by controller; those that controllers share are in it several times."""

    hierarchies: dict[str, Hierarchy]

    @property
    def is_unified(self) -> bool:
        """Whether there is version 2 alone."""
        return list(self.hierarchies) == [UNIFIED]

    def directories(self, path: CgroupPath) -> dict[str, str]:
        """The cgroup's directory in each hierarchy.

        A relative path is below this process's own cgroup. With the unified layout it is beside it, because a cgroup
        that has processes cannot give controllers to those below it.
        """
        found = {}
        for controller, (mount, own) in self.hierarchies.items():
            base = posixpath.dirname(own) if self.is_unified else own
            inner = path.path if path.is_absolute else posixpath.join(base, path.path)
            found[controller] = mount + posixpath.normpath(inner)
        return found


def read() -> Host:
    """The hierarchies as this process sees them. Raises HostError when there are none."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        mounts = file.read()
    with open("/proc/self/cgroup", encoding="utf-8", errors="surrogateescape") as file:
        cgroups = file.read()
    host = find(mounts, cgroups)
    if not host.hierarchies:
        raise HostError(f"No cgroup file system is mounted below {MOUNT}; mount it, as every distribution does.")
    return host


def find(mountinfo: str, cgroups: str) -> Host:
    """The hierarchies in the texts of /proc/self/mountinfo and /proc/self/cgroup."""
    own: dict[str, str] = {}
    for line in cgroups.splitlines():
        _, controllers, path = line.split(":", 2)
        own.update(dict.fromkeys(controllers.split(","), path))
    found: dict[str, Hierarchy] = {}
    for line in mountinfo.splitlines():
        fields, _, rest = line.partition(" - ")
        kind, _, options = rest.partition(" ")
        if kind not in ("cgroup", "cgroup2"):
            continue
        root, mount = map(_unescape, fields.split(" ")[3:5])
        if mount != MOUNT and not mount.startswith(MOUNT + "/"):
            continue  # somebody's own
        names = [UNIFIED] if kind == "cgroup2" else options.split(" ")[-1].split(",")
        for name in names:
            if name in own and name not in found:
                found[name] = Hierarchy(mount, _inside(own[name], root))
    return Host(found)


def _inside(path: str, root: str) -> str:
    """The cgroup ``path`` as seen in a mount that shows the hierarchy from ``root`` on."""
    if root != "/" and (path == root or path.startswith(root + "/")):
        path = path[len(root) :] or "/"
    # Outside of the cgroup namespace there is nothing that could be named.
    return "/" if path.startswith("/..") else path


def _unescape(text: str) -> str:
    """mountinfo writes blanks, tabs, line ends and backslashes as three octal digits."""
    head, *pieces = text.split("\\")
    return head + "".join(chr(int(piece[:3], 8)) + piece[3:] for piece in pieces)


def make(mount: str, directory: str) -> list[str]:
    """Make a cgroup and those above it, below ``mount``; return the new ones, outermost first. Raises HostError."""
    made: list[str] = []
    path = mount
    try:
        for name in directory[len(mount) :].strip("/").split("/"):
            _enable_controllers(path)
            parent, path = path, f"{path}/{name}"
            try:
                os.mkdir(path, 0o755)
                made.append(path)
            except FileExistsError:
                pass
            _inherit_cpuset(parent, path)
    except OSError as error:
        remove(made)
        raise HostError(f"Cannot make the cgroup {directory}: {error.strerror}.") from error
    return made


def remove(made: list[str]) -> None:
    """Remove what make() has returned, as far as nothing else has come to use it."""
    for path in reversed(made):
        try:
            os.rmdir(path)
        except OSError:
            return


def _enable_controllers(directory: str) -> None:
    """Give version 2's cgroups below ``directory`` all controllers that it has itself.

    What cannot be given is missed when a limit needs it, and not before.
    """
    available = files.read(directory, "cgroup.controllers").split()
    if not available:
        return
    enabled = files.read(directory, "cgroup.subtree_control").split()
    wanted = ["+" + name for name in available if name not in enabled]
    for value in (" ".join(wanted), *wanted):  # all at once; when that fails, one by one
        if not value:
            return
        try:
            files.write(directory, "cgroup.subtree_control", value)
        except OSError as error:
            if error.errno == errno.EBUSY:
                # It has processes. It would still take some controllers, but then no process could go below it.
                return
            continue
        if value.count("+") == len(wanted):
            return


def _inherit_cpuset(parent: str, directory: str) -> None:
    """A new cpuset of version 1 has no processors and no memory, and takes no process until it has."""
    for name in ("cpuset.cpus", "cpuset.mems"):
        is_version_1 = files.exists(directory, "cgroup.clone_children")
        if is_version_1 and files.exists(directory, name) and not files.read(directory, name):
            files.write(directory, name, files.read(parent, name))
