"""The resolv.conf of containers whose engine is hako itself, made from the host's, by docker's rules."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence

_HOST = "/etc/resolv.conf"
#: Where systemd-resolved keeps the servers that its own address on the loopback stands for.
_RESOLVED = "/run/systemd/resolve/resolv.conf"
#: For a host that has none that a container can reach, as docker does it: Google's public ones.
_PUBLIC = ("8.8.8.8", "8.8.4.4")
_PUBLIC_IPV6 = ("2001:4860:4860::8888", "2001:4860:4860::8844")
_MAX_FILE = 1 << 20


def host_resolv_conf() -> str:
    """The host's resolv.conf; systemd-resolved's own where the host's names nothing but its address."""
    text = _read(_HOST)
    if not _servers(text, ipv6=True) and (behind := _read(_RESOLVED)):
        return behind
    return text


def resolv_conf(
    host: str,
    *,
    ipv6: bool = False,
    servers: Sequence[str] = (),
    search: Sequence[str] = (),
    options: Sequence[str] = (),
) -> str:
    """The text of a container's resolv.conf.

    ``host`` is the host's text. ``servers``, ``search`` and ``options`` take the place of the host's where they are
    given. Of the host's servers those are left out that a container cannot reach: on the loopback, of IPv6 when the
    container has none (``ipv6``), and link-local ones of a certain interface; if none is left, public ones are named.
    """
    servers = servers or _servers(host, ipv6=ipv6) or (*_PUBLIC, *(_PUBLIC_IPV6 if ipv6 else ()))
    search = search or _last(host, "search", "domain")
    options = options or [word for line in _lines(host) if line[0] == "options" for word in line[1:]]
    lines = [f"nameserver {server}" for server in servers]
    if search and list(search) != ["."]:
        lines.append(" ".join(("search", *search)))
    if options:
        lines.append(" ".join(("options", *options)))
    return "\n".join(lines) + "\n"


def _lines(text: str) -> list[list[str]]:
    """The lines that say something, in words; comments begin with # or ;."""
    split = (line.split() for line in text.splitlines() if line[:1] not in ("#", ";"))
    return [words for words in split if len(words) > 1]


def _servers(text: str, *, ipv6: bool) -> list[str]:
    found = []
    for words in _lines(text):
        if words[0] != "nameserver":
            continue
        try:
            address = ipaddress.ip_address(words[1])
        except ValueError:
            continue
        if address.is_loopback or address.is_unspecified:
            continue
        if isinstance(address, ipaddress.IPv6Address) and (not ipv6 or address.scope_id):
            continue
        found.append(str(address))
    return found


def _last(text: str, *keys: str) -> list[str]:
    """The words after the last of ``keys``: that one counts."""
    return next((line[1:] for line in reversed(_lines(text)) if line[0] in keys), [])


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read(_MAX_FILE)
    except OSError:
        return ""
