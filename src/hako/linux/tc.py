"""Traffic control by rtnetlink: sending every frame that arrives on one link out of another.

A frame that comes in on a link meets its ingress qdisc; there a u32 filter without conditions has the mirred action
put it into the queue of the other link. u32 is older and more widely built in than matchall. Formats and numbers are
those of include/uapi/linux/{pkt_sched,pkt_cls}.h and tc_act/tc_mirred.h. Every function raises OSError.
"""

from __future__ import annotations

import errno
import struct

from hako.linux import netlink
from hako.linux.netlink import Netlink, attribute, attribute_text, nested

RTM_NEWQDISC, RTM_DELQDISC = 36, 37
RTM_NEWTFILTER, RTM_DELTFILTER, RTM_GETTFILTER = 44, 45, 46

_TCMSG = struct.Struct("=BxxxiIII")
_TC_H_INGRESS = 0xFFFFFFF1
_INGRESS_HANDLE = 0xFFFF0000
_ETH_P_ALL = 3

_TCA_KIND, _TCA_OPTIONS = 1, 2
_TCA_U32_SEL, _TCA_U32_ACT = 5, 7
_TCA_ACT_KIND, _TCA_ACT_OPTIONS = 1, 2
_TCA_MIRRED_PARMS = 2
_TCA_EGRESS_REDIR = 1
_TC_ACT_STOLEN = 4
_TC_U32_TERMINAL = 1
_U32_NODE = 0xFFF

#: flags, offshift, nkeys, offmask, off, offoff, hoff, hmask; then per key mask, value, offset, offset mask.
_SELECTOR = struct.Struct("=BBBxHHhhI")
_KEY = struct.Struct("=IIii")
#: index, capab, action, refcnt, bindcnt; then what mirred does, and the link.
_MIRRED = struct.Struct("=IIiiiiI")


class Filter:
    """A filter of a link's ingress: its priority, its ``kind``, and the link it redirects to, 0 if it does not."""

    __slots__ = ("kind", "priority", "target")

    def __init__(self, kind: str, priority: int, target: int) -> None:
        self.kind = kind
        self.priority = priority
        self.target = target


def add_ingress(kernel: Netlink, index: int) -> None:
    """Give the link ``index`` an ingress qdisc. Raises FileExistsError when it has one."""
    payload = _TCMSG.pack(0, index, _INGRESS_HANDLE, _TC_H_INGRESS, 0) + attribute_text(_TCA_KIND, "ingress")
    kernel.request(RTM_NEWQDISC, netlink.NLM_F_CREATE | netlink.NLM_F_EXCL, payload, f"ingress of link {index}")


def delete_ingress(kernel: Netlink, index: int) -> None:
    """Remove the ingress qdisc of the link ``index`` with its filters; none is fine, and so is no such link."""
    payload = _TCMSG.pack(0, index, _INGRESS_HANDLE, _TC_H_INGRESS, 0)
    try:
        kernel.request(RTM_DELQDISC, 0, payload, f"ingress of link {index}")
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.EINVAL, errno.ENODEV):
            raise


def add_redirect(kernel: Netlink, index: int, target: int, priority: int) -> None:
    """Send everything that arrives on the link ``index``, which has an ingress qdisc, out of the link ``target``."""
    info = priority << 16 | int(struct.unpack("=H", struct.pack("!H", _ETH_P_ALL))[0])
    selector = _SELECTOR.pack(_TC_U32_TERMINAL, 0, 1, 0, 0, 0, 0, 0) + _KEY.pack(0, 0, 0, 0)
    mirred = _MIRRED.pack(0, 0, _TC_ACT_STOLEN, 0, 0, _TCA_EGRESS_REDIR, target)
    action = nested(
        1, attribute_text(_TCA_ACT_KIND, "mirred"), nested(_TCA_ACT_OPTIONS, attribute(_TCA_MIRRED_PARMS, mirred))
    )
    payload = (
        _TCMSG.pack(0, index, 0, _INGRESS_HANDLE, info)
        + attribute_text(_TCA_KIND, "u32")
        + nested(_TCA_OPTIONS, attribute(_TCA_U32_SEL, selector), nested(_TCA_U32_ACT, action))
    )
    what = f"redirection of link {index} to {target}"
    kernel.request(RTM_NEWTFILTER, netlink.NLM_F_CREATE | netlink.NLM_F_EXCL, payload, what)


def filters(kernel: Netlink, index: int) -> list[Filter]:
    """What the ingress qdisc of the link ``index`` does with packets; empty when it has none."""
    payload = _TCMSG.pack(0, index, 0, _INGRESS_HANDLE, 0)
    try:
        messages = kernel.dump(RTM_GETTFILTER, payload, f"filters of link {index}")
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.EINVAL, errno.ENODEV):
            return []
        raise
    found = [decode_filter(message.payload) for message in messages if message.kind == RTM_NEWTFILTER]
    return [filter for filter in found if filter is not None]


def decode_filter(payload: bytes) -> Filter | None:
    """The filter in a message, None for the heading of a priority or of a hash table. Raises OSError (EBADMSG)."""
    (_, _, handle, _, info), rest = netlink.fixed(_TCMSG, payload)
    found = netlink.attributes(rest)
    options = netlink.attributes(found.get(_TCA_OPTIONS, b"")) if _TCA_OPTIONS in found else {}
    kind = netlink.text(found.get(_TCA_KIND, b""))
    target = _target(options[_TCA_U32_ACT]) if kind == "u32" and _TCA_U32_ACT in options else 0
    is_heading = not handle & _U32_NODE if kind == "u32" else not handle
    return None if is_heading else Filter(kind, info >> 16, target)


def _target(actions: bytes) -> int:
    """The link that the first mirred action redirects to, 0 when there is none."""
    for _, action in netlink.each_attribute(actions):
        found = netlink.attributes(action)
        if netlink.text(found.get(_TCA_ACT_KIND, b"")) == "mirred" and _TCA_ACT_OPTIONS in found:
            parameters = netlink.attributes(found[_TCA_ACT_OPTIONS]).get(_TCA_MIRRED_PARMS, b"")
            (_, _, _, _, _, how, index), _ = netlink.fixed(_MIRRED, parameters)
            return index if how == _TCA_EGRESS_REDIR else 0
    return 0
