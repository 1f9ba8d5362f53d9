"""The one table of settings: everything that can be configured, each with its type, default, limits and help.

A section is a class and each row in it is one setting. The TOML reader, the annotations, the command line's
overrides and docs/configuration.md are all derived from these rows; nothing is said twice. To add a setting,
add a row here and run ``python -m hako.config.reference docs/configuration.md``.
"""

from __future__ import annotations

from hako.config.kinds import Setting, choice, flag, integer, path, seconds, size, strings, text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator


class _Frozen:
    def __setattr__(self, key: str, value: object) -> None:
        raise AttributeError(f"The configuration cannot be changed ({key}); hako.config.override makes another one.")


class Section(_Frozen):
    """A group of settings with their values; attributes are the settings' names. Cannot be changed."""

    name = ""
    title = ""

    def __init__(self, values: dict[str, object]) -> None:
        mine = {key: values.get(f"{self.name}.{key}", row.default) for key, row in rows(type(self))}
        self.__dict__.update(mine)


def rows(section: type[Section]) -> Iterator[tuple[str, Setting]]:
    """The settings of ``section`` in the order of the table, each with its name inside the section."""
    return ((key, row) for key, row in vars(section).items() if isinstance(row, Setting))


class HypervisorSettings(Section):
    """How virtual machines are run."""

    name = "hypervisor"
    title = "How virtual machines are run"

    accelerator: str = choice(
        "auto",
        "What runs the guest's code. `auto` uses KVM when a probe VM has booted with it on this host, and QEMU's "
        "software emulation (TCG) otherwise.",
        ("auto", "kvm", "tcg"),
    )
    qemu: str = text("", "The QEMU program, a name to look up on the PATH or a path. Empty: the one for this host.")
    user: str = text("hako-vm", "The system user that QEMU runs as.")
    cpu_model: str = text("", "The CPU that the guest sees, as for QEMU's `-cpu`. Empty: the best for the accelerator.")


class GuestSettings(Section):
    """What boots inside a virtual machine."""

    name = "guest"
    title = "What boots inside a virtual machine"

    image: str = text("", "The guest image: a digest, or the directory of one. Empty: the newest that was built.")
    kernel: str = path("", "A kernel to boot instead of the guest image's own.")
    kernel_modules: str = path(
        "", "The directory of modules that belongs to `guest.kernel`, if its drivers are modules."
    )
    cmdline_extra: str = text("", "Words to add to the kernel's command line.")


class SandboxSettings(Section):
    """The virtual machine that a sandbox gets when nothing else is asked for."""

    name = "sandbox"
    title = "The virtual machine of a sandbox"

    memory: int = size(
        "512m",
        "The guest's memory. It is used as the guest touches it, not when it starts.",
        "64m",
        "16t",
        annotation="memory",
        kata="hypervisor.default_memory",
        unit="m",
    )
    vcpus: int = integer(1, "The guest's virtual CPUs.", 1, 255, annotation="vcpus", kata="hypervisor.default_vcpus")
    start_timeout: float = seconds(
        60, "How long a virtual machine may take until its agent answers.", 1, 3600, annotation="start-timeout"
    )
    block_devices: bool = flag(
        True,
        "Whether block devices of the host that a config.json lists are given to the container, as disks of its VM. "
        "Otherwise such a container is refused.",
    )
    host_sockets: bool = flag(
        True,
        "Whether containers may have UNIX sockets of the host mounted, as by `-v /run/x.sock:/run/x.sock`, and connect "
        "to them, see [filesystem.md](filesystem.md#sockets-of-the-host). Otherwise such a mount is refused.",
    )


class TemplateSettings(Section):
    """Frozen virtual machines that others are cloned from."""

    name = "template"
    title = "Templates: frozen virtual machines that others are cloned from"

    enabled: bool = flag(
        True,
        "Whether virtual machines are cloned from a template, which is made when it is first needed. Otherwise each "
        "boots by itself, which takes seconds; see docs/security.md for what clones have in common.",
        annotation="template",
        kata="hypervisor.enable_template",
    )
    directory: str = path(
        "",
        "Where templates are kept. Empty: `templates` in hako's data directory. One on a tmpfs is gone after a reboot.",
    )
    max_size: int = size(
        "1g", "How much all templates together may take there; the longest unused are removed.", "64m", "1t"
    )
    max_age: float = seconds(2592000, "How long a template is kept that is not used.", 60, 315360000)
    keep: float = seconds(
        3600,
        "How long a template stays in memory after its last use. The first start after that takes 0.1 s longer.",
        60,
        315360000,
    )


class PoolSettings(Section):
    """Virtual machines that are ready before they are asked for."""

    name = "pool"
    title = "The pool of virtual machines that are ready before they are asked for"

    size: int = integer(
        0,
        "How many clones are kept running ahead of demand; each takes as much memory as an idle container. 0: none.",
        0,
        1000,
    )
    max_age: float = seconds(21600, "How long one waits before a fresh one takes its place.", 60, 315360000)


class ShimSettings(Section):
    """What serves containerd."""

    name = "shim"
    title = "The shim for containerd"

    zygote: bool = flag(
        True,
        "Whether a process stays that has loaded what shims need and is forked for each, see "
        "[containerd.md](containerd.md). It ends `template.keep` after its last use.",
    )


class ShareSettings(Section):
    """How files of the host reach the guest."""

    name = "share"
    title = "How files of the host reach the guest"

    driver: str = choice(
        "virtiofs",
        "The shared file system, see [filesystem.md](filesystem.md). `virtiofs` does what a local file system does; "
        "`9p` lets clones share memory with their template.",
        ("virtiofs", "9p"),
        annotation="share-driver",
    )
    msize: int = size(
        "512k",
        "The largest 9p message. Larger ones make sequential reading and writing quicker.",
        "8k",
        "1m",
        annotation="share-msize",
        kata="hypervisor.msize_9p",
    )
    virtiofsd: str = path("", "The program that serves virtiofs. Empty: the one that is installed with QEMU.")
    cache: str = choice(
        "auto",
        "What a guest may remember of a virtiofs share. `auto`: names and attributes for a second, content until it is "
        "seen to have changed. `none`: nothing, but then files cannot be mapped for writing. `always`: everything, "
        "for shares that nobody but the guest changes.",
        ("auto", "none", "always"),
        annotation="share-cache",
    )


class NetworkSettings(Section):
    """What containers are connected to."""

    name = "network"
    title = "What containers are connected to"

    default: str = text(
        "bridge",
        "The network of `hako run` without `--network`: `bridge`, `none`, or the name of another, see "
        "[network.md](network.md#networks-of-hakos-own). Programs that use the library name theirs.",
    )


class ImageSettings(Section):
    """Container images."""

    name = "image"
    title = "Container images"

    insecure_registries: tuple[str, ...] = strings(
        (), "Registries, as `host:port`, that may be reached by HTTP or with a certificate that cannot be checked."
    )


class LogSettings(Section):
    """hako's own log."""

    name = "log"
    title = "The log of hako itself"

    level: str = choice(
        "info", "The least important messages to write.", ("debug", "info", "warning", "error"), annotation="log-level"
    )
    format: str = choice("text", "How messages are written.", ("text", "json"))
    max_size: int = size(
        "10m", "A log file that reaches this size becomes `<name>.1`, replacing the last one.", "64k", "1t"
    )


class ConsoleSettings(Section):
    """The guest's console."""

    name = "console"
    title = "The guest's console"

    max_size: int = size("1m", "How much of a guest's console output is kept, the newest.", "64k", "1t")


SECTIONS: tuple[type[Section], ...] = (
    HypervisorSettings,
    GuestSettings,
    SandboxSettings,
    TemplateSettings,
    PoolSettings,
    ShimSettings,
    ShareSettings,
    NetworkSettings,
    ImageSettings,
    LogSettings,
    ConsoleSettings,
)

#: The table by full name: ``{"sandbox.memory": ...}``.
SETTINGS: dict[str, Setting] = {f"{section.name}.{key}": row for section in SECTIONS for key, row in rows(section)}


class Config(_Frozen):
    """The whole configuration; ``config.sandbox.memory`` is a setting. Cannot be changed."""

    hypervisor: HypervisorSettings
    guest: GuestSettings
    sandbox: SandboxSettings
    template: TemplateSettings
    pool: PoolSettings
    shim: ShimSettings
    share: ShareSettings
    network: NetworkSettings
    image: ImageSettings
    log: LogSettings
    console: ConsoleSettings
    values: dict[str, object]  #: what was set, by full name; everything else has its default
    origins: dict[str, str]  #: where each of these was set: a file, an annotation, a flag

    def __init__(self, values: dict[str, object] | None = None, origins: dict[str, str] | None = None) -> None:
        values = values or {}
        self.__dict__.update({section.name: section(values) for section in SECTIONS})
        self.__dict__.update(values=values, origins=origins or {})

    def as_dict(self) -> dict[str, object]:
        """Every setting's value by its full name, defaults included."""
        return {name: self.values.get(name, row.default) for name, row in SETTINGS.items()}
