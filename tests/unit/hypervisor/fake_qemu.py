"""A program that pretends to be QEMU as far as the driver sees it. The kernel command line says how it behaves."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from typing import Any


def main(argv: list[str]) -> None:
    """Take QEMU's arguments and act."""
    behaviour = argv[argv.index("-append") + 1].split()
    fds = dict(part.split(",")[1:] for part in argv if part.startswith("socket,"))
    channels = {key.removeprefix("id="): int(value.removeprefix("fd=")) for key, value in fds.items()}
    if "console" in behaviour:
        os.write(channels["console"], b"guest says hello\r\nand goodbye\r\n")
    if "refuse" in behaviour:
        sys.exit("qemu-system-x86_64: unable to find CPU model 'bad'")
    if "mute" in behaviour:
        time.sleep(60)
    qmp = socket.socket(fileno=channels["qmp"])
    if "garbage" in behaviour:
        qmp.sendall(b"220 mail.example.org ESMTP\r\n")
        time.sleep(60)
    talk(qmp, behaviour)


def talk(qmp: socket.socket, behaviour: list[str]) -> None:
    """Serve the control connection to its end."""

    def send(value: object) -> None:
        qmp.sendall(json.dumps(value).encode() + b"\r\n")

    def event(name: str, **data: object) -> None:
        send({"event": name, "data": data, "timestamp": {"seconds": 1, "microseconds": 2}})

    send({"QMP": {"version": {"qemu": {"major": 7, "minor": 2, "micro": 0}, "package": ""}, "capabilities": []}})
    for request in requests(qmp):
        command = request["execute"]
        if command == "query-status" and "error" in behaviour:
            send({"error": {"class": "GenericError", "desc": "no such thing"}, "id": request.get("id")})
            continue
        if command == "query-status" and "silent" in behaviour:
            continue
        status = "internal-error" if "internal-error" in behaviour else "running"
        send({"return": {"status": status} if command == "query-status" else {}, "id": request.get("id")})
        if command != "cont":
            continue  # what follows is how the VM ends
        if "internal-error" in behaviour:
            print("KVM internal error. Suberror: 1", file=sys.stderr, flush=True)
            event("STOP")
        if "poweroff" in behaviour:
            event("SHUTDOWN", guest=True, reason="guest-shutdown")
            sys.exit(0)
        if "hostile-event" in behaviour:
            event("SHUTDOWN", guest=True, reason=["x"])
            event("STOP", id=None)
            sys.exit(0)
        if "die" in behaviour:
            os.kill(os.getpid(), signal.SIGKILL)
        if "fail" in behaviour:
            sys.exit("qemu-system-x86_64: out of luck\x1b[2J")


def requests(qmp: socket.socket) -> Iterator[dict[str, Any]]:
    """The JSON objects that arrive; nothing stands between them."""
    text = ""
    while data := qmp.recv(65536):
        text += data.decode()
        while text := text.lstrip():
            try:
                value, size = json.JSONDecoder().raw_decode(text)
            except ValueError:
                break
            text = text[size:]
            yield value


main(sys.argv)
