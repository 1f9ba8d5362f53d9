"""Ids: which are accepted, and that those which are cannot lead out of a directory."""

from __future__ import annotations

import os
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hako import ids
from hako.errors import ConfigError

GOOD = ["a", "0", "Web-1", "a.b_c-d", "f" * 128, "k8s_POD_x.y", "0" * 64]
BAD = ["", ".", "..", "-a", "_a", ".a", "a/b", "/", "a b", "a\n", "a\0", "é", "٣", "f" * 129, "a:b", "~", "a\\b", "箱"]


@pytest.mark.parametrize("value", GOOD)
def test_good_ids_are_returned(value: str) -> None:
    assert ids.check(value, "The name") == value


@pytest.mark.parametrize("value", [*BAD, None, 1, b"a", ["a"]])
def test_bad_ids_are_refused_by_name(value: object) -> None:
    assert not ids.is_valid(value)
    with pytest.raises(ConfigError, match=r"^The name .* is not valid: use 1 to 128 letters, digits"):
        ids.check(value, "The name")


def test_new_ids_are_valid_and_differ() -> None:
    made = {ids.new_id() for _ in range(1000)}
    assert len(made) == 1000
    assert all(ids.is_valid(value) and len(value) == 16 for value in made)


@given(st.text(max_size=140) | st.text(string.ascii_letters + "./-_", max_size=140))
def test_an_accepted_id_is_a_plain_file_name(value: str) -> None:
    if ids.is_valid(value):
        assert os.path.normpath(os.path.join("/base", value)) == f"/base/{value}"
        assert value.isascii()
        assert value.isprintable()
