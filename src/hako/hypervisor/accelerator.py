"""Which accelerator runs the guests of this host: KVM where a guest really boots on it, otherwise TCG.

That /dev/kvm can be opened proves nothing: in nested virtualization it may create VMs that no kernel boots in. So the
guest's own kernel is booted once, with a time limit, and the result is remembered until the host's boot, QEMU or the
kernel is another.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator

from hako import log, paths, store
from hako.errors import ConfigError, HakoError, HostError
from hako.hypervisor.base import VmSpec
from hako.hypervisor.confine import DEFAULT_USER
from hako.named import NamedTuple

_log = log.get("hypervisor")

#: Seconds the probe's guest has; with a working KVM it takes well below one.
PROBE_TIMEOUT = 10.0

_KVM = "/dev/kvm"
_KVM_GET_API_VERSION = 0xAE00
_KVM_CREATE_VM = 0xAE01
_API_VERSION = 12

_PROBE_MEMORY = 256 << 20
_CMDLINE = "console=ttyS0 quiet rdinit=/init panic=-1"


class Accelerator(NamedTuple):
    """The choice, and why."""

    name: str  #: "kvm" or "tcg"
    reason: str  #: a clause for people


def choose(
    wanted: str, *, kernel: str, qemu: str = "", user: str = DEFAULT_USER, timeout: float = PROBE_TIMEOUT
) -> Accelerator:
    """The accelerator to use when the configuration says ``wanted`` ("auto", "kvm" or "tcg").

    ``kernel`` is the guest kernel's path, ``qemu`` QEMU's name or path, ``user`` the system user it runs as. Blocks up
    to ``timeout`` seconds for the first probe, and while another process probes. Raises HostError when "kvm"
    is wanted and does not work.
    """
    if wanted == "tcg":
        return Accelerator("tcg", "the configuration says tcg")
    if wanted not in ("auto", "kvm"):
        raise ConfigError(f"Accelerator {wanted!r} is not known: use auto, kvm or tcg.")
    problem = device_problem() or _remembered_problem(kernel, qemu, user, timeout)
    if not problem:
        return Accelerator("kvm", "the guest kernel boots on KVM")
    if wanted == "kvm":
        raise HostError(f"KVM does not work here and the configuration asks for it: {problem}. Set accelerator = auto.")
    return Accelerator("tcg", problem)


def device_problem(path: str = _KVM) -> str:
    """Why KVM cannot work, found without booting anything; empty when nothing speaks against it."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return f"{path} does not exist"
    except OSError as error:
        return f"{path} cannot be opened ({error.strerror})"
    try:
        version = fcntl.ioctl(fd, _KVM_GET_API_VERSION, 0)
        if version != _API_VERSION:
            return f"{path} speaks version {version} of the KVM interface, {_API_VERSION} is needed"
        os.close(fcntl.ioctl(fd, _KVM_CREATE_VM, 0))
    except OSError as error:
        return f"{path} opens but creates no VM ({error.strerror})"
    finally:
        os.close(fd)
    return ""


def cache_file() -> str:
    """Where the probe's result is remembered; remove it to have the probe made again."""
    return os.path.join(paths.cache_dir(), "accelerator.json")


def probe(spec: VmSpec, *, qemu: str = "", user: str = DEFAULT_USER, timeout: float = PROBE_TIMEOUT) -> str:
    """Boot ``spec`` with the probe's guest; why that failed, empty for success. Blocks up to ``timeout`` seconds."""
    import asyncio
    import threading

    answer = ["the probe was interrupted"]

    # A thread of its own: the caller may be inside a running event loop.
    def run() -> None:
        answer[0] = asyncio.run(_boot(spec, qemu, user, timeout))

    thread = threading.Thread(target=run, name="hako-probe")
    thread.start()
    thread.join()
    return answer[0]


async def _boot(spec: VmSpec, qemu: str, user: str, timeout: float) -> str:
    import asyncio

    from hako.hypervisor import probe_guest
    from hako.hypervisor.qemu import QemuVm

    fd = os.memfd_create("hako-probe")
    reason = ""
    try:
        os.write(fd, probe_guest.initrd())
        vm = QemuVm(spec._replace(initrd=f"/proc/self/fd/{fd}"), user=user, binary=qemu)
        try:
            async with asyncio.timeout(timeout):
                await vm.start()
                reason = (await vm.wait()).reason
        except TimeoutError:
            reason = f"the guest kernel did not boot within {timeout:g} s"
        except HakoError as error:
            reason = str(error).rstrip(".")
        finally:
            await vm.kill()
        tail = vm.console_tail()
    finally:
        os.close(fd)
    if any(probe_guest.MARKER in line for line in tail):
        return ""
    return f"{reason} (its console says: {' | '.join(tail[-3:])})" if tail else reason


def _remembered_problem(kernel: str, qemu: str, user: str, timeout: float) -> str:
    """The probe's result, from memory or made now; ten processes that ask at once make one probe."""
    key = _key(kernel, qemu)
    remembered = _recall(key)
    if remembered is not None:
        return remembered
    with _probe_lock():
        remembered = _recall(key)
        if remembered is not None:
            return remembered
        _log.info("Trying whether a guest boots on KVM.", kernel=kernel)
        spec = VmSpec("probe", kernel, None, _CMDLINE, _PROBE_MEMORY, accelerator="kvm", devices=())
        problem = probe(spec, qemu=qemu, user=user, timeout=timeout)
        if problem:
            problem = f"{_KVM} opens but a guest does not boot on it: {problem}"
        with contextlib.suppress(HostError):  # it costs another probe, no more
            store.write_json(cache_file(), {"key": key, "problem": problem})
        return problem


@contextlib.contextmanager
def _probe_lock() -> Iterator[None]:
    """One probe at a time on this host; without a place for the lock file, no lock."""
    try:
        fd = store.lock(os.path.join(store.ensure_dir(paths.cache_dir()), "accelerator.lock"))
    except (OSError, HostError) as error:
        _log.debug("The result of the KVM probe cannot be remembered.", reason=str(error))
        fd = None
    try:
        yield
    finally:
        if fd is not None:
            os.close(fd)


def _recall(key: list[object]) -> str | None:
    saved = store.read_json(cache_file())
    problem = saved.get("problem") if saved is not None and saved.get("key") == key else None
    return problem if isinstance(problem, str) else None


def _key(kernel: str, qemu: str) -> list[object]:
    """What the result depends on: this boot of the host, QEMU's program and the guest kernel."""
    from hako.hypervisor.qemu import find_qemu

    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        boot = file.read().strip()
    return [boot, store.identity(find_qemu(qemu)), store.identity(kernel)]
