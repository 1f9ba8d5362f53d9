"""Running other programs to completion: the one place that does, so that errors read alike everywhere.

Long-running children (QEMU, the sandbox process) are started by their owners; see hypervisor/ and sandbox/.
"""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Callable, Mapping, Sequence

from hako.errors import HostError

#: Environment a child gets unless its caller says otherwise; nothing of the user's leaks in.
BASE_ENV = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"}


def find(name: str) -> str | None:
    """The program ``name``, a path or a file of the usual directories; None when there is none that can be run.

    What shutil.which() does, which takes the imports of bzip2 and lzma.
    """
    places = [name] if "/" in name else [os.path.join(place, name) for place in BASE_ENV["PATH"].split(":")]
    return next((place for place in places if os.path.isfile(place) and os.access(place, os.X_OK)), None)


class CommandFailedError(HostError):
    """A program ended with an exit code its caller did not allow. Holds argv, returncode and stderr."""

    def __init__(self, argv: Sequence[str], returncode: int, stderr: str) -> None:
        last = [line.strip() for line in stderr.splitlines() if line.strip()][-1:]
        reason = last[0] if last else "it said nothing"
        super().__init__(f"{os.path.basename(argv[0])} failed with status {returncode}: {reason} ({shlex.join(argv)})")
        self.argv = list(argv)
        self.returncode = returncode
        self.stderr = stderr


def run(
    argv: Sequence[str],
    *,
    cwd: str | None = None,
    input: bytes | None = None,
    env: Mapping[str, str] | None = None,
    timeout: float | None = None,
    check: bool = True,
    missing: str = "",
    on_line: Callable[[str], None] | None = None,
    merge: bool = False,
    pass_fds: Sequence[int] = (),
) -> subprocess.CompletedProcess[bytes]:
    """Run ``argv`` to its end and return its output.

    ``missing`` is the remedy added when the program does not exist. ``on_line`` gets each line of
    standard error as it comes (progress); with ``merge`` standard output's lines too, for programs that
    report there. ``pass_fds`` are descriptors that it inherits. Raises CommandFailedError, or HostError for a missing
    program or when ``timeout`` seconds pass.
    """
    full_env = dict(BASE_ENV if env is None else env)
    try:
        if on_line is not None:
            return _run_with_progress(argv, cwd, full_env, on_line, check=check, merge=merge)
        done = subprocess.run(
            argv,
            cwd=cwd,
            input=b"" if input is None else input,  # never the caller's own standard input
            env=full_env,
            timeout=timeout,
            capture_output=True,
            check=False,
            pass_fds=pass_fds,
        )
    except FileNotFoundError as error:
        if cwd is not None and not os.path.isdir(cwd):
            raise HostError(f"Cannot run {argv[0]}: its working directory {cwd} does not exist.") from error
        raise HostError(f"{argv[0]} is not installed. {missing or 'Install it and try again.'}") from error
    except subprocess.TimeoutExpired as error:
        raise HostError(f"{shlex.join(argv)} did not end within {timeout:g} s.") from error
    if check and done.returncode != 0:
        raise CommandFailedError(argv, done.returncode, done.stderr.decode(errors="replace"))
    return done


def _run_with_progress(
    argv: Sequence[str],
    cwd: str | None,
    env: dict[str, str],
    on_line: Callable[[str], None],
    *,
    check: bool,
    merge: bool,
) -> subprocess.CompletedProcess[bytes]:
    kept: list[str] = []
    with subprocess.Popen(
        argv,
        cwd=cwd,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE if merge else subprocess.DEVNULL,
        stderr=subprocess.STDOUT if merge else subprocess.PIPE,
    ) as child:
        lines = child.stdout if merge else child.stderr
        assert lines is not None
        try:
            for raw in lines:
                line = raw.decode(errors="replace").rstrip("\n")
                kept = [*kept[-50:], line]
                on_line(line)
        except BaseException:
            child.kill()  # leaving the block waits for the child: an interrupted caller must not wait long
            raise
    stderr = "\n".join(kept)
    if check and child.returncode != 0:
        raise CommandFailedError(argv, child.returncode, stderr)
    return subprocess.CompletedProcess(list(argv), child.returncode, b"", stderr.encode())
