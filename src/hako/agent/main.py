"""PID 1 of the guest: sets the system up, then serves the host for as long as the VM lives.

Standard library only and few imports: under software emulation each costs tens of milliseconds of boot.
When it is ready and no call is under way it holds no host share and no open stream, so that the VM can be
frozen and cloned at that point.
"""

from __future__ import annotations

import os
import sys
import time

from hako.agent import crun, system
from hako.agent.channel import Channel
from hako.agent.loop import Loop
from hako.agent.service import Service
from hako.linux import syscalls

PORT = "hako.agent"
_PORT_TRIES = 500
_PORT_PAUSE = 0.01
#: Open files: the agent needs a few for each process; containers that set no limit of their own inherit it.
_OPEN_FILES = 1 << 20


def open_port() -> int:
    """Open the agent's virtio-serial port, waiting up to 5 s for the device to appear."""
    for _ in range(_PORT_TRIES):
        path = system.find_port(PORT)
        if path is not None and os.path.exists(path):
            return os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        time.sleep(_PORT_PAUSE)
    raise FileNotFoundError(f"no virtio-serial port named {PORT}")


def serve() -> None:
    """Set up the guest and answer calls for ever."""
    os.environ.clear()
    os.umask(0o022)
    syscalls.set_open_files_limit(_OPEN_FILES)
    # So that a process that writes in small pieces is not interrupted for each of them, but fills its pipe first:
    # half as much output again per second. A call that finds the VM busy waits a millisecond longer.
    os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    system.leave_initial_root()
    system.mount_first()
    system.load_boot_modules()
    crun.prepare()
    system.forget_bytecode()
    system.bring_up_loopback()
    loop = Loop()
    loop.start()
    service = Service(loop)
    channel = Channel(loop, open_port(), service.handle)
    service.attach(channel)
    loop.run(service.ended)


def main() -> None:
    """Entry of /init. A PID 1 that ends panics the kernel, so a failure is told and the VM powered off."""
    try:
        serve()
    except BaseException as error:
        sys.stderr.write(f"hako-agent: {type(error).__name__}: {error}\n")
        sys.excepthook(type(error), error, error.__traceback__)
        sys.stderr.flush()
    syscalls.reboot(syscalls.RB_POWER_OFF)
