"""The library against real VMs: the examples of docs/library.md, and what they do not show."""

from __future__ import annotations

import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import pytest

import hako
from hako import errors
from hako.sandbox import daemon, records

pytestmark = [pytest.mark.system, pytest.mark.usefixtures("guest_image", "busybox_image")]

_PAGE = pathlib.Path(__file__).parents[2] / "docs" / "library.md"
_WAIT = """
import sys
import hako
result = hako.Sandbox.load(sys.argv[1]).container(sys.argv[2]).wait()
print(result.exit_status, result.error)
"""
_EXAMPLES = re.findall(r"^```python\n(.*?)^```", _PAGE.read_text(), re.MULTILINE | re.DOTALL)


def test_examples_of_the_documentation_run() -> None:
    assert len(_EXAMPLES) >= 10
    space: dict[str, object] = {}
    for example in _EXAMPLES:
        exec(compile(example, str(_PAGE), "exec"), space)


@pytest.fixture(scope="module")
def sandbox(guest_image: object, busybox_image: object) -> object:
    with hako.Sandbox(image="busybox", memory="256m") as started:
        started.wait_ready()
        yield started


def test_guest_has_a_kernel_and_memory_of_its_own(sandbox: hako.Sandbox) -> None:
    assert sandbox.run(["uname", "-r"]).stdout.strip() != os.uname().release
    memory = int(sandbox.run(["sh", "-c", "grep MemTotal /proc/meminfo"]).stdout.split()[1]) << 10
    assert 256 << 20 < memory < 512 << 20


def test_vms_have_different_boot_ids(sandbox: hako.Sandbox) -> None:
    read = ["cat", "/proc/sys/kernel/random/boot_id"]
    with hako.Sandbox(image="busybox") as other:
        host = pathlib.Path(read[1]).read_text()
        assert len({sandbox.run(read).stdout, other.run(read).stdout, host}) == 3
        assert sandbox.run(read).stdout == sandbox.run(read).stdout


def test_clock_is_the_hosts(sandbox: hako.Sandbox) -> None:
    before = time.time()
    guest = int(sandbox.run(["date", "+%s"]).stdout)
    assert before - 2 <= guest <= time.time() + 2


def test_clock_is_as_quick_as_the_hosts(sandbox: hako.Sandbox) -> None:
    script = "while read -r _; do read -r up _ </proc/uptime; echo $up; done"
    (stdin, asking), (answering, stdout) = os.pipe(), os.pipe()
    try:
        container = sandbox.create(["sh", "-c", script], stdin=stdin, stdout=stdout)
    finally:
        os.close(stdin)
        os.close(stdout)

    def lead() -> float:
        """Of the guest's clock before the host's, in seconds: of some readings that with the least delay."""
        readings = []
        for _ in range(8):
            before = time.monotonic()
            os.write(asking, b"\n")
            uptime = float(os.read(answering, 64))
            after = time.monotonic()
            readings.append((after - before, uptime - after))
        return min(readings)[1]

    try:
        first = lead()
        time.sleep(10)
        assert abs(lead() - first) < 0.3
    finally:
        os.close(asking)
        os.close(answering)
        container.delete(force=True)


def test_default_isolation_inside_the_vm(sandbox: hako.Sandbox) -> None:
    status = sandbox.run(["cat", "/proc/self/status"]).stdout
    assert "Seccomp:\t2" in status
    assert "CapEff:\t00000000a80425fb" in status
    assert sandbox.run(["unshare", "-m", "true"]).exit_status != 0
    assert sandbox.run(["mount", "-t", "tmpfs", "x", "/tmp"]).exit_status != 0
    assert sandbox.run(["sh", "-c", "echo 1 > /proc/sys/kernel/panic"]).exit_status != 0
    assert sandbox.run(["cat", "/proc/kcore"]).stdout == ""
    pids = sandbox.run(["sh", "-c", "echo $$; ls -d /proc/[0-9]* | wc -l"]).stdout.split()
    assert pids[0] == "1"
    assert int(pids[1]) < 5


def test_containers_of_one_sandbox_are_apart(sandbox: hako.Sandbox) -> None:
    one = sandbox.create(["sh", "-c", "echo mine > /file; sleep 1000"])
    two = sandbox.create(["sleep", "1000"])
    try:
        deadline = time.monotonic() + 30
        while one.run(["cat", "/file"]).stdout != "mine\n":
            assert time.monotonic() < deadline
        assert two.run(["cat", "/file"]).exit_status != 0
        assert [process["command"] for process in two.processes()] == ["sleep 1000"]
    finally:
        one.delete(force=True)
        two.delete(force=True)


def test_out_of_memory_is_reported(sandbox: hako.Sandbox) -> None:
    result = sandbox.run(["sh", "-c", "tail -c 100m /dev/zero > /dev/null"], memory="16m")
    assert result.oom
    assert result.exit_status == 137


def test_bytes_arrive_unchanged_and_in_order(sandbox: hako.Sandbox) -> None:
    data = os.urandom(24 << 20)
    result = sandbox.run(["cat"], input=data, timeout=120)
    assert result.stdout_bytes == data


def test_output_nobody_reads_holds_up_nothing_else(sandbox: hako.Sandbox) -> None:
    read, write = os.pipe()
    flood = sandbox.create(["cat", "/dev/zero"], stdout=write)
    os.close(write)
    try:
        assert sandbox.run(["echo", "still here"], timeout=60).stdout == "still here\n"
    finally:
        flood.delete(force=True)
        os.close(read)


def test_writing_into_a_closed_pipe_ends_the_process(sandbox: hako.Sandbox) -> None:
    read, write = os.pipe()
    flood = sandbox.create(["cat", "/dev/zero"], stdout=write)
    os.close(write)
    os.close(read)
    # A first process of a namespace survives SIGPIPE; what it tried to write fails.
    assert flood.wait(timeout=60).exit_status == 1
    flood.delete()


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"args": ["/nonexistent"]}, errors.CommandError, "/nonexistent"),
        ({"args": ["/etc"]}, errors.CommandError, "not permitted"),
        ({"args": ["true"], "user": "nobody-here"}, errors.ConfigError, "nobody-here"),
        ({"args": ["true"], "mounts": [("/nonexistent-source", "/data")]}, errors.ConfigError, "/nonexistent-source"),
        ({"args": ["true"], "mounts": [("/tmp", "relative")]}, errors.ConfigError, "absolute"),
        ({"args": ["true"], "image": "/nonexistent/rootfs"}, errors.NotFoundError, "/nonexistent/rootfs"),
        ({"args": ["true"], "memory": "lots"}, errors.ConfigError, "lots"),
        ({"args": ["true"], "tmpfs": ["relative"]}, errors.ConfigError, "absolute"),
    ],
)
def test_bad_requests_get_a_sentence_and_leave_nothing(
    sandbox: hako.Sandbox, options: dict[str, object], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=re.escape(words)) as caught:
        sandbox.run(**options)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    assert list(sandbox.containers()) == []
    shared = pathlib.Path(records.live_rootfs(sandbox.id, "x")).parents[1]
    assert [path.name for path in shared.iterdir()] == [".modules"]


def test_a_taken_name_is_refused(sandbox: hako.Sandbox) -> None:
    with hako.Sandbox(image="busybox", name="unique"), pytest.raises(errors.ExistsError, match="unique"):
        hako.Sandbox(image="busybox", name="unique")


def test_killed_vm_is_reported_and_cleaned_up() -> None:
    sandbox = hako.Sandbox(image="busybox", owned=False)
    sandbox.wait_ready()
    container = sandbox.create(["sleep", "1000"])
    state = sandbox.state
    command = [sys.executable, "-c", _WAIT, sandbox.id, container.id]
    waiting = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=_env())
    _until(lambda: _has_connection(waiting.pid))
    os.kill(state["vm_pid"], signal.SIGKILL)
    output, _ = waiting.communicate(timeout=30)
    status, _, reason = output.strip().partition(" ")
    assert status == "137"
    assert "signal 9" in reason or "SIGKILL" in reason
    _until(lambda: not os.path.exists(records.run_dir(sandbox.id)))
    assert not os.path.exists(records.data_dir(sandbox.id))
    _until(lambda: not _runs(state["pid"]))


def test_killed_sandbox_process_takes_the_vm_along_and_is_cleaned_up() -> None:
    sandbox = hako.Sandbox(image="busybox", owned=False, retain=True)
    sandbox.wait_ready()
    container = sandbox.create(["sleep", "1000"], mounts=[("/tmp", "/data")])
    state = sandbox.state
    os.kill(state["pid"], signal.SIGKILL)
    _until(lambda: not os.path.exists(records.run_dir(sandbox.id)))  # the guardian, with nobody asking
    _until(lambda: not _runs(state["vm_pid"]))
    record = sandbox.state
    assert record["status"] == "stopped"
    assert "killed" in record["error"]
    assert record["containers"][container.id]["exit_status"] == 137
    with pytest.raises(errors.NotFoundError):
        container.pause()
    sandbox.delete()
    assert not os.path.exists(records.data_dir(sandbox.id))


def test_killed_owner_takes_the_sandbox_along() -> None:
    code = "import hako, time; sb = hako.Sandbox(image='busybox'); print(sb.id, flush=True); time.sleep(600)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=_env()) as owner:
        assert owner.stdout is not None
        sandbox_id = owner.stdout.readline().strip()
        hako.Sandbox.load(sandbox_id).wait_ready()
        state = records.read(sandbox_id)
        owner.kill()
    _until(lambda: not os.path.exists(records.run_dir(sandbox_id)))
    _until(lambda: not _runs(state["pid"]) and not _runs(state["vm_pid"]))


def test_a_guest_that_does_not_answer_is_reported(tmp_path: pathlib.Path) -> None:
    from hako.config.load import load, override

    spec_config = override(load(), {"sandbox.start_timeout": "2", "guest.cmdline_extra": "rdinit=/usr/bin/crun"})
    from hako.sandbox import client, requests

    spec = requests.sandbox_spec(spec_config)
    # Forked from a process of its own: this one has threads.
    child = os.fork()
    if child == 0:
        status = 1
        try:
            owner = daemon.fork(spec, spec_config)
            client.exchange(owner, "Ready", {})
        except hako.HakoError as error:
            (tmp_path / "error").write_text(str(error))
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    text = (tmp_path / "error").read_text()
    assert spec.id in text
    assert "console" in text.lower()
    _until(lambda: not os.path.exists(records.run_dir(spec.id)))


def _runs(pid: int) -> bool:
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def _has_connection(pid: int) -> bool:
    """Whether the waiting helper has connected to the control socket."""
    directory = pathlib.Path(f"/proc/{pid}/fd")
    try:
        return any(os.readlink(entry).startswith("socket:") for entry in directory.iterdir())
    except FileNotFoundError:
        return False


def _until(condition: object, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


def _env() -> dict[str, str]:
    """For a program of its own that uses this clone's library."""
    return {**os.environ, "PYTHONPATH": str(_PAGE.parents[1] / "src")}
