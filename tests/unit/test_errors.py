"""Errors: exit codes, gRPC codes, and what becomes of one that crosses a connection."""

from __future__ import annotations

import pytest

from hako import errors

CLASSES = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, errors.HakoError)]


def test_every_error_is_a_hako_error_with_usable_codes() -> None:
    assert len(CLASSES) > 10
    assert all(1 <= kind.grpc_code <= 16 for kind in CLASSES)
    assert all(kind.exit_code == errors.EXIT_FAILURE for kind in CLASSES if "exit_code" not in vars(kind))


@pytest.mark.parametrize(
    "kind", [errors.ConfigError, errors.NotFoundError, errors.ExistsError, errors.StateError, errors.HypervisorError]
)
def test_an_error_comes_over_the_wire_as_itself(kind: type[errors.HakoError]) -> None:
    sent = kind("A sentence.")
    received = errors.from_wire(sent.grpc_code, str(sent))
    assert type(received) is kind
    assert str(received) == "A sentence."


@pytest.mark.parametrize("code", [0, 1, 2, errors.GRPC_INTERNAL, errors.GRPC_UNIMPLEMENTED, 99, -1])
def test_other_codes_are_kept(code: int) -> None:
    received = errors.from_wire(code, "A sentence.")
    assert type(received) is errors.AgentError
    assert received.grpc_code == code


@pytest.mark.parametrize("exit_code", [errors.EXIT_CANNOT_RUN, errors.EXIT_NOT_FOUND])
def test_a_command_that_cannot_be_run_keeps_its_exit_code(exit_code: int) -> None:
    received = errors.from_wire(errors.GRPC_NOT_FOUND, "No such command.", exit_code)
    assert isinstance(received, errors.CommandError)
    assert received.exit_code == exit_code
    assert received.grpc_code == errors.GRPC_NOT_FOUND


@pytest.mark.parametrize("exit_code", [None, 0, 1, 125, 128, 255])
def test_no_other_exit_code_is_believed(exit_code: int | None) -> None:
    assert errors.from_wire(errors.GRPC_INTERNAL, "x", exit_code).exit_code == errors.EXIT_FAILURE
