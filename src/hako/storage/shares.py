"""Which share driver a configuration asks for."""

from __future__ import annotations

from hako.config.settings import ShareSettings
from hako.storage.base import ShareDriver


def make(settings: ShareSettings) -> ShareDriver:
    """The driver that ``settings`` name, for one VM. Nothing is started yet."""
    if settings.driver == "virtiofs":
        from hako.storage.virtiofs import VirtiofsShare

        return VirtiofsShare(binary=settings.virtiofsd, cache=settings.cache)
    from hako.storage.ninep import NinePShare

    return NinePShare(settings.msize)
