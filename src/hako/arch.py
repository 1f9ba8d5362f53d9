"""Everything that depends on the processor architecture, in one place. x86-64 is the first and only one."""

from __future__ import annotations

from hako.named import NamedTuple


class Arch(NamedTuple):
    """Facts about one architecture, in the spelling of each project that names it."""

    name: str  #: uname -m
    oci: str  #: OCI image and GOARCH name
    debian: str  #: dpkg architecture
    debian_kernel: str  #: Debian's kernel meta package
    multiarch: str  #: Debian's library directory
    loader: str  #: path of the dynamic loader inside the image
    seccomp: tuple[str, ...]  #: architectures for the seccomp filter, native first
    qemu_binary: str
    machine: str  #: QEMU machine type; `pc` boots fastest of those that hot-plug PCI, memory and CPUs
    tcg_cpu: str
    kvm_cpu: str
    elf_machine: int  #: e_machine of its ELF files


# TCG runs `rep movsb` and `rep stosb` a byte at a time, so a guest that thinks it has fast string
# instructions (erms, fsrm) spends 0.4 s more on booting. Five-level page tables (la57) only make walks longer.
X86_64 = Arch(
    name="x86_64",
    oci="amd64",
    debian="amd64",
    debian_kernel="linux-image-amd64",
    multiarch="x86_64-linux-gnu",
    loader="/lib64/ld-linux-x86-64.so.2",
    seccomp=("SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"),
    qemu_binary="qemu-system-x86_64",
    machine="pc",
    tcg_cpu="max,-erms,-fsrm,-la57",
    kvm_cpu="host",
    elf_machine=62,
)

_ALL = {X86_64.name: X86_64}


def current() -> Arch:
    """The host's architecture. Raises HostError on one hako does not know."""
    import os

    from hako.errors import HostError

    name = os.uname().machine
    if name not in _ALL:
        raise HostError(f"hako does not run on {name} yet; it needs one of: {', '.join(sorted(_ALL))}.")
    return _ALL[name]
