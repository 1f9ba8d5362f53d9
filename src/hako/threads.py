"""Work that must not change the thread it is asked from: entering namespaces above all."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def in_thread_of_its_own(work: Callable[[], T]) -> T:
    """Call ``work`` in a thread that ends with it; return what it returns, raise what it raises.

    Safe in an asyncio program too, which it holds up meanwhile.
    """
    results: list[T] = []
    failures: list[BaseException] = []

    def body() -> None:
        try:
            results.append(work())
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=body, name="hako-namespace")
    thread.start()
    thread.join()
    try:
        if failures:
            raise failures[0]
        return results[0]
    finally:
        failures.clear()  # or error, traceback and this frame keep each other alive
