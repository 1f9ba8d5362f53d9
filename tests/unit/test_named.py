"""NamedTuple, by the same tests as typing's."""

from __future__ import annotations

import copy
import pickle
import sys
import typing
from typing import Any

import pytest

from hako import named


def _make(base: Any) -> Any:
    class Place(base):
        """Where something is."""

        name: str
        line: int = 1
        marks: tuple[str, ...] = ()

        @property
        def text(self) -> str:
            return f"{self.name}:{self.line}"

        @classmethod
        def nowhere(cls) -> Any:
            return cls("")

    Place.__qualname__ = "Place"
    return Place


@pytest.fixture(params=[typing.NamedTuple, named.NamedTuple], ids=["typing", "hako"])
def place(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    kind = _make(request.param)
    monkeypatch.setattr(sys.modules[__name__], "Place", kind, raising=False)  # for pickle
    return kind


@pytest.mark.parametrize(
    ("values", "names", "made"),
    [
        (("a", 2, ("x",)), {}, ("a", 2, ("x",))),
        (("a",), {}, ("a", 1, ())),
        ((), {"name": "a"}, ("a", 1, ())),
        (("a",), {"marks": ("x",)}, ("a", 1, ("x",))),
        ((), {"marks": (), "line": 3, "name": "a"}, ("a", 3, ())),
    ],
)
def test_made(place: Any, values: tuple[object, ...], names: dict[str, object], made: tuple[object, ...]) -> None:
    one = place(*values, **names)
    assert one == made
    assert (one.name, one.line, one.marks) == made
    assert isinstance(one, tuple)
    assert type(one) is place


@pytest.mark.parametrize(
    ("values", "names"),
    [((), {}), ((), {"line": 1}), (("a", 1, (), 4), {}), (("a",), {"name": "b"}), (("a",), {"colour": "red"})],
)
def test_not_made(place: Any, values: tuple[object, ...], names: dict[str, object]) -> None:
    with pytest.raises(TypeError):
        place(*values, **names)


def test_used_as_a_tuple(place: Any) -> None:
    name, line, _ = one = place("a", 2)
    assert (name, line) == ("a", 2)
    assert one[0] == "a"
    assert one == place("a", 2)
    assert hash(one) == hash(("a", 2, ()))
    assert one < place("b")
    with pytest.raises(AttributeError):
        one.name = "b"
    with pytest.raises(AttributeError):
        one.other = "b"


def test_its_own_methods(place: Any) -> None:
    one = place("a", 2)
    assert one._replace(line=3) == ("a", 3, ())
    assert type(one._replace(line=3)) is place
    with pytest.raises(ValueError, match="colour"):
        one._replace(colour="red")
    assert one._asdict() == {"name": "a", "line": 2, "marks": ()}
    assert list(one._asdict()) == list(place._fields) == ["name", "line", "marks"]
    assert place._field_defaults == {"line": 1, "marks": ()}
    assert place._make(["a", 2, ()]) == one
    assert repr(one) == "Place(name='a', line=2, marks=())"
    assert place.__doc__ == "Where something is."
    assert one.text == "a:2"
    assert place.nowhere() == ("", 1, ())


def test_matched_and_copied(place: Any) -> None:
    one = place("a", 2)
    match one:
        case place(name, line):
            assert (name, line) == ("a", 2)
        case _:
            pytest.fail("it did not match")
    for other in (copy.copy(one), copy.deepcopy(one), pickle.loads(pickle.dumps(one))):
        assert other == one
        assert type(other) is place


@pytest.mark.parametrize("base", [typing.NamedTuple, named.NamedTuple], ids=["typing", "hako"])
def test_fields_without_defaults_come_first(base: Any) -> None:
    with pytest.raises(TypeError):

        class Wrong(base):
            line: int = 1
            name: str
