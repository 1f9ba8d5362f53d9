"""hako's errors: one root, and what each becomes as an exit code and as a gRPC status.

The text of an error is the sentence the user reads: what is wrong, where, and what to do about it.

    HakoError
    ├── ConfigError        a setting, flag or config.json is wrong
    ├── NotFoundError      the named thing does not exist
    ├── ExistsError        the named thing exists already
    ├── StateError         the thing is in a state that forbids this
    ├── ImageError         a container image or guest image cannot be used
    ├── HostError          the host lacks something (QEMU, space, a kernel feature)
    ├── HypervisorError    the VM could not be started, or died
    ├── AgentError         the agent in the guest refused or failed a call
    ├── ProtocolError      the other side broke the protocol
    ├── UnsupportedError   hako cannot do this, whatever is given
    └── TimedOutError      an answer did not come in time
"""

from __future__ import annotations

# gRPC status codes (google.golang.org/grpc/codes), as ttrpc uses them too.
GRPC_INVALID_ARGUMENT = 3
GRPC_DEADLINE_EXCEEDED = 4
GRPC_NOT_FOUND = 5
GRPC_ALREADY_EXISTS = 6
GRPC_RESOURCE_EXHAUSTED = 8
GRPC_FAILED_PRECONDITION = 9
GRPC_UNIMPLEMENTED = 12
GRPC_INTERNAL = 13
GRPC_UNAVAILABLE = 14

# Exit codes of the command line, as docker's: 125 is hako's own failure, 126 and 127 the command's.
EXIT_FAILURE = 125
EXIT_CANNOT_RUN = 126
EXIT_NOT_FOUND = 127


def sentence(error: BaseException) -> str:
    """What to tell a user of ``error``: the whole text of hako's own, and the kind of any other."""
    return str(error) if isinstance(error, HakoError) else f"{type(error).__name__}: {error}"


class HakoError(Exception):
    """Root of everything hako raises on purpose. ``str(error)`` is the sentence for the user."""

    grpc_code = GRPC_INTERNAL
    exit_code = EXIT_FAILURE


class ConfigError(HakoError):
    """A setting, flag, annotation or config.json is wrong."""

    grpc_code = GRPC_INVALID_ARGUMENT


class NotFoundError(HakoError):
    """The named sandbox, container, process or image does not exist."""

    grpc_code = GRPC_NOT_FOUND


class ExistsError(HakoError):
    """The named thing exists already."""

    grpc_code = GRPC_ALREADY_EXISTS


class StateError(HakoError):
    """The sandbox, container or process is in a state that forbids the call."""

    grpc_code = GRPC_FAILED_PRECONDITION


class ImageError(HakoError):
    """A container image or a guest image is missing, damaged or of another kind than needed."""

    grpc_code = GRPC_FAILED_PRECONDITION


class HostError(HakoError):
    """The host lacks something hako needs."""

    grpc_code = GRPC_FAILED_PRECONDITION


class HypervisorError(HakoError):
    """The VM could not be started, or is dead."""

    grpc_code = GRPC_UNAVAILABLE


class AgentError(HakoError):
    """The agent refused or failed a call. ``code`` is the gRPC code it gave."""

    def __init__(self, message: str, code: int = GRPC_INTERNAL) -> None:
        super().__init__(message)
        self.grpc_code = code


class CommandError(AgentError):
    """The container's command cannot be run: 127 when it is missing, 126 when it cannot be executed."""

    def __init__(self, message: str, code: int = GRPC_INVALID_ARGUMENT, *, exit_code: int) -> None:
        super().__init__(message, code)
        self.exit_code = exit_code


class ProtocolError(HakoError):
    """The peer sent something that is not the protocol. The connection is of no use any more."""

    grpc_code = GRPC_UNAVAILABLE


class UnsupportedError(HakoError):
    """What is asked for is nothing that hako, or a VM, can do."""

    grpc_code = GRPC_UNIMPLEMENTED


class TimedOutError(HakoError):
    """An answer did not come in time."""

    grpc_code = GRPC_UNAVAILABLE


_BY_CODE: dict[int, type[HakoError]] = {
    GRPC_INVALID_ARGUMENT: ConfigError,
    GRPC_NOT_FOUND: NotFoundError,
    GRPC_ALREADY_EXISTS: ExistsError,
    GRPC_FAILED_PRECONDITION: StateError,
    GRPC_UNAVAILABLE: HypervisorError,
    GRPC_DEADLINE_EXCEEDED: TimedOutError,
}


def from_wire(code: int, message: str, exit_code: int | None = None) -> HakoError:
    """The error that a peer reported with gRPC status ``code``; ``exit_code`` marks a command error."""
    if exit_code in (EXIT_CANNOT_RUN, EXIT_NOT_FOUND):
        return CommandError(message, code, exit_code=exit_code)
    kind = _BY_CODE.get(code)
    return kind(message) if kind is not None else AgentError(message, code)
