"""The part of Kubernetes' CRI v1 that describes a pod's sandbox.

Facts: kubernetes/cri-api pkg/apis/runtime/v1/api.proto. Windows is left out.
"""

from __future__ import annotations

from hako.wire import protobuf as pb


class NamespaceMode:
    """Whose namespace it is."""

    POD = 0
    CONTAINER = 1
    NODE = 2
    TARGET = 3


class PodSandboxMetadata(pb.Message):
    """Which pod it is, and how many sandboxes it has had before."""

    FULL_NAME = "runtime.v1.PodSandboxMetadata"

    name: str = pb.text(1)
    uid: str = pb.text(2)
    namespace: str = pb.text(3)
    attempt: int = pb.u32(4)


class DNSConfig(pb.Message):
    """What resolv.conf shall say."""

    FULL_NAME = "runtime.v1.DNSConfig"

    servers: list[str] = pb.texts(1)
    searches: list[str] = pb.texts(2)
    options: list[str] = pb.texts(3)


class PortMapping(pb.Message):
    """A port of the host that leads into the pod; ``protocol`` is 0 TCP, 1 UDP, 2 SCTP."""

    FULL_NAME = "runtime.v1.PortMapping"

    protocol: int = pb.enumeration(1)
    container_port: int = pb.i32(2)
    host_port: int = pb.i32(3)
    host_ip: str = pb.text(4)


class IDMapping(pb.Message):
    """A range of user or group ids."""

    FULL_NAME = "runtime.v1.IDMapping"

    host_id: int = pb.u32(1)
    container_id: int = pb.u32(2)
    length: int = pb.u32(3)


class UserNamespace(pb.Message):
    """The pod's user namespace; ``mode`` is a NamespaceMode."""

    FULL_NAME = "runtime.v1.UserNamespace"

    mode: int = pb.enumeration(1)
    uids: list[IDMapping] = pb.messages(2, IDMapping)
    gids: list[IDMapping] = pb.messages(3, IDMapping)


class NamespaceOption(pb.Message):
    """Whose namespaces the pod has, each a NamespaceMode."""

    FULL_NAME = "runtime.v1.NamespaceOption"

    network: int = pb.enumeration(1)
    pid: int = pb.enumeration(2)
    ipc: int = pb.enumeration(3)
    target_id: str = pb.text(4)
    userns_options: UserNamespace | None = pb.message(5, UserNamespace)


class SELinuxOption(pb.Message):
    """SELinux labels."""

    FULL_NAME = "runtime.v1.SELinuxOption"

    user: str = pb.text(1)
    role: str = pb.text(2)
    type: str = pb.text(3)
    level: str = pb.text(4)


class Int64Value(pb.Message):
    """A number that may be missing."""

    FULL_NAME = "runtime.v1.Int64Value"

    value: int = pb.i64(1)


class SecurityProfile(pb.Message):
    """``profile_type`` is 0 the runtime's default, 1 none, 2 the host's own named by ``localhost_ref``."""

    FULL_NAME = "runtime.v1.SecurityProfile"

    profile_type: int = pb.enumeration(1)
    localhost_ref: str = pb.text(2)


class LinuxSandboxSecurityContext(pb.Message):
    """What the pod may do."""

    FULL_NAME = "runtime.v1.LinuxSandboxSecurityContext"

    namespace_options: NamespaceOption | None = pb.message(1, NamespaceOption)
    selinux_options: SELinuxOption | None = pb.message(2, SELinuxOption)
    run_as_user: Int64Value | None = pb.message(3, Int64Value)
    readonly_rootfs: bool = pb.boolean(4)
    supplemental_groups: list[int] = pb.i64s(5)
    privileged: bool = pb.boolean(6)
    seccomp_profile_path: str = pb.text(7)
    run_as_group: Int64Value | None = pb.message(8, Int64Value)
    seccomp: SecurityProfile | None = pb.message(9, SecurityProfile)
    apparmor: SecurityProfile | None = pb.message(10, SecurityProfile)
    supplemental_groups_policy: int = pb.enumeration(11)


class HugepageLimit(pb.Message):
    """Bytes in huge pages of one size, such as ``2MB``."""

    FULL_NAME = "runtime.v1.HugepageLimit"

    page_size: str = pb.text(1)
    limit: int = pb.u64(2)


class LinuxContainerResources(pb.Message):
    """Limits; 0 where there is none."""

    FULL_NAME = "runtime.v1.LinuxContainerResources"

    cpu_period: int = pb.i64(1)
    cpu_quota: int = pb.i64(2)
    cpu_shares: int = pb.i64(3)
    memory_limit_in_bytes: int = pb.i64(4)
    oom_score_adj: int = pb.i64(5)
    cpuset_cpus: str = pb.text(6)
    cpuset_mems: str = pb.text(7)
    hugepage_limits: list[HugepageLimit] = pb.messages(8, HugepageLimit)
    unified: dict[str, str] = pb.text_map(9)
    memory_swap_limit_in_bytes: int = pb.i64(10)


class LinuxPodSandboxConfig(pb.Message):
    """What is Linux' own."""

    FULL_NAME = "runtime.v1.LinuxPodSandboxConfig"

    cgroup_parent: str = pb.text(1)
    security_context: LinuxSandboxSecurityContext | None = pb.message(2, LinuxSandboxSecurityContext)
    sysctls: dict[str, str] = pb.text_map(3)
    overhead: LinuxContainerResources | None = pb.message(4, LinuxContainerResources)
    resources: LinuxContainerResources | None = pb.message(5, LinuxContainerResources)


class PodSandboxConfig(pb.Message):
    """A pod's sandbox."""

    FULL_NAME = "runtime.v1.PodSandboxConfig"

    metadata: PodSandboxMetadata | None = pb.message(1, PodSandboxMetadata)
    hostname: str = pb.text(2)
    log_directory: str = pb.text(3)
    dns_config: DNSConfig | None = pb.message(4, DNSConfig)
    port_mappings: list[PortMapping] = pb.messages(5, PortMapping)
    labels: dict[str, str] = pb.text_map(6)
    annotations: dict[str, str] = pb.text_map(7)
    linux: LinuxPodSandboxConfig | None = pb.message(8, LinuxPodSandboxConfig)
