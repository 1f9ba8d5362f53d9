"""The library for asyncio programs: ``hako.aio.Sandbox`` and its containers.

The same calls as hako.Sandbox (hako.sandbox.api), each a coroutine; see there for what they mean.
"""

from hako.sandbox.aio import Container, Mount, Process, Result, Sandbox

__all__ = ["Container", "Mount", "Process", "Result", "Sandbox"]
