"""Getting a template: made once however many ask, never the reason why something does not start."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

from hako import store
from hako.config.settings import TemplateSettings
from hako.errors import HostError, HypervisorError, ImageError, NotFoundError
from hako.template import api, build, files, keeper, memory
from hako.template.keeper import Held
from support import leaks, templates

_PROGRAM = """
import asyncio, contextlib, os, sys
sys.path[:0] = {path!r}
from hako.config.settings import TemplateSettings
from hako.template import api, build
from support import templates

async def fake(recipe, root, nic):
    with open({log!r}, "a") as file:
        file.write("made\\n")
    await asyncio.sleep(0.2)
    return templates.publish(root)

build.build = fake
held = asyncio.run(api.obtain(templates.recipe(), TemplateSettings({{}}), contextlib.nullcontext, None, print))
print(os.read(held.state, 7).decode())
"""


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Directories of the test's own; nothing of them is left running or open."""
    monkeypatch.setenv("HAKO_STATE_ROOT", str(tmp_path / "run"))
    monkeypatch.setenv("HAKO_DATA_ROOT", str(tmp_path / "data"))
    (tmp_path / "run").mkdir()
    (tmp_path / "data").mkdir()
    before = set(os.listdir("/proc/self/fd"))
    yield tmp_path
    keeper.stop_all()
    assert leaks.wait_gone(str(tmp_path), 5, keepers=True) == {}
    assert set(os.listdir("/proc/self/fd")) == before


class Builder:
    """Makes templates without VMs, and counts them."""

    def __init__(self) -> None:
        self.made = 0
        self.error: Exception | None = None
        self.used = 1 << 20

    async def build(self, recipe: build.Recipe, root: str, nic: int | None) -> files.Template:
        self.made += 1
        await asyncio.sleep(0.01)
        if self.error is not None:
            raise self.error
        with templates.guest(self.made, self.used) as (memory_fd, state_fd):
            return files.publish(root, recipe.key, recipe.identity, memory_fd, state_fd)


@pytest.fixture
def builder(monkeypatch: pytest.MonkeyPatch) -> Builder:
    made = Builder()
    monkeypatch.setattr(build, "build", made.build)
    return made


class Asking:
    """What a sandbox does: it asks for a template, and may be given something to do in the background."""

    def __init__(self, recipe: build.Recipe | None = None, **settings: object) -> None:
        self.recipe = recipe or templates.recipe()
        self.settings = TemplateSettings({f"template.{name}": value for name, value in settings.items()})
        self.background: list[Coroutine[Any, Any, None]] = []

    async def obtain(self) -> bytes | None:
        """The beginning of the state, which tells one template from another; None: boot."""
        held = await api.obtain(self.recipe, self.settings, contextlib.nullcontext, None, self.background.append)
        if held is None:
            return None
        with contextlib.closing(held):
            assert memory.is_sealed(held.memory)
            assert os.fstat(held.memory).st_size == templates.MEMORY
            return os.read(held.state, 7)

    def __call__(self) -> bytes | None:
        return asyncio.run(self.obtain())

    def work(self) -> None:
        """Do what is to be done in the background."""
        for one in self.background:
            asyncio.run(one)  # type: ignore[arg-type]
        self.background.clear()

    @property
    def directory(self) -> str:
        return files.directory(self.settings.directory)


def test_made_once_and_then_kept(builder: Builder) -> None:
    ask = Asking()
    assert [ask() for _ in range(3)] == [b"state 1"] * 3
    assert builder.made == 1
    assert api.holder(ask.recipe.key) is not None


def test_when_nobody_keeps_it_any_more_it_is_loaded(builder: Builder) -> None:
    ask = Asking()
    assert ask() == b"state 1"
    keeper.stop_all()
    before = files.find(ask.directory, ask.recipe.key)
    assert ask() == b"state 1"
    assert builder.made == 1
    assert api.holder(ask.recipe.key) is not None
    assert files.find(ask.directory, ask.recipe.key) == before


def test_ten_tasks_at_once_make_one(builder: Builder) -> None:
    async def main() -> list[bytes | None]:
        return await asyncio.gather(*(Asking().obtain() for _ in range(10)))

    assert asyncio.run(main()) == [b"state 1"] * 10
    assert builder.made == 1


def test_ten_processes_at_once_make_one(root: Path) -> None:
    log = root / "log"
    argv = [sys.executable, "-c", _PROGRAM.format(path=sys.path, log=str(log))]
    children = [subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(10)]
    for child in children:
        assert child.communicate(timeout=60) == (b"state 0\n", b"")
    assert log.read_text() == "made\n"


def test_another_vm_has_another_template(builder: Builder) -> None:
    one, other = Asking(), Asking(templates.recipe(image="b"))
    assert [one(), other(), one(), other()] == [b"state 1", b"state 2", b"state 1", b"state 2"]


@pytest.mark.parametrize("error", [HypervisorError("the guest is mute"), HostError("no room")])
def test_a_failure_is_remembered(
    builder: Builder, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    builder.error = error
    ask = Asking()
    assert [ask() for _ in range(3)] == [None] * 3
    assert builder.made == 1
    assert caplog.text.count(str(error)) == 1
    # Later it is tried again, and another VM at once.
    builder.error = None
    assert Asking(templates.recipe(image="b"))() == b"state 2"
    monkeypatch.setattr(api, "_RETRY_AFTER", 0)
    assert ask() == b"state 3"


def test_a_success_forgets_the_failure(builder: Builder, root: Path) -> None:
    builder.error = HostError("no room")
    ask = Asking()
    assert ask() is None
    builder.error = None
    asyncio.run(api.make(ask.recipe, ask.settings, contextlib.nullcontext))
    assert ask() == b"state 2"


@pytest.mark.parametrize("text", ["{", "[]", '{"time": "x"}', '{"time": 1e99}', '{"time": null}', "{}"])
def test_any_record_of_a_failure_is_one_or_none(builder: Builder, text: str) -> None:
    ask = Asking()
    store.ensure_dir(keeper.directory())
    Path(keeper.directory(), f"{ask.recipe.key}.failed").write_text(text)
    assert ask() == b"state 1"


@pytest.mark.parametrize("damage", templates.damages())
def test_a_damaged_one_is_made_again_beside_the_boot(
    builder: Builder, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    ask = Asking()
    assert ask() == b"state 1"
    keeper.stop_all()
    templates.damages()[damage](os.path.join(ask.directory, ask.recipe.key))
    assert ask() is None
    assert [record.levelname for record in caplog.records if "damaged" in record.getMessage()] == ["WARNING"]
    assert files.names(ask.directory) == []
    assert builder.made == 1
    ask.work()
    assert builder.made == 2
    assert ask() == b"state 2"
    assert ask.background == []


def test_what_was_not_made_again_in_the_background_is_made_by_the_next(builder: Builder) -> None:
    ask = Asking()
    ask()
    keeper.stop_all()
    templates.damages()["cut-memory"](os.path.join(ask.directory, ask.recipe.key))
    assert ask() is None
    ask.background.pop().close()
    assert ask() == b"state 2"


def test_damage_does_not_matter_to_what_is_in_memory(builder: Builder) -> None:
    ask = Asking()
    ask()
    templates.damages()["cut-memory"](os.path.join(ask.directory, ask.recipe.key))
    assert ask() == b"state 1"


def test_a_failure_in_the_background_is_a_line_in_the_log(builder: Builder, caplog: pytest.LogCaptureFixture) -> None:
    ask = Asking()
    ask()
    keeper.stop_all()
    templates.damages()["flip-state"](os.path.join(ask.directory, ask.recipe.key))
    builder.error = HypervisorError("mute")
    assert ask() is None
    ask.work()
    assert "mute" in caplog.text


def test_whoever_waits_too_long_boots(builder: Builder, caplog: pytest.LogCaptureFixture) -> None:
    ask = Asking(templates.recipe(timeout=0.05))
    store.ensure_dir(ask.directory)
    with store.locked(os.path.join(ask.directory, "lock")):
        assert ask() is None
    assert "for too long" in caplog.text
    # That is no failure: the next one finds it.
    assert ask() == b"state 1"


def test_a_template_that_does_not_work_is_made_again_but_not_at_once(builder: Builder) -> None:
    ask = Asking()
    ask()
    api.distrust(ask.recipe, ask.settings)
    assert files.names(ask.directory) == []
    assert api.holder(ask.recipe.key) is None
    assert ask() is None
    assert builder.made == 1


def test_an_older_template_that_does_not_work_is_made_again(builder: Builder) -> None:
    ask = Asking()
    ask()
    path = Path(ask.directory, ask.recipe.key, "manifest.json")
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps({**manifest, "created_ns": manifest["created_ns"] - 10**12}))
    api.distrust(ask.recipe, ask.settings)
    assert ask() == b"state 2"


def test_a_clone_that_fails_once_or_twice_does_not_cost_the_template(builder: Builder) -> None:
    ask = Asking()
    ask()
    for _ in range(2):
        api.doubt(ask.recipe, ask.settings, certain=False)
        assert ask() == b"state 1"
    api.doubt(ask.recipe, ask.settings, certain=False)
    assert files.names(ask.directory) == []
    assert ask() is None


def test_a_template_that_is_certainly_to_blame_goes_at_once(builder: Builder) -> None:
    ask = Asking()
    ask()
    api.doubt(ask.recipe, ask.settings, certain=True)
    assert files.names(ask.directory) == []


@pytest.mark.parametrize("text", ["{", "[]", '{"count": "x"}', '{"count": null}', "{}"])
def test_any_record_of_doubts_is_one_or_none(builder: Builder, text: str) -> None:
    ask = Asking()
    ask()
    Path(keeper.directory(), f"{ask.recipe.key}.doubts").write_text(text)
    api.doubt(ask.recipe, ask.settings, certain=False)
    assert ask() == b"state 1"


def test_one_that_is_too_large_is_not_kept(builder: Builder, caplog: pytest.LogCaptureFixture) -> None:
    ask = Asking(max_size=1 << 19)
    assert ask() is None
    assert files.names(ask.directory) == []
    assert "template.max_size allows 0 MiB" in caplog.text
    assert ask() is None
    assert builder.made == 1


def test_no_room_on_the_disk(
    builder: Builder, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: str, needed: int, what: str) -> None:
        raise HostError(f"no room for {what}")

    monkeypatch.setattr(store, "check_free_space", full)
    assert Asking()() is None
    assert builder.made == 0
    assert "no room for a template" in caplog.text


def test_a_directory_that_cannot_be(builder: Builder, root: Path, caplog: pytest.LogCaptureFixture) -> None:
    (root / "file").touch()
    assert Asking(directory=str(root / "file" / "below"))() is None
    assert Asking(templates.recipe(image="b"), directory=str(root / "file"))() is None
    assert builder.made == 0
    assert len(caplog.records) == 2


def test_a_keeper_that_cannot_be_started(
    builder: Builder, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise HostError("no processes left")

    monkeypatch.setattr(keeper, "start", refuse)
    assert Asking()() is None
    assert "no processes left" in caplog.text


def test_old_ones_are_collected_with_their_keepers(builder: Builder) -> None:
    old, new = Asking(templates.recipe(hako="0")), Asking()
    assert old() == b"state 1"
    assert new() == b"state 2"
    assert files.names(new.directory) == [new.recipe.key]
    assert api.holder(old.recipe.key) is None
    assert api.holder(new.recipe.key) is not None


def test_making_one_anew_is_what_the_next_start_gets(builder: Builder) -> None:
    ask = Asking()
    ask()
    again = asyncio.run(api.make(ask.recipe, ask.settings, contextlib.nullcontext))
    assert builder.made == 1
    anew = asyncio.run(api.make(ask.recipe, ask.settings, contextlib.nullcontext, anew=True))
    assert builder.made == 2
    assert anew.state_sha256 != again.state_sha256
    assert ask() == b"state 2"


def test_making_where_there_is_a_damaged_one(builder: Builder) -> None:
    ask = Asking()
    for name in ("cut-memory", "flip-manifest.json"):
        before = asyncio.run(api.make(ask.recipe, ask.settings, contextlib.nullcontext))
        templates.damages()[name](before.path)
        after = asyncio.run(api.make(ask.recipe, ask.settings, contextlib.nullcontext))
        after.check()
    assert builder.made == 3


def test_looking_after_them(builder: Builder) -> None:
    ask, other = Asking(), Asking(templates.recipe(image="b"))
    ask(), other()
    keys = {ask.recipe.key, other.recipe.key}
    assert {key for key, found in api.list_templates(ask.settings) if found} == keys
    key = ask.recipe.key
    assert api.get(ask.settings, key[:12]).key == key
    assert api.verify(ask.settings, key).key == key
    templates.damages()["flip-memory"](os.path.join(ask.directory, key))
    assert api.get(ask.settings, key).key == key
    with pytest.raises(ImageError, match="damaged"):
        api.verify(ask.settings, key)
    templates.damages()["cut-manifest.json"](os.path.join(ask.directory, key))
    assert dict(api.list_templates(ask.settings))[key] is None
    with pytest.raises(ImageError, match="damaged"):
        api.get(ask.settings, key)
    assert api.remove(ask.settings, key[:12]) == key
    assert api.holder(key) is None
    assert files.names(ask.directory) == [other.recipe.key]
    with pytest.raises(NotFoundError):
        api.remove(ask.settings, key)


def test_what_is_open_outlives_its_removal(builder: Builder) -> None:
    ask = Asking()

    async def main() -> Held | None:
        return await api.obtain(ask.recipe, ask.settings, contextlib.nullcontext, None, ask.background.append)

    held = asyncio.run(main())
    assert held is not None
    with contextlib.closing(held):
        api.remove(ask.settings, ask.recipe.key)
        assert os.read(held.state, 7) == b"state 1"
        assert any(os.pread(held.memory, memory.PAGE, 0))
