"""Messages of the Container Runtime Interface, as far as the tests use them: streams, statistics, images, and the rest.

Source: kubernetes/cri-api, pkg/apis/runtime/v1/api.proto. Fields for other systems than Linux are left out.
"""

from __future__ import annotations

from bench.cri.messages import *  # noqa: F403
from bench.cri.messages import ContainerMetadata, PodSandboxMetadata, UInt64Value
from hako.wire import protobuf as pb

# Talking to what runs.


class ExecRequest(pb.Message):
    container_id: str = pb.text(1)
    cmd: list[str] = pb.texts(2)
    tty: bool = pb.boolean(3)
    stdin: bool = pb.boolean(4)
    stdout: bool = pb.boolean(5)
    stderr: bool = pb.boolean(6)


class AttachRequest(pb.Message):
    container_id: str = pb.text(1)
    stdin: bool = pb.boolean(2)
    tty: bool = pb.boolean(3)
    stdout: bool = pb.boolean(4)
    stderr: bool = pb.boolean(5)


class PortForwardRequest(pb.Message):
    pod_sandbox_id: str = pb.text(1)
    port: list[int] = pb.u32s(2)  #: int32, which is the same for numbers of ports


class UrlResponse(pb.Message):
    """Where the streams are, the answer to Exec, Attach and PortForward."""

    url: str = pb.text(1)


# Statistics.


class ContainerStatsFilter(pb.Message):
    id: str = pb.text(1)
    pod_sandbox_id: str = pb.text(2)
    label_selector: dict[str, str] = pb.text_map(3)


class ListContainerStatsRequest(pb.Message):
    filter: ContainerStatsFilter | None = pb.message(1, ContainerStatsFilter)


class ContainerAttributes(pb.Message):
    id: str = pb.text(1)
    metadata: ContainerMetadata | None = pb.message(2, ContainerMetadata)
    labels: dict[str, str] = pb.text_map(3)


class CpuUsage(pb.Message):
    timestamp: int = pb.i64(1)
    usage_core_nano_seconds: UInt64Value | None = pb.message(2, UInt64Value)
    usage_nano_cores: UInt64Value | None = pb.message(3, UInt64Value)


class MemoryUsage(pb.Message):
    timestamp: int = pb.i64(1)
    working_set_bytes: UInt64Value | None = pb.message(2, UInt64Value)
    available_bytes: UInt64Value | None = pb.message(3, UInt64Value)
    usage_bytes: UInt64Value | None = pb.message(4, UInt64Value)
    rss_bytes: UInt64Value | None = pb.message(5, UInt64Value)
    page_faults: UInt64Value | None = pb.message(6, UInt64Value)
    major_page_faults: UInt64Value | None = pb.message(7, UInt64Value)


class FilesystemUsage(pb.Message):
    timestamp: int = pb.i64(1)
    used_bytes: UInt64Value | None = pb.message(3, UInt64Value)
    inodes_used: UInt64Value | None = pb.message(4, UInt64Value)


class ContainerStats(pb.Message):
    attributes: ContainerAttributes | None = pb.message(1, ContainerAttributes)
    cpu: CpuUsage | None = pb.message(2, CpuUsage)
    memory: MemoryUsage | None = pb.message(3, MemoryUsage)
    writable_layer: FilesystemUsage | None = pb.message(4, FilesystemUsage)


class ContainerStatsResponse(pb.Message):
    stats: ContainerStats | None = pb.message(1, ContainerStats)


class ListContainerStatsResponse(pb.Message):
    stats: list[ContainerStats] = pb.messages(1, ContainerStats)


class NetworkInterfaceUsage(pb.Message):
    name: str = pb.text(1)
    rx_bytes: UInt64Value | None = pb.message(2, UInt64Value)
    tx_bytes: UInt64Value | None = pb.message(4, UInt64Value)


class NetworkUsage(pb.Message):
    timestamp: int = pb.i64(1)
    default_interface: NetworkInterfaceUsage | None = pb.message(2, NetworkInterfaceUsage)


class ProcessUsage(pb.Message):
    timestamp: int = pb.i64(1)
    process_count: UInt64Value | None = pb.message(2, UInt64Value)


class LinuxPodSandboxStats(pb.Message):
    cpu: CpuUsage | None = pb.message(1, CpuUsage)
    memory: MemoryUsage | None = pb.message(2, MemoryUsage)
    network: NetworkUsage | None = pb.message(3, NetworkUsage)
    process: ProcessUsage | None = pb.message(4, ProcessUsage)
    containers: list[ContainerStats] = pb.messages(5, ContainerStats)


class PodSandboxAttributes(pb.Message):
    id: str = pb.text(1)
    metadata: PodSandboxMetadata | None = pb.message(2, PodSandboxMetadata)


class PodSandboxStats(pb.Message):
    attributes: PodSandboxAttributes | None = pb.message(1, PodSandboxAttributes)
    linux: LinuxPodSandboxStats | None = pb.message(2, LinuxPodSandboxStats)


class PodSandboxStatsResponse(pb.Message):
    stats: PodSandboxStats | None = pb.message(1, PodSandboxStats)


class ListPodSandboxStatsResponse(pb.Message):
    stats: list[PodSandboxStats] = pb.messages(1, PodSandboxStats)


# Images.


class Image(pb.Message):
    id: str = pb.text(1)
    repo_tags: list[str] = pb.texts(2)
    size: int = pb.u64(4)


class ListImagesResponse(pb.Message):
    images: list[Image] = pb.messages(1, Image)
