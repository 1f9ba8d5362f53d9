"""The public interface of hako.template: get the template for a VM, making it where there is none; look after them.

A start never fails for a template's sake. What is wrong with one is logged once, and the VM boots.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import Any

from hako import log, store
from hako.config.settings import TemplateSettings
from hako.errors import HakoError, HostError, ImageError
from hako.template import build, files, keeper
from hako.template.build import Recipe
from hako.template.files import Template
from hako.template.keeper import Held

_log = log.get("template")

#: Seconds for which a template that could not be made is not tried again.
_RETRY_AFTER = 600.0

#: So many clones of a template may fail without a clear reason before another one is made.
_MOST_DOUBTS = 3

#: Gives the queues of the tap device that stands behind the NIC of a template's VM, and closes them at the end.
NicSource = Callable[[], contextlib.AbstractContextManager[tuple[int, ...]]]
Background = Callable[[Coroutine[Any, Any, None]], None]


async def obtain(
    recipe: Recipe, settings: TemplateSettings, nic: NicSource, namespace: int | None, background: Background
) -> Held | None:
    """The template for ``recipe``, open; made now if there is none yet. None: boot, for a reason that is logged.

    ``namespace`` is the host's mount namespace, for a process that has left it. A damaged template is removed, and made
    again by what ``background`` is given to do beside everything else; if that does not come to its end, by the next
    start. Whoever finds a template being made waits, up to the recipe's timeout.
    """
    held = keeper.find(recipe.key)
    if held is not None:
        return held
    if _failed_lately(recipe.key):
        return None
    root = files.directory(settings.directory)
    try:
        return await _obtain(recipe, settings, root, nic, namespace)
    except _DamagedError as error:
        _log.warning(f"A template is damaged; it is made again, and the VM boots meanwhile. {error}")
        background(_repair(recipe, settings, nic))
    except build.KilledError as error:
        _log.warning(f"The making of a template was interrupted; the VM boots. {error}")
    except TimeoutError:
        _log.warning("A template is being made for too long; the VM boots.", template=recipe.key)
    except HakoError as error:
        _log.warning(f"A template cannot be made; VMs boot instead. {error}")
        _remember_failure(recipe.key, str(error))
    return None


def distrust(recipe: Recipe, settings: TemplateSettings) -> None:
    """A clone could not be started: remove the template; the next start makes another one.

    One that has just been made is not worth another try so soon.
    """
    root = files.directory(settings.directory)
    keeper.stop(recipe.key)
    try:
        with contextlib.suppress(ImageError):
            template = files.find(root, recipe.key)
            if template is None or time.time() - template.created_ns / 1e9 < _RETRY_AFTER:
                _remember_failure(recipe.key, "a clone could not be started")
        files.remove(root, recipe.key)
    except HostError as error:
        _log.warning(f"A template that does not work stays. {error}")


def doubt(recipe: Recipe, settings: TemplateSettings, *, certain: bool) -> None:
    """A clone could not be started. The template is given up if that is its fault for ``certain``, or when it has
    happened a few times lately: once may be due to a host that is too busy."""
    path = os.path.join(keeper.directory(), f"{recipe.key}.doubts")
    now = time.time()
    record = store.read_json(path) or {}
    times = record.get("times")
    lately = (
        [when for when in times if isinstance(when, float) and now - when < _RETRY_AFTER]
        if isinstance(times, list)
        else []
    )
    if certain or len(lately) + 1 >= _MOST_DOUBTS:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        distrust(recipe, settings)
        return
    with contextlib.suppress(HostError):
        store.write_json(path, {"times": [*lately, now]})


async def _repair(recipe: Recipe, settings: TemplateSettings, nic: NicSource) -> None:
    try:
        await make(recipe, settings, nic)
    except (HakoError, TimeoutError) as error:
        _log.warning(f"A template cannot be made. {error}")


async def make(recipe: Recipe, settings: TemplateSettings, nic: NicSource, *, anew: bool = False) -> Template:
    """The template for ``recipe`` on disk, made if there is none or ``anew``. Raises HakoError."""
    root = files.directory(settings.directory)
    async with _locked(root, recipe.timeout):
        with contextlib.suppress(ImageError):
            found = files.find(root, recipe.key)
            if found is not None and not anew:
                found.check()
                return found
        return await _build(recipe, settings, root, nic)


def list_templates(settings: TemplateSettings) -> Iterator[tuple[str, Template | None]]:
    """The key of each template, and the template, or None when its manifest is damaged."""
    root = files.directory(settings.directory)
    for key in files.names(root):
        try:
            yield key, files.find(root, key)
        except ImageError:
            yield key, None


def get(settings: TemplateSettings, prefix: str) -> Template:
    """The template whose key begins with ``prefix``. Raises NotFoundError, ImageError when its manifest is damaged."""
    root = files.directory(settings.directory)
    key = files.resolve(root, prefix)
    template = files.find(root, key)
    if template is None:
        raise ImageError(f"Template {key} has just been removed.")
    return template


def holder(key: str) -> int | None:
    """The process that has the template in memory, None when none has."""
    return keeper.pid_of(key)


def verify(settings: TemplateSettings, prefix: str) -> Template:
    """Like get(), and every byte of it is what was written. Raises ImageError when it is not."""
    template = get(settings, prefix)
    template.check()
    return template


def remove(settings: TemplateSettings, prefix: str) -> str:
    """Remove a template, damaged or not; VMs that run go on. Returns its key. Raises NotFoundError."""
    root = files.directory(settings.directory)
    key = files.resolve(root, prefix)
    files.remove(root, key)
    keeper.stop(key)
    return key


def release_all() -> None:
    """Give back the memory in which templates are kept, also of those that are not on disk any more."""
    keeper.stop_all()


class _DamagedError(Exception):
    """A template on disk is not what was written."""


async def _obtain(recipe: Recipe, settings: TemplateSettings, root: str, nic: NicSource, namespace: int | None) -> Held:
    async with _locked(root, recipe.timeout):
        held = keeper.find(recipe.key)
        if held is not None:
            return held
        try:
            template = files.find(root, recipe.key)
            if template is None:
                template = await _build(recipe, settings, root, nic)
            held = Held(*await asyncio.to_thread(template.load))
        except ImageError as error:
            files.remove(root, recipe.key)
            raise _DamagedError(str(error)) from error
        template.touch()
        try:
            keeper.start(recipe.key, held, settings.keep, namespace)
        except HostError as error:
            _log.warning(f"A template cannot be kept in memory. {error}")
        held.close()
        # Opened anew, so that the state is read from its beginning by an own descriptor.
        held = keeper.find(recipe.key)
        if held is None:
            raise HostError("The process that keeps the template in memory is gone.")
        return held


async def _build(recipe: Recipe, settings: TemplateSettings, root: str, nic: NicSource) -> Template:
    size = recipe.spec.memory
    # While it is made its memory is as large as the VM, in memory; what is kept is a fraction, and not known before.
    store.check_free_space(root, min(size, settings.max_size), "a template")
    _log.info("Making a template, once; later VMs are cloned from it.", template=recipe.key)
    with nic() as tap:
        template = await build.build(recipe, root, tap)
    if template.size > settings.max_size:
        files.remove(root, template.key)
        raise HostError(
            f"A template needs {template.size >> 20} MiB, and template.max_size allows {settings.max_size >> 20} MiB."
        )
    for key in (recipe.key, *files.collect(root, template, settings.max_size, settings.max_age)):
        keeper.stop(key)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(_failure(recipe.key))
    return template


@contextlib.asynccontextmanager
async def _locked(root: str, timeout: float) -> AsyncIterator[None]:
    """Hold the lock on making, loading and removing templates. Raises TimeoutError after ``timeout`` seconds."""
    store.ensure_dir(root, 0o700)
    path = os.path.join(root, "lock")
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout
    # A thread that waits for a lock cannot be given up.
    while (fd := _take(path)) is None:
        if loop.time() > deadline:
            raise TimeoutError
        await asyncio.sleep(0.01)
    try:
        yield
    finally:
        os.close(fd)


def _take(path: str) -> int | None:
    try:
        return store.lock(path, wait=False)
    except OSError as error:
        raise HostError(f"Cannot lock {path}: {error.strerror}.") from error


def _failure(key: str) -> str:
    return os.path.join(keeper.directory(), f"{key}.failed")


def _remember_failure(key: str, reason: str) -> None:
    with contextlib.suppress(HostError):
        store.ensure_dir(keeper.directory(), 0o700)
        store.write_json(_failure(key), {"time": time.time(), "reason": reason})


def _failed_lately(key: str) -> bool:
    record = store.read_json(_failure(key))
    when = record.get("time") if record is not None else None
    return isinstance(when, float) and 0 <= time.time() - when < _RETRY_AFTER
