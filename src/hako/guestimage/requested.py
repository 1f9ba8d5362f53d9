"""Kernel modules that the guest's kernel asks for by itself (request_module), and the tables that say which they are.

They are not in the initrd, where they would take memory in each VM. An image has them in a directory of its own, which
the guest sees in its share of the host's files:

    modules/
        modprobe          what the kernel calls with the name of what it wants: busybox
        modules.dep       NAME.ko: what it needs, the last to be loaded first   (depmod's format, modules.dep(5))
        modules.alias     alias PATTERN NAME
        NAME.ko
        SHA256SUMS        of the files above, as sha256sum(1) prints it

Only modules of these lists can be loaded, whatever is asked for.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping

from hako.errors import ImageError
from hako.guestimage.manifest import SUMS
from hako.guestimage.modules import ModuleDirectory, canonical, load_order
from hako.named import NamedTuple

#: Where the guest has the directory (see storage/tree.py).
GUEST_DIRECTORY = "/run/hako/shares/shared/.modules"
MODPROBE = "modprobe"

#: Everything below these directories of the kernel's tree.
DIRECTORIES = (
    "net/netfilter",  # nf_tables, xt_*, conntrack, NAT, ipset, ip_vs
    "net/ipv4/netfilter",
    "net/ipv6/netfilter",
    "net/bridge",
    "net/sched",  # qdiscs, classifiers, actions
    "net/8021q",
    "net/xfrm",
)
NAMES = (
    # Interfaces.
    *("veth", "dummy", "vxlan", "geneve", "macvlan", "macvtap", "ipvlan", "ipvtap", "ifb", "tun", "bonding", "vrf"),
    *("wireguard", "nlmon", "ip_gre", "ip6_gre", "ipip", "sit", "ip6_tunnel", "ip_vti", "ip6_vti", "fou", "fou6"),
    # IPsec, with the ciphers that are made for it.
    *("esp4", "esp6", "ah4", "ah6", "xfrm4_tunnel", "xfrm6_tunnel", "af_key"),
    *("authenc", "echainiv", "seqiv", "gcm", "cbc", "ctr", "ghash_generic", "chacha20poly1305", "drbg"),
    *("jitterentropy_rng", "hmac", "sha1_generic", "sha256_generic", "sha512_generic"),
    # Sockets: what ss(8) asks, congestion control, TLS, SCTP.
    *("tcp_diag", "udp_diag", "raw_diag", "unix_diag", "netlink_diag", "af_packet_diag", "sctp", "sctp_diag", "tls"),
    *("tcp_bbr", "tcp_dctcp", "tcp_htcp", "tcp_vegas", "tcp_westwood", "tcp_illinois"),
    # File systems, and what they are on.
    *("overlay", "fuse", "ext4", "xfs", "btrfs", "squashfs", "erofs", "isofs", "udf", "vfat", "exfat", "binfmt_misc"),
    *("nfs", "nfsv3", "nfsv4", "nls_cp437", "nls_ascii", "nls_utf8", "nls_iso8859-1", "loop"),
)


class Requested(NamedTuple):
    """The modules of an image that the kernel may ask for: what each needs, in load order, and their other names."""

    needs: Mapping[str, tuple[str, ...]]  #: without what is loaded at boot
    aliases: tuple[tuple[str, str], ...]  #: pattern (fnmatch), module

    def names(self) -> list[str]:
        """Every module, sorted."""
        return sorted(self.needs)


def select(directory: ModuleDirectory, loaded: Iterable[str], extra: Iterable[str] = ()) -> Requested:
    """Which modules of ``directory`` the kernel may ask for: the lists above and ``extra``, with all they need.

    ``loaded`` are those that are loaded at boot. What the kernel does not have, or has in itself, is left out.
    """
    present = [canonical(name) for name in (*NAMES, *extra) if directory.info(name) is not None]
    wanted = sorted({*present, *directory.below(DIRECTORIES)} - set(loaded))
    inside = {*directory.builtin, *loaded}
    needs: dict[str, tuple[str, ...]] = {}
    while wanted:
        name = wanted.pop()
        if name in needs:
            continue
        try:
            order = load_order([name], directory.info, directory.resolve, inside)
        except ImageError:  # a kernel of the user's that is not complete
            continue
        # What only wishes to be loaded after it is asked for by itself.
        needs[name] = tuple(order[: order.index(name)])
        wanted += [step for step in order if step not in needs]
    names = sorted(needs)
    aliases = [(alias, name) for name in names for alias in directory.aliases(name) if not set(alias) & set(" \t\n#")]
    return Requested({name: needs[name] for name in names}, tuple(aliases))


def dependencies(requested: Requested) -> bytes:
    """The content of modules.dep: modprobe loads what a line names from its end to its beginning."""
    lines = (
        " ".join([f"{name}.ko:", *(f"{need}.ko" for need in reversed(needs))])
        for name, needs in sorted(requested.needs.items())
    )
    return "".join(f"{line}\n" for line in lines).encode()


def aliases(requested: Requested) -> bytes:
    """The content of modules.alias."""
    return "".join(f"alias {pattern} {name}\n" for pattern, name in requested.aliases).encode()


def files(requested: Requested, contents: Mapping[str, bytes], modprobe: bytes) -> dict[str, bytes]:
    """The files of the directory by name; none when there are no modules. ``contents`` is by module."""
    if not requested.needs:
        return {}
    found = {f"{name}.ko": contents[name] for name in requested.names()}
    found |= {"modules.dep": dependencies(requested), "modules.alias": aliases(requested), MODPROBE: modprobe}
    found[SUMS] = sums(found)
    return found


def sums(contents: Mapping[str, bytes]) -> bytes:
    """The content of SHA256SUMS for files with these contents."""
    lines = (f"{hashlib.sha256(data).hexdigest()}  {name}\n" for name, data in sorted(contents.items()))
    return "".join(lines).encode()
