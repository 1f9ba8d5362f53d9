"""What can be measured, in the order in which it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from bench.context import Context
from bench.pieces import calls, engines, files, idle, pods, starts, streams


class Piece(NamedTuple):
    """One subject: its name for ``--only``, what it is, and the function that measures it."""

    name: str
    about: str
    measure: Callable[[Context], None]


PIECES = (
    Piece("run", "from the command to first output and to exit, one container at a time", starts.run),
    Piece("phases", "the phases of a start, and how long a VM takes until its agent answers", starts.phases),
    Piece("exec", "one more process in a running container", calls.execute),
    Piece("state", "asking for a container's state; printing the version", calls.state),
    Piece("runtime", "the commands of hako-runtime, by themselves", calls.runtime),
    Piece("stop", "stopping a container and deleting it", calls.stop),
    Piece("agent", "a call of the agent, and a line to a process, there and back", calls.agent),
    Piece("streams", "bytes per second into and out of a container", streams.streams),
    Piece("files", "files: sequential, random, metadata, by each share driver", files.files),
    Piece("docker", "run and exec by docker, with each as its runtime", engines.docker),
    Piece("tcp", "TCP between the host and a container of docker", engines.tcp),
    Piece("ctr", "run and exec by ctr, with each as containerd's runtime", engines.ctr),
    Piece("pods", "pods of containerd's CRI plugin: starts, calls, memory, many at once", pods.pods),
    Piece("idle", "processor time of an idle container", idle.cpu),
    Piece("memory", "memory of 1, 10 and 50 idle containers", idle.memory),
    Piece("starts", "10 and 50 starts at once", starts.at_once),
    Piece("podman", "run and exec by podman, with each as its runtime", engines.podman),
)
