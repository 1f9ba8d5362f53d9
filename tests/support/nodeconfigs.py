"""Configurations of containerd that nodes may have, each with what of it must still hold with the handler hako."""

from __future__ import annotations

from typing import NamedTuple

_DEBIAN = """\
version = 2

[plugins]
  [plugins."io.containerd.grpc.v1.cri"]
    [plugins."io.containerd.grpc.v1.cri".cni]
      bin_dir = "/usr/lib/cni"
      conf_dir = "/etc/cni/net.d"
  [plugins."io.containerd.internal.v1.opt"]
    path = "/var/lib/containerd"
"""
_RUNTIMES_2 = """\
# of our own
version = 2
[plugins."io.containerd.grpc.v1.cri".cni]
  bin_dir = "/usr/lib/cni"
[plugins."io.containerd.grpc.v1.cri".containerd]
  default_runtime_name = "runc"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes]
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        SystemdCgroup = true"""
_RUNTIMES_3 = """\
version = 3
[plugins.'io.containerd.cri.v1.runtime'.cni]
  bin_dirs = ['/usr/lib/cni']
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
  runtime_type = 'io.containerd.runc.v2'
  [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
    SystemdCgroup = true
"""


class NodeConfig(NamedTuple):
    """A config.toml before hako comes; None where there is no file."""

    #: containerd's major version.
    major: int
    text: str | None
    #: Lines of `containerd config dump` that must be there, whatever quotes they have.
    kept: tuple[str, ...] = ()
    #: Whether config.toml needs no change.
    untouched: bool = False


_CNI, _SYSTEMD = "/usr/lib/cni", "SystemdCgroup = true"
CONFIGS = {
    "1 without a file": NodeConfig(1, None, ("runtimes.runc]",)),
    "1 empty": NodeConfig(1, "version = 2\n", ("runtimes.runc]",)),
    "1 of Debian": NodeConfig(1, _DEBIAN, (_CNI, "runtimes.runc]")),
    "1 with runtimes, no end of line": NodeConfig(1, _RUNTIMES_2, (_CNI, _SYSTEMD)),
    "1 with imports": NodeConfig(1, f"imports = []\n{_DEBIAN}", (_CNI,)),
    "1 with foreign line ends": NodeConfig(1, _RUNTIMES_2.replace("\n", "\r\n"), (_CNI, _SYSTEMD)),
    "2 without a file": NodeConfig(2, None, ("runtimes.runc]",)),
    "2 with version 3": NodeConfig(2, _RUNTIMES_3, (_CNI, _SYSTEMD)),
    "2 with version 2": NodeConfig(2, _RUNTIMES_2, (_CNI, _SYSTEMD)),
    "2 with no imports": NodeConfig(2, f"imports = []\n{_RUNTIMES_3}", (_CNI, _SYSTEMD)),
    "2 with imports": NodeConfig(
        2, f'root = "/x"\n  imports=["/etc/containerd/none-*.toml"]\n{_RUNTIMES_3}', (_CNI, _SYSTEMD)
    ),
    "2 with imports on lines": NodeConfig(
        2, f'imports = [ # ours\n  "/etc/containerd/none-*.toml", # none yet\n]\n{_RUNTIMES_3}', (_CNI, _SYSTEMD)
    ),
    "2 importing conf.d": NodeConfig(
        2, f"imports = ['/etc/containerd/conf.d/*.toml']\n{_RUNTIMES_3}", (_CNI, _SYSTEMD), untouched=True
    ),
    "2 importing conf.d, relative": NodeConfig(
        2, f"imports = ['conf.d/*.toml']\n{_RUNTIMES_3}", (_CNI, _SYSTEMD), untouched=True
    ),
}
