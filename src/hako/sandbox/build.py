"""From what a user asks for (image, command, limits) to a config.json and the directory below it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from hako import ids, units
from hako.config.settings import Config
from hako.errors import ConfigError
from hako.named import NamedTuple
from hako.oci import spec as oci_spec
from hako.oci.spec import RunOptions
from hako.ociimage import api as ociimage
from hako.sandbox.requests import Mount, absolute_mounts


class Build(NamedTuple):
    """What is asked for; as Sandbox.create()."""

    image: str
    args: Sequence[str] = ()
    env: Mapping[str, str] | Sequence[str] = ()  #: a mapping, or NAME=VALUE and NAME as the command line's -e
    cwd: str = ""
    user: str = ""
    hostname: str = ""
    memory: int | str | None = None
    cpus: float | None = None
    mounts: Sequence[Mount | tuple[str, str]] = ()
    tmpfs: Sequence[str] = ()
    read_only: bool = False
    tty: bool = False
    entrypoint: str | None = None
    pull: str = "missing"


class Built(NamedTuple):
    """A config.json, the directory to put a writable layer over, and the image it is made from."""

    spec: dict[str, Any]
    lower: str
    image: str
    digest: str
    image_config: Mapping[str, object]


def build(
    asked: Build, config: Config, progress: Callable[[str], None] | None = None, *, container_id: str = ""
) -> Built:
    """Find (or fetch) the image and make the config.json. Raises what the image and the options deserve."""
    if not asked.image:
        raise ConfigError("No image was named: give the sandbox or the container one.")
    memory = units.parse_size(asked.memory, "memory") if isinstance(asked.memory, str) else asked.memory
    image = ociimage.resolve(
        asked.image, pull=asked.pull, progress=progress, insecure_registries=config.image.insecure_registries
    )
    env = asked.env
    options = RunOptions(
        args=asked.args,
        entrypoint=asked.entrypoint,
        env=[f"{key}={value}" for key, value in env.items()] if isinstance(env, Mapping) else env,
        cwd=asked.cwd,
        user=asked.user,
        tty=asked.tty,
        hostname=asked.hostname,
        readonly=asked.read_only,
        memory=memory,
        cpus=asked.cpus,
        tmpfs=asked.tmpfs,
        mounts=absolute_mounts(asked.mounts),
    )
    spec = oci_spec.build(image.config, options, rootfs=image.rootfs, container_id=container_id or ids.new_id())
    return Built(spec, image.rootfs, asked.image, image.digest, image.config)
