"""Where hako keeps things. Each root can be moved by an environment variable, which tests use."""

from __future__ import annotations

import os


def state_root() -> str:
    """Live state, gone after a reboot: ``/run/hako`` or ``$HAKO_STATE_ROOT``."""
    return os.environ.get("HAKO_STATE_ROOT") or "/run/hako"


def data_root() -> str:
    """Images, templates and what stopped containers leave: ``/var/lib/hako`` or ``$HAKO_DATA_ROOT``."""
    return os.environ.get("HAKO_DATA_ROOT") or "/var/lib/hako"


def config_file() -> str:
    """The configuration file: ``/etc/hako/config.toml`` or ``$HAKO_CONFIG``; drop-ins are in config.d beside it."""
    return os.environ.get("HAKO_CONFIG") or "/etc/hako/config.toml"


def sandboxes_dir() -> str:
    """One directory per live sandbox: lock, state.json, control.sock, console.log, shared/."""
    return os.path.join(state_root(), "sandboxes")


def records_dir() -> str:
    """One directory per sandbox for what outlives its VM: record.json, containers' layers and logs."""
    return os.path.join(data_root(), "sandboxes")


def guest_images_dir() -> str:
    """Content-addressed guest images (kernel, initrd, manifest)."""
    return os.path.join(data_root(), "guest-images")


def images_dir() -> str:
    """Container images, unpacked."""
    return os.path.join(data_root(), "images")


def cache_dir() -> str:
    """What can be made again at a price: probe results, downloaded packages."""
    return os.path.join(data_root(), "cache")
