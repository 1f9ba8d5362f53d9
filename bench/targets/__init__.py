"""The runtimes that are measured, in the order of the report."""

from __future__ import annotations

from collections.abc import Callable

from bench.targets.base import Target
from bench.targets.hako import Hako
from bench.targets.runc import Runc

#: Name: how to make it, from the hako in use. The first is hako itself, which the others take their image from.
TARGETS: dict[str, Callable[[Hako], Target]] = {
    "hako": lambda hako: hako,
    "runc": lambda hako: Runc(hako.image_root),
}
