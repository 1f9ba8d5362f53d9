"""Published ports: ``-p`` on the command line, and holding the host's ports while a container has them."""

from __future__ import annotations

import errno
import os
import socket
from types import TracebackType

from hako.errors import ConfigError, HostError
from hako.named import NamedTuple

PROTOCOLS = ("tcp", "udp", "sctp")
#: Ports one option can publish: each is several rules in the host's packet filter.
MAX_RANGE = 1024
_HELP = "Write GUEST, HOST:GUEST or IP:HOST:GUEST, each a port or a range such as 8000-8010; /udp or /sctp may follow."


class PortMapping(NamedTuple):
    """One published port. ``host_port`` 0 takes a free one; ``host_ip`` empty means all addresses of IPv4."""

    container_port: int
    host_port: int
    host_ip: str = ""
    protocol: str = "tcp"

    def __str__(self) -> str:
        ip = f"[{self.host_ip}]" if ":" in self.host_ip else self.host_ip
        return f"{ip}{':' if ip else ''}{self.host_port}:{self.container_port}/{self.protocol}"


def parse(option: str) -> list[PortMapping]:
    """The mappings that ``option`` asks for, as docker's ``-p``. Raises ConfigError.

    >>> [str(mapping) for mapping in parse("127.0.0.1:8080-8081:80-81/udp")]
    ['127.0.0.1:8080:80/udp', '127.0.0.1:8081:81/udp']
    """
    mapping, slash, protocol = option.partition("/")
    protocol = protocol if slash else "tcp"
    if protocol not in PROTOCOLS:
        raise _wrong(option, f"{protocol or 'nothing'!r} is not a protocol")
    ip, host, container = _split(option, mapping)
    container_first, container_last = _range(option, container)
    if host in (None, ""):
        host_ports = [0] * (container_last - container_first + 1)
    else:
        first, last = _range(option, str(host))
        if last - first != container_last - container_first:
            raise _wrong(option, f"{host} and {container} are not equally many ports")
        host_ports = list(range(first, last + 1))
    if len(host_ports) > MAX_RANGE:
        raise _wrong(option, f"{len(host_ports)} ports are too many, {MAX_RANGE} are the limit")
    return [PortMapping(container_first + number, port, ip, protocol) for number, port in enumerate(host_ports)]


def _split(option: str, mapping: str) -> tuple[str, str | None, str]:
    """Address, host's port (None if there is no such part) and container's port."""
    ip = ""
    if mapping.startswith("["):
        ip, bracket, mapping = mapping[1:].partition("]:")
        if not bracket or ":" not in mapping or ":" not in ip:
            raise _wrong(option, "after [ there must be an address of IPv6, ]: and HOST:GUEST")
    parts = mapping.split(":")
    if len(parts) == 3 and not ip:
        ip = parts.pop(0)
        if not ip:
            raise _wrong(option, "the address before the first colon is missing")
    if len(parts) > 2:
        raise _wrong(option, "it has too many colons; put an address of IPv6 in brackets")
    if ip:
        try:
            socket.inet_pton(socket.AF_INET6 if ":" in ip else socket.AF_INET, ip)
        except (OSError, ValueError):
            raise _wrong(option, f"{ip!r} is not an IP address") from None
    return ip, parts[0] if len(parts) == 2 else None, parts[-1]


def _range(option: str, text: str) -> tuple[int, int]:
    first, dash, last = text.partition("-")
    numbers = [first, last if dash else first]
    if not all(number.isascii() and number.isdigit() and 0 < int(number[:6]) <= 65535 for number in numbers):
        raise _wrong(option, f"{text!r} is neither a port from 1 to 65535 nor a range of them")
    low, high = (int(number) for number in numbers)
    if low > high:
        raise _wrong(option, f"the range {text} is the wrong way round")
    return low, high


def _wrong(option: str, reason: str) -> ConfigError:
    return ConfigError(f"The port mapping {option!r} is not valid: {reason}. {_HELP}")


class Reservation:
    """Holds ports of the host, so that neither another container nor a program gets them; close() gives them back.

    ``mappings`` are those asked for, with a number in place of each 0.
    """

    def __init__(self, wanted: list[PortMapping]) -> None:
        """Take the ports in the calling thread's network namespace. Raises HostError when one is taken."""
        self._sockets: list[socket.socket] = []
        self.mappings: list[PortMapping] = []
        try:
            for mapping in wanted:
                self.mappings.append(self._take(mapping))
        except BaseException:
            self.close()
            raise

    def _take(self, mapping: PortMapping) -> PortMapping:
        family = socket.AF_INET6 if ":" in mapping.host_ip else socket.AF_INET
        kind = socket.SOCK_DGRAM if mapping.protocol == "udp" else socket.SOCK_STREAM
        number = socket.IPPROTO_SCTP if mapping.protocol == "sctp" else 0
        try:
            held = socket.socket(family, kind, number)
        except OSError as error:
            raise HostError(f"This host's kernel has no {mapping.protocol.upper()}: {error.strerror}.") from error
        self._sockets.append(held)
        try:
            if family == socket.AF_INET6:
                held.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            held.bind((mapping.host_ip, mapping.host_port))
        except OSError as error:
            taken = error.errno == errno.EADDRINUSE
            reason = "it is in use already" if taken else os.strerror(error.errno or errno.EIO)
            raise HostError(f"Cannot publish the host's port {mapping}: {reason}.") from error
        return mapping._replace(host_port=held.getsockname()[1])

    def __enter__(self) -> Reservation:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the ports back."""
        while self._sockets:
            self._sockets.pop().close()
