"""hako's log: what is written where, in which form, and that silence costs nothing."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from hako import log, log_output
from support import source


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    """Put the process's logging back as it was."""
    root = logging.getLogger()
    before = (root.level, list(root.handlers), logging.raiseExceptions)
    kept = {key: value for key, value in vars(log._State).items() if not key.startswith("_")}
    yield
    for handler in log_output._installed:
        root.removeHandler(handler)
        handler.close()
    log_output._installed.clear()
    for key, value in kept.items():
        setattr(log._State, key, value)
    root.setLevel(before[0])
    logging.raiseExceptions = before[2]


def test_json_lines_have_what_engines_look_for(tmp_path: Path) -> None:
    path = tmp_path / "log"
    log.setup("info", format="json", path=str(path))
    log.get("vm").error('It "died".\nTwice.', sandbox="web", code=3, where=Path("/x"), level="mine")
    (line,) = path.read_text().splitlines()
    value = json.loads(line)
    assert value.pop("time")[10:11] == "T"
    assert value == {
        "level": "error",
        "msg": 'It "died".\nTwice.',
        "source": "hako.vm",
        "sandbox": "web",
        "code": 3,
        "where": "/x",
    }


def test_text_lines_quote_what_needs_it(tmp_path: Path) -> None:
    path = tmp_path / "log"
    log.setup(path=str(path))
    log.get().warning("Odd.", a="plain", b="two words", c='x="y"', d="", e="line\nline", f=None)
    text = path.read_text()
    assert text.endswith('Z WARNING hako: Odd. a=plain b="two words" c="x=\\"y\\"" d="" e="line\\nline" f=None\n')
    assert text.count("\n") == 1


def test_percent_signs_and_braces_are_text(tmp_path: Path) -> None:
    path = tmp_path / "log"
    log.setup(path=str(path))
    log.get().info("100 %s {} %(x)d")
    assert "hako: 100 %s {} %(x)d\n" in path.read_text()


@pytest.mark.parametrize(
    ("level", "heard"),
    [("debug", "diwe"), ("info", "iwe"), ("warning", "we"), ("error", "e")],
)
def test_levels(tmp_path: Path, level: str, heard: str) -> None:
    path = tmp_path / "log"
    log.setup(level, path=str(path))
    out = log.get()
    for say in (out.debug, out.info, out.warning, out.error):
        say(f"said={say.__name__}")
    assert "".join(word.partition("=")[2][:1] for word in path.read_text().split() if "said=" in word) == heard


def test_a_failure_shows_its_traceback_only_at_debug(tmp_path: Path) -> None:
    for level, expected in (("info", False), ("debug", True)):
        path = tmp_path / level
        log.setup(level, path=str(path))
        try:
            raise KeyError("inner")
        except KeyError as error:
            log.get().failure("The VM died.", error)
        text = path.read_text()
        assert "The VM died. 'inner'" in text
        assert ("Traceback" in text) is expected


def test_messages_of_libraries_go_to_the_same_place(tmp_path: Path) -> None:
    path = tmp_path / "log"
    log.setup("info", path=str(path))
    log.install()
    logging.getLogger("a.library").warning("From %s.", "elsewhere")
    logging.getLogger("a.library").debug("Not this.")
    assert path.read_text().endswith("WARNING a.library: From elsewhere.\n")


def test_the_file_is_turned_over_and_never_grows_beyond_its_size(tmp_path: Path) -> None:
    path = tmp_path / "log"
    log.setup(path=str(path), max_size=2000)
    out = log.get()
    for number in range(200):
        out.info(f"message {number:03}")
        assert path.stat().st_size < 2000
    assert sorted(os.listdir(tmp_path)) == ["log", "log.1"]
    assert (tmp_path / "log.1").stat().st_size < 2100
    said = (tmp_path / "log.1").read_text() + path.read_text()
    last = [int(line.split()[-1]) for line in said.splitlines()]
    assert last == list(range(last[0], 200)), "nothing is lost between the two"


def test_processes_that_share_a_file_lose_nothing_at_a_turn_over(tmp_path: Path) -> None:
    path = tmp_path / "log"
    code = (
        "import sys; from hako import log\n"
        "log.setup(path=sys.argv[1], max_size=3000)\n"
        "for n in range(100): log.get(sys.argv[2]).info(f'n={n}')"
    )
    environment = {**os.environ, "PYTHONPATH": source.SOURCE}
    writers = [
        subprocess.Popen([sys.executable, "-c", code, str(path), name], env=environment, stderr=subprocess.PIPE)
        for name in ("a", "b", "c")
    ]
    assert [writer.communicate()[1] for writer in writers] == [b""] * 3
    lines = ((tmp_path / "log.1").read_text() + path.read_text()).splitlines()
    assert all(line.count("n=") == 1 for line in lines), "no line is torn"
    assert {line.split()[2] for line in lines} <= {"hako.a:", "hako.b:", "hako.c:"}
    assert sum(len(line) + 1 for line in lines) > 3000


def test_a_full_disk_does_not_stop_the_program(capfd: pytest.CaptureFixture[str]) -> None:
    log.setup(path="/dev/full")
    log.get().error("Lost.")
    assert capfd.readouterr().err == ""


def test_the_file_is_for_root_alone(tmp_path: Path) -> None:
    log.setup(path=str(tmp_path / "log"))
    log.get().info("x")
    assert (tmp_path / "log").stat().st_mode & 0o777 == 0o600


def test_threads_write_whole_lines(tmp_path: Path) -> None:
    log.setup(path=str(tmp_path / "log"))
    log.install()
    threads = [threading.Thread(target=lambda: [log.get().info("x" * 500) for _ in range(50)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lines = (tmp_path / "log").read_text().splitlines()
    assert len(lines) == 200
    assert {len(line) for line in lines} == {len(lines[0])}


def test_a_library_says_nothing_to_a_program_without_logging() -> None:
    code = (
        "import sys; from hako import log; log.get().error('x')\n"
        "assert 'logging' not in sys.modules\n"
        "import logging; logging.basicConfig(format='%(name)s %(message)s')\n"
        "log.get('vm').error('Heard.'); log.get().info('Not this.')"
    )
    environment = {**os.environ, "PYTHONPATH": source.SOURCE}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stderr == "hako.vm Heard.\n"


def test_messages_below_the_level_do_not_load_logging() -> None:
    code = (
        "import sys; from hako import log; log.setup('warning'); log.get().info('x')\n"
        "assert 'logging' not in sys.modules; log.get().warning('Now.'); assert 'logging' in sys.modules"
    )
    environment = {**os.environ, "PYTHONPATH": source.SOURCE}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stderr.endswith("WARNING hako: Now.\n")
