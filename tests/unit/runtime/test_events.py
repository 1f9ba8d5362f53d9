"""``hako-runtime events``: runc's statistics from the guest's, and the end of it."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hako.errors import NotFoundError
from hako.runtime import containers, events
from hako.runtime.containers import Container
from hako.runtime.main import main

Captured = pytest.CaptureFixture[str]


def stats(**changes: Any) -> dict[str, Any]:
    """An answer of the sandbox, as hako.sandbox.replies.stats makes it."""
    answer = {
        "cpu": {"usage_usec": 12, "user_usec": 7, "system_usec": 5, "nr_periods": 9, "nr_throttled": 3,
                "throttled_usec": 4},
        "memory": {"usage": 1000, "limit": 4096, "peak": 2000, "swap": 24,
                   "stat": {"file": 300, "anon": 600, "kernel": 80, "sock": 2}, "events": {"max": 6, "oom_kill": 0}},
        "pids": {"current": 2, "limit": 50},
        "io": {"rbytes": 10, "wbytes": 20, "rios": 1, "wios": 2},
    }  # fmt: skip
    return answer | changes


def test_what_the_guest_counts_is_told_in_runcs_units() -> None:
    assert events.data(stats()) == {
        "cpu": {
            "usage": {"total": 12000, "kernel": 5000, "user": 7000},
            "throttling": {"periods": 9, "throttledPeriods": 3, "throttledTime": 4000},
        },
        "cpuset": {},
        "memory": {
            "cache": 300,
            "usage": {"limit": 4096, "usage": 1000, "max": 2000, "failcnt": 6},
            "swap": {"limit": 0, "usage": 1024, "failcnt": 0},
            "kernel": {"limit": 0, "usage": 80, "failcnt": 0},
            "kernelTCP": {"limit": 0, "usage": 2, "failcnt": 0},
            "raw": {"file": 300, "anon": 600, "kernel": 80, "sock": 2},
        },
        "pids": {"current": 2, "limit": 50},
        "blkio": {
            "ioServiceBytesRecursive": [{"op": "Read", "value": 10}, {"op": "Write", "value": 20}],
            "ioServicedRecursive": [{"op": "Read", "value": 1}, {"op": "Write", "value": 2}],
        },
        "hugetlb": {},
        "intel_rdt": {},
        "network_interfaces": None,
    }


def test_what_the_guest_does_not_know_is_left_out() -> None:
    nothing: dict[str, Any] = {"usage": 5, "limit": None, "peak": None, "swap": None, "stat": {}, "events": {}}
    found = events.data(
        stats(cpu={}, memory=nothing, pids={"current": 1, "limit": None}, io=dict.fromkeys(stats()["io"], 0))
    )
    assert found["cpu"] == {"usage": {"total": 0, "kernel": 0, "user": 0}, "throttling": {}}
    assert found["memory"]["usage"] == {"limit": (1 << 64) - 1, "usage": 5, "failcnt": 0}
    assert "raw" not in found["memory"]
    assert found["pids"] == {"current": 1}
    assert found["blkio"] == {}


class Guest:
    """Answers in the place of the sandbox of the container ``one``, whose process on the host is real."""

    def __init__(self, root: str) -> None:
        self.process = subprocess.Popen(["sleep", "600"])
        self.container = Container(
            root=root, id="one", bundle="/b", rootfs="/b/rootfs", sandbox="0" * 16, guest_id="one", created_ns=1,
            owner="root", oci_version="1.0.2", annotations={}, hooks={}, pid=self.process.pid,
            started=containers.start_time(self.process.pid),
        )  # fmt: skip
        containers.claim(root, "one")
        self.container.save()
        #: What follows; when nothing is left the container ends, and the sandbox with it.
        self.answers: list[dict[str, Any]] = []
        self.record: dict[str, Any] = {"status": "running"}

    def call(self, _container: Container, method: str, _params: dict[str, Any]) -> dict[str, Any]:
        """The next answer."""
        assert method == "Stats"
        if not self.answers:
            self.end()
            raise NotFoundError("The sandbox has ended.")
        return self.answers.pop(0)

    def end(self) -> None:
        """The container's process ends."""
        self.process.kill()
        self.process.wait()
        self.record["status"] = "stopped"


@pytest.fixture
def guest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Guest]:
    """The container ``one`` of the root ``tmp_path``/root."""
    made = Guest(str(tmp_path / "root"))
    monkeypatch.setattr(containers, "call", made.call)
    monkeypatch.setattr(containers, "record_of", lambda _: made.record)
    monkeypatch.chdir(tmp_path)
    yield made
    made.end()


def told(capsys: Captured) -> list[str]:
    """The types of the events that were printed; each names the container."""
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert all(event["id"] == "one" for event in found)
    assert all(("data" in event) is (event["type"] == "stats") for event in found)
    return [event["type"] for event in found]


def oom(count: int) -> dict[str, Any]:
    """Statistics after so many kills."""
    return stats(memory={**stats()["memory"], "events": {"oom_kill": count}})


def test_once(guest: Guest, capsys: Captured) -> None:
    guest.answers = [stats()]
    assert main(["--root", "root", "events", "--stats", "one"]) == 0
    assert told(capsys) == ["stats"]


def test_again_and_again_until_the_container_ends(guest: Guest, capsys: Captured) -> None:
    guest.answers = [oom(1), oom(1), oom(3), oom(3)]
    assert main(["--root", "root", "events", "--interval", "1ms", "one"]) == 0
    assert told(capsys) == ["stats", "oom", "stats", "stats"]


def test_a_container_that_ends_for_want_of_memory(guest: Guest, capsys: Captured) -> None:
    guest.answers = [oom(0)]
    guest.record["oom"] = True
    assert main(["--root", "root", "events", "--interval", "1ms", "one"]) == 0
    assert told(capsys) == ["oom"]


def test_the_end_is_noticed_at_once(guest: Guest, capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    def last(*_: object) -> dict[str, Any]:
        guest.end()
        return stats()

    monkeypatch.setattr(containers, "call", last)
    assert main(["--root", "root", "events", "--interval", "24h", "one"]) == 0
    assert told(capsys) == []


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--interval", "0", "one"], "duration interval must be greater than 0"),
        (["--interval", "-5s", "one"], "duration interval must be greater than 0"),
        (["--interval", "0", "two"], "container does not exist"),
    ],
)
def test_what_is_refused(words: list[str], reason: str, guest: Guest, capsys: Captured) -> None:
    assert main(["--root", "root", "events", *words]) == 1
    assert reason in capsys.readouterr().err


def test_a_container_that_has_stopped_has_no_events(guest: Guest, capsys: Captured) -> None:
    guest.end()
    assert main(["--root", "root", "events", "--stats", "one"]) == 1
    assert "container with id one is not running" in capsys.readouterr().err


def test_a_number_that_another_process_has_got_is_not_waited_for(guest: Guest, capsys: Captured) -> None:
    guest.container.change(started=1).save()
    guest.answers = [stats()]
    assert main(["--root", "root", "events", "--interval", "24h", "one"]) == 1
    assert "container with id one is not running" in capsys.readouterr().err
