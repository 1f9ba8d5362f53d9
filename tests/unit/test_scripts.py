"""The installation's dealings with Debian packages, played through with a pretended apt."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from support import source

# Keeps what is installed in a file, one name a line. `new-lib` comes with `new`. Says E: as apt does.
_APT = """\
#!/bin/sh
echo "$0 $*" | sed 's|.*/||' >>calls
case " $* " in
*" update "*) [ ! -e offline ] || { echo "Err: no network"; exit 100; }; touch fresh; exit 0 ;;
*" autoremove "*) sed 's/^/Remv /; s/$/ [1.0]/' unneeded; exit 0 ;;
*" purge "*) for word; do sed -i "/^$word\\$/d" installed; done; exit 0 ;;
*" --assume-no "*) echo "0 upgraded, 2 newly installed, 0 to remove"; echo "Need to get 12.3 MB of archives."; exit 1 ;;
esac
[ -e fresh ] || { echo "E: Unable to locate package new"; exit 100; }
case " $* " in
*" -s "*) exit 0 ;;
esac
[ ! -e broken ] || { echo "E: Sub-process dpkg returned an error"; exit 100; }
echo "dlstatus:1:0.0:Retrieving" >&3
echo "pmstatus:new:55.5:Unpacking" >&3
echo "pmstatus:new:100:Done" >&3
printf 'new\\nnew-lib\\n' >>installed
"""
_DPKG_QUERY = "#!/bin/sh\nsed 's/^/installed /' installed; echo 'config-files gone'\n"


@pytest.fixture
def debian(tmp_path: Path) -> Path:
    """A directory that is a pretended Debian: its state in files, its programs in bin/."""
    (tmp_path / "bin").mkdir()
    for name, text in (("apt-get", _APT), ("apt-mark", "#!/bin/sh\n"), ("dpkg-query", _DPKG_QUERY)):
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    (tmp_path / "installed").write_text("base\nold\n")
    (tmp_path / "fresh").touch()
    return tmp_path


def shell(debian: Path, code: str) -> subprocess.CompletedProcess[str]:
    """Run ``code`` with the scripts' library on that machine."""
    environment = {
        **os.environ,
        "PATH": f"{debian / 'bin'}:{os.environ['PATH']}",
        "PREFIX": str(debian / "prefix"),
        "HERE": source.CLONE,
    }
    program = f'set -euo pipefail; . "$HERE/scripts/lib.sh"; {code}'
    return subprocess.run(
        ["bash", "-c", program], cwd=debian, env=environment, capture_output=True, text=True, timeout=60, check=False
    )


def calls(debian: Path) -> list[str]:
    """The words of each call of apt-get that are no options."""
    text = (debian / "calls").read_text() if (debian / "calls").exists() else ""
    return [" ".join(word for word in line.split() if word[0] != "-" and "=" not in word) for line in text.splitlines()]


def recorded(debian: Path) -> list[str]:
    return (debian / "prefix" / "lib" / "hako" / "installed-packages").read_text().split()


def test_nothing_is_asked_of_apt_when_all_is_there(debian: Path) -> None:
    done = shell(debian, "apt_install things base old")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert calls(debian) == []


def test_what_is_missing_is_installed_and_written_down_with_what_it_brought(debian: Path) -> None:
    done = shell(debian, "apt_install things base new")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "Installing things: new (2 packages, 12.3 MB to download) ...",
        "  downloading: 0 %",
        "  unpacking and setting up: 40 %",
        "  unpacking and setting up: 100 %",
    ]
    assert recorded(debian) == ["new", "new-lib"]
    assert "update" not in " ".join(calls(debian))


def test_lists_are_fetched_only_when_apt_does_not_know_the_package(debian: Path) -> None:
    (debian / "fresh").unlink()
    done = shell(debian, "apt_install things new")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Fetching the lists of Debian packages ...\n")
    assert calls(debian).count("apt-get update") == 1


def test_a_removed_package_with_configuration_left_is_missing(debian: Path) -> None:
    assert shell(debian, "missing_packages base gone").stdout == "gone\n"


@pytest.mark.parametrize(
    ("trouble", "message"),
    [
        ("broken", "Error: apt-get could not install new: E: Sub-process dpkg returned an error."),
        ("offline", "Error: The lists of Debian packages could not be fetched: Err: no network."),
    ],
)
def test_a_failure_is_one_sentence_with_apts_reason(debian: Path, trouble: str, message: str) -> None:
    (debian / trouble).touch()
    if trouble == "offline":
        (debian / "fresh").unlink()
    done = shell(debian, "apt_install things new")
    assert done.returncode == 1
    assert done.stderr.startswith(message)
    log = done.stderr.split()[-1].rstrip(".")
    assert os.path.exists(log)
    os.unlink(log)
    assert (debian / "installed").read_text().split() == ["base", "old"]


def test_only_added_packages_that_nothing_needs_are_removed(debian: Path) -> None:
    shell(debian, "apt_install things new")
    (debian / "unneeded").write_text("new\nold\n")  # new-lib has come to be needed; old was never ours
    done = shell(debian, "apt_remove")
    assert done.returncode == 0, done.stderr
    assert (debian / "installed").read_text().split() == ["base", "old", "new-lib"]


def test_nothing_is_removed_when_nothing_was_added(debian: Path) -> None:
    (debian / "unneeded").write_text("old\n")
    assert shell(debian, "apt_remove").returncode == 0
    assert calls(debian) == []


@pytest.mark.parametrize(("version", "found"), [("3.10", False), ("3.11", True), ("3.13", True), ("4.0", True)])
def test_only_a_python_that_is_new_enough_is_used(debian: Path, version: str, found: bool) -> None:
    python = debian / "python"
    major, minor = version.split(".")
    python.write_text(f"#!/bin/sh\n[ {major} -gt 3 ] || [ {minor} -ge 11 ]\n")
    python.chmod(0o755)
    done = shell(debian, f"HAKO_PYTHON={python}; find_python")
    assert (done.stdout.strip() == str(python)) is found


def test_the_commands_are_those_of_the_project_file(debian: Path) -> None:
    import tomllib

    scripts = tomllib.loads(source.read("pyproject.toml"))["project"]["scripts"]
    shown = shell(debian, 'printf "%s\\n" "$COMMANDS"').stdout.split()
    assert shown == [f"{name}={entry}" for name, entry in scripts.items()]


def test_the_fingerprint_follows_the_source(debian: Path) -> None:
    clone = debian / "clone"
    for name in ("src", "scripts"):
        (clone / name).mkdir(parents=True)
    (clone / "pyproject.toml").touch()
    code = f"HERE={clone}; PYTHON=/bin/true; source_hash"
    first = shell(debian, code).stdout
    (clone / "src" / "x.pyc").touch()
    assert shell(debian, code).stdout == first
    (clone / "src" / "x.py").touch()
    assert shell(debian, code).stdout not in ("", first)


def test_a_launcher_is_isolated_from_the_users_environment(tmp_path: Path) -> None:
    package = tmp_path / "a 'quoted' place"
    package.mkdir()
    (package / "entry.py").write_text(
        "import json, sys\ndef go():\n    print(sys.flags.isolated, sys.flags.no_site)\n    return 3\n"
    )
    command = tmp_path / "command"
    python = os.path.realpath("/usr/bin/python3")
    launcher = os.path.join(source.CLONE, "scripts", "launcher.py")
    subprocess.run([python, launcher, command, python, "entry:go", str(package)], check=True)
    (tmp_path / "json.py").write_text("raise SystemExit('the wrong one')")
    done = subprocess.run(
        [command],
        env={"PYTHONPATH": str(tmp_path), "PATH": "/"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (3, "1 1\n", "")
    assert sorted(os.listdir(tmp_path)) == ["a 'quoted' place", "command", "json.py"]
