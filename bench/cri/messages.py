"""Messages of the Container Runtime Interface: pods, their containers, commands in these, and the runtime itself.

Source: kubernetes/cri-api, pkg/apis/runtime/v1/api.proto. Fields for other systems than Linux are left out.
"""

from __future__ import annotations

from hako.wire import protobuf as pb

# enum NamespaceMode
POD, CONTAINER, NODE, TARGET = range(4)
# enum Protocol
TCP, UDP, SCTP = range(3)
# enum MountPropagation
PRIVATE, HOST_TO_CONTAINER, BIDIRECTIONAL = range(3)
# enum SecurityProfile.ProfileType
RUNTIME_DEFAULT, UNCONFINED, LOCALHOST = range(3)
# enum PodSandboxState
READY, NOT_READY = range(2)
# enum ContainerState
CREATED, RUNNING, EXITED, UNKNOWN = range(4)


class Empty(pb.Message):
    """Stands for each message without fields."""


class Int64Value(pb.Message):
    value: int = pb.i64(1)


class UInt64Value(pb.Message):
    value: int = pb.u64(1)


# What pods are made of.


class DNSConfig(pb.Message):
    servers: list[str] = pb.texts(1)
    searches: list[str] = pb.texts(2)
    options: list[str] = pb.texts(3)


class PortMapping(pb.Message):
    protocol: int = pb.enumeration(1)
    container_port: int = pb.i32(2)
    host_port: int = pb.i32(3)
    host_ip: str = pb.text(4)


class NamespaceOption(pb.Message):
    network: int = pb.enumeration(1)
    pid: int = pb.enumeration(2)
    ipc: int = pb.enumeration(3)
    target_id: str = pb.text(4)


class SecurityProfile(pb.Message):
    profile_type: int = pb.enumeration(1)
    localhost_ref: str = pb.text(2)


class LinuxSandboxSecurityContext(pb.Message):
    namespace_options: NamespaceOption | None = pb.message(1, NamespaceOption)
    run_as_user: Int64Value | None = pb.message(3, Int64Value)
    readonly_rootfs: bool = pb.boolean(4)
    privileged: bool = pb.boolean(6)
    run_as_group: Int64Value | None = pb.message(8, Int64Value)
    seccomp: SecurityProfile | None = pb.message(9, SecurityProfile)
    apparmor: SecurityProfile | None = pb.message(10, SecurityProfile)


class LinuxContainerResources(pb.Message):
    cpu_period: int = pb.i64(1)
    cpu_quota: int = pb.i64(2)
    cpu_shares: int = pb.i64(3)
    memory_limit_in_bytes: int = pb.i64(4)
    oom_score_adj: int = pb.i64(5)
    cpuset_cpus: str = pb.text(6)
    cpuset_mems: str = pb.text(7)
    unified: dict[str, str] = pb.text_map(9)
    memory_swap_limit_in_bytes: int = pb.i64(10)


class LinuxPodSandboxConfig(pb.Message):
    cgroup_parent: str = pb.text(1)
    security_context: LinuxSandboxSecurityContext | None = pb.message(2, LinuxSandboxSecurityContext)
    sysctls: dict[str, str] = pb.text_map(3)
    overhead: LinuxContainerResources | None = pb.message(4, LinuxContainerResources)
    resources: LinuxContainerResources | None = pb.message(5, LinuxContainerResources)


class PodSandboxMetadata(pb.Message):
    name: str = pb.text(1)
    uid: str = pb.text(2)
    namespace: str = pb.text(3)
    attempt: int = pb.u32(4)


class PodSandboxConfig(pb.Message):
    metadata: PodSandboxMetadata | None = pb.message(1, PodSandboxMetadata)
    hostname: str = pb.text(2)
    log_directory: str = pb.text(3)
    dns_config: DNSConfig | None = pb.message(4, DNSConfig)
    port_mappings: list[PortMapping] = pb.messages(5, PortMapping)
    labels: dict[str, str] = pb.text_map(6)
    annotations: dict[str, str] = pb.text_map(7)
    linux: LinuxPodSandboxConfig | None = pb.message(8, LinuxPodSandboxConfig)


class PodSandboxRequest(pb.Message):
    """The requests that name a pod and nothing else: stop, remove, status, statistics."""

    pod_sandbox_id: str = pb.text(1)
    verbose: bool = pb.boolean(2)  #: of the status


class RunPodSandboxRequest(pb.Message):
    config: PodSandboxConfig | None = pb.message(1, PodSandboxConfig)
    runtime_handler: str = pb.text(2)


class RunPodSandboxResponse(pb.Message):
    pod_sandbox_id: str = pb.text(1)


class PodIP(pb.Message):
    ip: str = pb.text(1)


class PodSandboxNetworkStatus(pb.Message):
    ip: str = pb.text(1)
    additional_ips: list[PodIP] = pb.messages(2, PodIP)


class PodSandboxStatus(pb.Message):
    id: str = pb.text(1)
    metadata: PodSandboxMetadata | None = pb.message(2, PodSandboxMetadata)
    state: int = pb.enumeration(3)
    created_at: int = pb.i64(4)
    network: PodSandboxNetworkStatus | None = pb.message(5, PodSandboxNetworkStatus)
    labels: dict[str, str] = pb.text_map(7)
    annotations: dict[str, str] = pb.text_map(8)
    runtime_handler: str = pb.text(9)


class PodSandboxStatusResponse(pb.Message):
    status: PodSandboxStatus | None = pb.message(1, PodSandboxStatus)
    info: dict[str, str] = pb.text_map(2)


class PodSandboxStateValue(pb.Message):
    state: int = pb.enumeration(1)


class PodSandboxFilter(pb.Message):
    id: str = pb.text(1)
    state: PodSandboxStateValue | None = pb.message(2, PodSandboxStateValue)
    label_selector: dict[str, str] = pb.text_map(3)


class ListPodSandboxRequest(pb.Message):
    filter: PodSandboxFilter | None = pb.message(1, PodSandboxFilter)


class PodSandbox(pb.Message):
    id: str = pb.text(1)
    metadata: PodSandboxMetadata | None = pb.message(2, PodSandboxMetadata)
    state: int = pb.enumeration(3)
    created_at: int = pb.i64(4)
    labels: dict[str, str] = pb.text_map(5)
    annotations: dict[str, str] = pb.text_map(6)
    runtime_handler: str = pb.text(7)


class ListPodSandboxResponse(pb.Message):
    items: list[PodSandbox] = pb.messages(1, PodSandbox)


# What containers are made of.


class ImageSpec(pb.Message):
    image: str = pb.text(1)
    annotations: dict[str, str] = pb.text_map(2)


class KeyValue(pb.Message):
    key: str = pb.text(1)
    value: str = pb.text(2)  #: bytes in newer files, which is the same


class Mount(pb.Message):
    container_path: str = pb.text(1)
    host_path: str = pb.text(2)
    readonly: bool = pb.boolean(3)
    selinux_relabel: bool = pb.boolean(4)
    propagation: int = pb.enumeration(5)
    recursive_read_only: bool = pb.boolean(8)
    image: ImageSpec | None = pb.message(9, ImageSpec)
    image_sub_path: str = pb.text(10)


class Device(pb.Message):
    container_path: str = pb.text(1)
    host_path: str = pb.text(2)
    permissions: str = pb.text(3)


class Capability(pb.Message):
    add_capabilities: list[str] = pb.texts(1)
    drop_capabilities: list[str] = pb.texts(2)


class LinuxContainerSecurityContext(pb.Message):
    capabilities: Capability | None = pb.message(1, Capability)
    privileged: bool = pb.boolean(2)
    namespace_options: NamespaceOption | None = pb.message(3, NamespaceOption)
    run_as_user: Int64Value | None = pb.message(5, Int64Value)
    run_as_username: str = pb.text(6)
    readonly_rootfs: bool = pb.boolean(7)
    supplemental_groups: list[int] = pb.u32s(8)  #: int64, which is the same for numbers of groups
    no_new_privs: bool = pb.boolean(11)
    run_as_group: Int64Value | None = pb.message(12, Int64Value)
    masked_paths: list[str] = pb.texts(13)
    readonly_paths: list[str] = pb.texts(14)
    seccomp: SecurityProfile | None = pb.message(15, SecurityProfile)
    apparmor: SecurityProfile | None = pb.message(16, SecurityProfile)


class LinuxContainerConfig(pb.Message):
    resources: LinuxContainerResources | None = pb.message(1, LinuxContainerResources)
    security_context: LinuxContainerSecurityContext | None = pb.message(2, LinuxContainerSecurityContext)


class ContainerMetadata(pb.Message):
    name: str = pb.text(1)
    attempt: int = pb.u32(2)


class ContainerConfig(pb.Message):
    metadata: ContainerMetadata | None = pb.message(1, ContainerMetadata)
    image: ImageSpec | None = pb.message(2, ImageSpec)
    command: list[str] = pb.texts(3)
    args: list[str] = pb.texts(4)
    working_dir: str = pb.text(5)
    envs: list[KeyValue] = pb.messages(6, KeyValue)
    mounts: list[Mount] = pb.messages(7, Mount)
    devices: list[Device] = pb.messages(8, Device)
    labels: dict[str, str] = pb.text_map(9)
    annotations: dict[str, str] = pb.text_map(10)
    log_path: str = pb.text(11)
    stdin: bool = pb.boolean(12)
    stdin_once: bool = pb.boolean(13)
    tty: bool = pb.boolean(14)
    linux: LinuxContainerConfig | None = pb.message(15, LinuxContainerConfig)


class CreateContainerRequest(pb.Message):
    pod_sandbox_id: str = pb.text(1)
    config: ContainerConfig | None = pb.message(2, ContainerConfig)
    sandbox_config: PodSandboxConfig | None = pb.message(3, PodSandboxConfig)


class CreateContainerResponse(pb.Message):
    container_id: str = pb.text(1)


class ContainerRequest(pb.Message):
    """The requests that name a container and nothing else: start, remove, status, statistics, reopening of its log."""

    container_id: str = pb.text(1)


class StopContainerRequest(pb.Message):
    container_id: str = pb.text(1)
    timeout: int = pb.i64(2)


class ContainerFilter(pb.Message):
    id: str = pb.text(1)
    pod_sandbox_id: str = pb.text(3)
    label_selector: dict[str, str] = pb.text_map(4)


class ListContainersRequest(pb.Message):
    filter: ContainerFilter | None = pb.message(1, ContainerFilter)


class Container(pb.Message):
    id: str = pb.text(1)
    pod_sandbox_id: str = pb.text(2)
    metadata: ContainerMetadata | None = pb.message(3, ContainerMetadata)
    state: int = pb.enumeration(6)
    created_at: int = pb.i64(7)
    labels: dict[str, str] = pb.text_map(8)


class ListContainersResponse(pb.Message):
    containers: list[Container] = pb.messages(1, Container)


class ContainerStatus(pb.Message):
    id: str = pb.text(1)
    metadata: ContainerMetadata | None = pb.message(2, ContainerMetadata)
    state: int = pb.enumeration(3)
    created_at: int = pb.i64(4)
    started_at: int = pb.i64(5)
    finished_at: int = pb.i64(6)
    exit_code: int = pb.i32(7)
    reason: str = pb.text(10)
    message: str = pb.text(11)
    labels: dict[str, str] = pb.text_map(12)
    mounts: list[Mount] = pb.messages(14, Mount)
    log_path: str = pb.text(15)


class ContainerStatusResponse(pb.Message):
    status: ContainerStatus | None = pb.message(1, ContainerStatus)
    info: dict[str, str] = pb.text_map(2)


class UpdateContainerResourcesRequest(pb.Message):
    container_id: str = pb.text(1)
    linux: LinuxContainerResources | None = pb.message(2, LinuxContainerResources)
    annotations: dict[str, str] = pb.text_map(4)


# Commands in containers.


class ExecSyncRequest(pb.Message):
    container_id: str = pb.text(1)
    cmd: list[str] = pb.texts(2)
    timeout: int = pb.i64(3)  #: seconds; 0 for none


class ExecSyncResponse(pb.Message):
    stdout: bytes = pb.binary(1)
    stderr: bytes = pb.binary(2)
    exit_code: int = pb.i32(3)


# The runtime itself.


class VersionResponse(pb.Message):
    version: str = pb.text(1)
    runtime_name: str = pb.text(2)
    runtime_version: str = pb.text(3)
    runtime_api_version: str = pb.text(4)


class RuntimeCondition(pb.Message):
    type: str = pb.text(1)
    status: bool = pb.boolean(2)
    reason: str = pb.text(3)
    message: str = pb.text(4)


class RuntimeStatus(pb.Message):
    conditions: list[RuntimeCondition] = pb.messages(1, RuntimeCondition)


class StatusResponse(pb.Message):
    status: RuntimeStatus | None = pb.message(1, RuntimeStatus)
