"""What `hako check` finds out about the host: one small function per subject, each with the remedy for what it finds.

Every check is bounded in time and changes nothing; the longest is the KVM probe (10 s), made once per boot of the host.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable

from hako import arch, paths, units
from hako.config.settings import Config
from hako.errors import HakoError, HostError, ImageError
from hako.named import NamedTuple

OK = "ok"
NOTE = "note"  #: fine; worth knowing
WARNING = "warning"  #: hako works, something is slower, weaker or missing
ERROR = "error"  #: no sandbox can be started
SEVERITIES = (OK, NOTE, WARNING, ERROR)

_MIN_KERNEL = (5, 10)
_MIN_QEMU = (7, 2)
_MIN_DISK = 1 << 30
_TIMEOUT = 10.0


class Finding(NamedTuple):
    """One row of the report."""

    name: str
    severity: str  #: one of SEVERITIES
    text: str  #: what is so
    remedy: str = ""  #: what to do about it; empty when there is nothing to do


def findings(config: Config) -> list[Finding]:
    """All findings, in the order of the report. Never raises: a check that fails is a finding."""
    checks: tuple[tuple[str, Callable[[Config], Finding]], ...] = (
        ("user", check_user),
        ("accelerator", check_accelerator),
        ("qemu", check_qemu),
        ("qemu-user", check_qemu_user),
        ("kernel", check_kernel),
        ("image", check_image),
        ("9p", check_ninep),
        ("virtiofs", check_virtiofs),
        ("templates", check_templates),
        ("vsock", check_vsock),
        ("cgroups", check_cgroups),
        ("tun", check_tun),
        ("network", check_network),
        ("disk", check_disk),
        ("memory", check_memory),
    )
    return [_guarded(name, check, config) for name, check in checks]


def _guarded(name: str, check: Callable[[Config], Finding], config: Config) -> Finding:
    try:
        return check(config)
    except HakoError as error:
        return Finding(name, ERROR, str(error))
    except OSError as error:
        return Finding(name, WARNING, f"could not be checked: {error.strerror or error}")


def check_user(_config: Config) -> Finding:
    """Mounts, namespaces and devices need root."""
    if os.geteuid() == 0:
        return Finding("user", OK, "running as root")
    return Finding("user", ERROR, f"running as user {os.geteuid()}; sandboxes need root", "use sudo")


def check_accelerator(config: Config) -> Finding:
    """KVM or TCG, and why."""
    from hako.guestimage import api as guestimage
    from hako.hypervisor import accelerator

    wanted = config.hypervisor.accelerator
    problem = accelerator.device_problem() if wanted != "tcg" else ""
    try:
        kernel = guestimage.find(config.guest.image or None).kernel
    except ImageError:
        if wanted == "auto" and problem:
            return _emulated(problem)
        return Finding("accelerator", NOTE, "not decided yet: there is no guest image to boot", "run: hako image build")
    settings = config.hypervisor
    try:
        chosen = accelerator.choose(wanted, kernel=kernel, qemu=settings.qemu, user=settings.user)
    except HostError as error:
        return Finding("accelerator", ERROR, str(error), "set hypervisor.accelerator to auto in the configuration")
    if chosen.name == "kvm" or wanted == "tcg":
        return Finding("accelerator", OK, f"{chosen.name}: {chosen.reason}")
    return _emulated(chosen.reason)


def _emulated(why: str) -> Finding:
    from hako.hypervisor import accelerator

    remedy = "use a host with hardware virtualization for speed (a cloud VM: one with nested virtualization)"
    if os.path.exists(accelerator.cache_file()):
        remedy += f"; to have KVM tried again, remove {accelerator.cache_file()}"
    return Finding("accelerator", NOTE, f"tcg (software emulation): {why}", remedy)


def check_qemu(config: Config) -> Finding:
    """QEMU is there, starts, and is new enough."""
    from hako import proc
    from hako.hypervisor.qemu import find_qemu

    package = "apt-get install qemu-system-x86"
    try:
        binary = find_qemu(config.hypervisor.qemu)
        said = proc.run([binary, "--version"], timeout=_TIMEOUT).stdout.decode(errors="replace").splitlines()
    except HostError as error:
        return Finding("qemu", ERROR, str(error), package)
    line = said[0] if said else ""
    version = _version(line.partition("version ")[2])
    if version < _MIN_QEMU:
        need = ".".join(map(str, _MIN_QEMU))
        return Finding("qemu", ERROR, f"{binary} is not QEMU {need} or newer: {line or 'it said nothing'}", package)
    if shutil.which("setpriv", path=proc.BASE_ENV["PATH"]) is None:
        return Finding("qemu", ERROR, "setpriv, which starts QEMU, is not installed", "apt-get install util-linux")
    return Finding("qemu", OK, f"{line.partition(' (')[0]} at {binary}")


def check_qemu_user(config: Config) -> Finding:
    """QEMU does not run as root."""
    import pwd

    user = config.hypervisor.user
    try:
        entry = pwd.getpwnam(user)
    except KeyError:
        remedy = f"useradd --system --shell /usr/sbin/nologin {user}"
        return Finding("qemu-user", WARNING, f"there is no user {user}, so QEMU runs as root", remedy)
    if entry.pw_uid == 0:
        return Finding("qemu-user", WARNING, f"user {user} is root", "set hypervisor.user to a system user of its own")
    return Finding("qemu-user", OK, f"QEMU runs as {user} (uid {entry.pw_uid})")


def check_kernel(_config: Config) -> Finding:
    """The host's kernel is new enough and of a known architecture."""
    release = os.uname().release
    arch.current()
    if _version(release) < _MIN_KERNEL:
        need = ".".join(map(str, _MIN_KERNEL))
        return Finding("kernel", ERROR, f"Linux {release}; {need} or newer is needed", "upgrade the host's kernel")
    return Finding("kernel", OK, f"Linux {release} {os.uname().machine}")


def check_image(config: Config) -> Finding:
    """There is a guest image to boot."""
    from hako.guestimage import api as guestimage

    if config.guest.kernel and not config.guest.image:
        if os.access(config.guest.kernel, os.R_OK):
            return Finding("image", OK, f"made from {config.guest.kernel} as the configuration says")
        return Finding("image", ERROR, f"{config.guest.kernel} cannot be read", "set guest.kernel to a kernel's path")
    try:
        image = guestimage.find(config.guest.image or None)
    except ImageError as error:
        return Finding("image", ERROR, str(error), "run: hako image build")
    return Finding("image", OK, f"{image.digest[:12]}, Linux {image.kernel_version}")


def check_ninep(config: Config) -> Finding:
    """QEMU has a 9p server: Debian builds it in, some distributions make it a package."""
    from hako import proc
    from hako.hypervisor.qemu import find_qemu

    devices = proc.run([find_qemu(config.hypervisor.qemu), "-device", "help"], timeout=_TIMEOUT).stdout
    if b'"virtio-9p-pci"' in devices:
        return Finding("9p", OK, "QEMU shares directories by 9p")
    return Finding("9p", ERROR, "this QEMU has no 9p server", "install a QEMU built with virtfs, such as Debian's")


def check_virtiofs(config: Config) -> Finding:
    """virtiofsd serves containers' files, unless 9p is to."""
    from hako.storage.virtiofs import find_program

    try:
        return Finding("virtiofs", OK, f"{find_program(config.share.virtiofsd).path} is there")
    except HakoError as error:
        if config.share.driver != "virtiofs":
            return Finding("virtiofs", OK, "virtiofsd is not installed; shares use 9p")
        return Finding("virtiofs", ERROR, str(error).partition(". ")[0], "apt-get install qemu-system-common")


def check_templates(config: Config) -> Finding:
    """What VMs are cloned from, and who keeps it in memory."""
    from hako.template import api

    if not config.template.enabled:
        return Finding("templates", NOTE, "switched off, so each VM boots", "set template.enabled = true")
    found = [template for _, template in api.list_templates(config.template) if template is not None]
    size = sum(template.size for template in found)
    return Finding("templates", OK, f"{len(found)} made, {size >> 20} MiB on disk")


def check_vsock(_config: Config) -> Finding:
    """vsock is optional."""
    if os.path.exists("/dev/vhost-vsock"):
        return Finding("vsock", OK, "/dev/vhost-vsock is there; the agent is reached by virtio-serial")
    return Finding("vsock", OK, "no /dev/vhost-vsock and none needed; the agent is reached by virtio-serial")


def check_cgroups(_config: Config) -> Finding:
    """The limits of containers are set inside the guest, which has its own cgroups; the host's matter to engines."""
    try:
        with open("/sys/fs/cgroup/cgroup.controllers", encoding="ascii") as file:
            controllers = set(file.read().split())
    except OSError:
        remedy = "boot with systemd.unified_cgroup_hierarchy=1"
        return Finding("cgroups", NOTE, "no unified cgroup v2 hierarchy at /sys/fs/cgroup", remedy)
    missing = {"cpu", "memory", "pids"} - controllers
    if missing:
        text = f"cgroup v2 without {', '.join(sorted(missing))}"
        return Finding("cgroups", NOTE, text, "enable the controllers in the kernel's command line")
    return Finding("cgroups", OK, "cgroup v2")


def check_tun(_config: Config) -> Finding:
    """Guests with a network need a tap device."""
    try:
        os.close(os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        text = f"/dev/net/tun cannot be opened ({error.strerror}), so guests get no network"
        return Finding("tun", WARNING, text, "modprobe tun, or use --network none")
    return Finding("tun", OK, "/dev/net/tun opens")


def check_network(_config: Config) -> Finding:
    """What connects containers that no engine connects: CNI plugins, which run iptables."""
    from hako import proc
    from hako.network import cniconfig

    plugins = [kind for kind in ("bridge", "host-local", "portmap") if cniconfig.find_plugin(kind) is None]
    if plugins:
        text = f"the CNI plugins {', '.join(plugins)} are missing, so containers get no network"
        return Finding("network", WARNING, text, "apt-get install containernetworking-plugins, or use --network none")
    if shutil.which("iptables", path=proc.BASE_ENV["PATH"]) is None:
        text = "iptables, which CNI plugins run, is missing, so containers get no network"
        return Finding("network", WARNING, text, "apt-get install iptables, or use --network none")
    return Finding("network", OK, f"CNI plugins in {os.path.dirname(cniconfig.find_plugin('bridge') or '')}")


def check_disk(_config: Config) -> Finding:
    """Room for images and containers' files."""
    place = paths.data_root()
    while not os.path.exists(place):
        place = os.path.dirname(place)
    stat = os.statvfs(place)
    free = stat.f_bavail * stat.f_frsize
    text = f"{units.format_size(free)} free for {paths.data_root()}"
    if free < _MIN_DISK:
        return Finding("disk", WARNING, text, f"free some space: {units.format_size(_MIN_DISK)} is little enough")
    return Finding("disk", OK, text)


def check_memory(config: Config) -> Finding:
    """Memory for at least one guest of the configured size."""
    with open("/proc/meminfo", encoding="ascii") as file:
        fields = dict(line.split(":", 1) for line in file)
    available = int(fields["MemAvailable"].split()[0]) << 10
    need = config.sandbox.memory
    text = f"{units.format_size(available)} available, a sandbox gets {units.format_size(need)}"
    if available < need:
        return Finding("memory", WARNING, text, "lower sandbox.memory in the configuration, or free some memory")
    return Finding("memory", OK, text)


def _version(text: str) -> tuple[int, ...]:
    """The first two numbers of a version; (0, 0) when there are none."""
    numbers = []
    for part in text.split(".")[:2]:
        digits = ""
        for char in part:
            if not char.isdigit():
                break
            digits += char
        numbers.append(int(digits or 0))
    return tuple(numbers) if len(numbers) == 2 else (0, 0)
