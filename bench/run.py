"""hako beside runc, interleaved in one run: medians, spread and ratios, as text and JSON.

    python bench/run.py [--quick] [--runs N] [--only NAME ...] [--json FILE] [--hako PATH]

Uses the installed ``hako`` and its image ``busybox``, and cleans up after itself. What is measured is in
docs/performance.md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

#: A machine whose own loop varies more than this from run to run cannot tell small differences.
NOISY = 0.25


class Piece(NamedTuple):
    """One thing that is measured: its unit, hako's way and, where there is one, runc's."""

    name: str
    unit: str
    ours: Callable[[], float]
    theirs: Callable[[], float] | None = None


class Bench:
    """What the pieces need: the commands, a bundle for runc, and a running container of each kind."""

    def __init__(self, hako: str, stack: ExitStack) -> None:
        self.hako = hako
        self.runc = shutil.which("runc")
        self.directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="hako-bench-"))
        self.number = 0
        self.bundles: dict[str, str] = {}
        self._stack = stack

    def start(self) -> None:
        """Start the container that the pieces look at, and its counterpart."""
        name = f"bench-{os.getpid()}"
        self.box = output([self.hako, "run", "-d", "--name", name, "busybox", "sleep", "100000"])
        self._stack.callback(quiet, [self.hako, "rm", "-f", self.box])
        if self.runc is None:
            return
        bundle = self._bundle(["sleep", "100000"])
        quiet([self.runc, "run", "-d", "--bundle", bundle, name])
        self._stack.callback(quiet, [self.runc, "delete", "-f", name])
        self.runc_box = name

    def state(self) -> dict[str, Any]:
        """What the running container's sandbox has written down."""
        path = os.path.join(os.environ.get("HAKO_STATE_ROOT", "/run/hako"), "sandboxes", self.box, "state.json")
        with open(path, encoding="utf-8") as file:
            found: dict[str, Any] = json.load(file)
        return found

    def _bundle(self, args: list[str]) -> str:
        key = " ".join(args)
        if key in self.bundles:
            return self.bundles[key]
        path = os.path.join(self.directory, f"bundle{len(self.bundles)}")
        os.mkdir(path)
        rootfs = self.state()["containers"][self.box]["lower"]
        subprocess.run([str(self.runc), "spec"], cwd=path, check=True)
        with open(os.path.join(path, "config.json"), encoding="utf-8") as file:
            spec = json.load(file)
        spec["root"] = {"path": rootfs, "readonly": True}
        spec["process"] |= {"args": args, "terminal": False}
        spec["process"].pop("rlimits", None)
        with open(os.path.join(path, "config.json"), "w", encoding="utf-8") as file:
            json.dump(spec, file)
        self.bundles[key] = path
        return path

    def run_ours(self, *args: str) -> float:
        """Seconds of a whole ``hako run``."""
        return timed([self.hako, "run", "--rm", "busybox", *args])

    def run_theirs(self, *args: str) -> float:
        """Seconds of a whole ``runc run``."""
        self.number += 1
        bundle = self._bundle(list(args))
        return timed([str(self.runc), "run", "--bundle", bundle, f"bench-{os.getpid()}-{self.number}"])

    def throughput(self) -> float:
        """MB/s of bytes that go into a container and come back."""
        size = 32 << 20
        with open("/dev/zero", "rb") as zeros:
            data = zeros.read(size)
        started = time.monotonic()
        done = subprocess.run([self.hako, "exec", "-i", self.box, "cat"], input=data, capture_output=True, check=True)
        seconds = time.monotonic() - started
        if done.stdout != data:
            raise SystemExit("The bytes that came back are not those that went in.")
        return size / seconds / 1e6

    def processes(self) -> Iterator[int]:
        """The host's processes of the running container's sandbox."""
        for entry in os.listdir("/proc"):
            if entry.isdigit():
                try:
                    with open(f"/proc/{entry}/cmdline", "rb") as file:
                        mine = self.box.encode() in file.read()
                except OSError:
                    continue
                if mine and int(entry) != os.getpid():
                    yield int(entry)
        yield int(self.state()["pid"])

    def memory(self) -> float:
        """MiB of memory of the idle sandbox, by PSS of all its processes."""
        return sum(pss(pid) for pid in set(self.processes())) / 1024

    def idle_cpu(self) -> float:
        """Milliseconds of processor time that the idle sandbox takes in a second."""
        seconds = 5.0
        pids = set(self.processes())
        before = sum(cpu_ms(pid) for pid in pids)
        time.sleep(seconds)
        return (sum(cpu_ms(pid) for pid in pids) - before) / seconds

    def pieces(self) -> list[Piece]:
        """All that can be measured."""
        hako, runc, box = self.hako, str(self.runc), self.box

        def beside(name: str, ours: Callable[[], float], theirs: Callable[[], float]) -> Piece:
            return Piece(name, "ms", lambda: ours() * 1e3, (lambda: theirs() * 1e3) if self.runc else None)

        def alone(name: str, *args: str) -> Piece:
            return Piece(name, "ms", lambda: timed([hako, *args]) * 1e3)

        return [
            beside("run", lambda: self.run_ours("true"), lambda: self.run_theirs("true")),
            beside(
                "exec",
                lambda: timed([hako, "exec", box, "true"]),
                lambda: timed([runc, "exec", self.runc_box, "true"]),
            ),
            beside("inspect", lambda: timed([hako, "inspect", box]), lambda: timed([runc, "state", self.runc_box])),
            alone("stats", "stats", "--no-stream", "--interval", "0", box),
            alone("version", "version"),
            Piece("streams", "MB/s", self.throughput),
            Piece("memory", "MiB", self.memory),
            Piece("idle-cpu", "ms/s", self.idle_cpu),
        ]

    def phases(self) -> list[tuple[str, float]]:
        """Milliseconds of each phase of the running container's start."""
        trace = self.state()["trace"]
        found, last = [], trace[0][1]
        for name, when in trace[1:]:
            found.append((str(name), (when - last) / 1e6))
            last = when
        return found


def output(argv: list[str]) -> str:
    """What a command prints."""
    return subprocess.run(argv, stdout=subprocess.PIPE, text=True, check=True).stdout.strip()


def quiet(argv: list[str]) -> None:
    """Run a command whose output does not matter."""
    subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, check=True)


def timed(argv: list[str]) -> float:
    """Seconds that a command takes."""
    started = time.monotonic()
    quiet(argv)
    return time.monotonic() - started


def pss(pid: int) -> int:
    """KiB of memory of a process, shared pages in parts."""
    try:
        with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as file:
            return next(int(line.split()[1]) for line in file if line.startswith("Pss:"))
    except OSError:
        return 0


def cpu_ms(pid: int) -> float:
    """Milliseconds of processor time that a process has taken."""
    with open(f"/proc/{pid}/stat", encoding="ascii") as file:
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * 1000 / os.sysconf("SC_CLK_TCK")


def noise() -> float:
    """How much a loop of fixed work varies: (slowest - quickest) / quickest."""
    times = []
    for _ in range(7):
        started = time.monotonic()
        sum(range(1_000_000))
        times.append(time.monotonic() - started)
    return max(times) / min(times) - 1


def machine(hako: str) -> dict[str, Any]:
    """What the figures were measured on."""
    return {
        "date": time.strftime("%Y-%m-%d"),
        "kernel": platform.release(),
        "cpus": os.cpu_count(),
        "load": os.getloadavg()[0],
        "noise": round(noise(), 3),
        "hako": output([hako, "version"]),
        "runc": output(["runc", "--version"]).splitlines()[0] if shutil.which("runc") else "",
        "qemu": output(["qemu-system-x86_64", "--version"]).splitlines()[0],
    }


def measure(pieces: list[Piece], runs: int) -> list[dict[str, Any]]:
    """Run each piece ``runs`` times, hako's and runc's in turn."""
    found = []
    for piece in pieces:
        ours, theirs = [], []
        for _ in range(runs):
            ours.append(piece.ours())
            if piece.theirs is not None:
                theirs.append(piece.theirs())
        row: dict[str, Any] = {"name": piece.name, "unit": piece.unit, "hako": summary(ours)}
        if theirs:
            row["runc"] = summary(theirs)
            row["ratio"] = row["hako"]["median"] / row["runc"]["median"]
        found.append(row)
        print(line(row), flush=True)
    return found


def summary(values: list[float]) -> dict[str, float]:
    """Least, median and greatest."""
    return {"min": min(values), "median": statistics.median(values), "max": max(values)}


def line(row: dict[str, Any]) -> str:
    """One row of the table."""
    ours = row["hako"]
    text = f"{row['name']:<10} {ours['median']:>9.1f} {row['unit']:<5} ({ours['min']:.1f} to {ours['max']:.1f})"
    if "runc" in row:
        text = f"{text:<48} runc {row['runc']['median']:>7.1f}   ratio {row['ratio']:.1f}"
    return text


@contextmanager
def _bench(hako: str) -> Iterator[Bench]:
    with ExitStack() as stack:
        bench = Bench(hako, stack)
        bench.start()
        yield bench


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--quick", action="store_true", help="three runs of each")
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--only", action="append", default=[], metavar="NAME")
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--hako", default=shutil.which("hako") or "hako")
    asked = parser.parse_args()
    about = machine(asked.hako)
    print(", ".join(f"{key} {value}" for key, value in about.items()))
    if about["noise"] > NOISY:
        print(f"Warning: this machine is noisy (its own loop varies by {about['noise']:.0%}); trust ratios alone.")
    with _bench(asked.hako) as bench:
        print("\nphases of a cold start, ms:")
        phases = bench.phases()
        for name, ms in phases:
            print(f"  {name:<22} {ms:>7.0f} {'#' * round(ms / 50)}")
        print()
        pieces = [piece for piece in bench.pieces() if not asked.only or piece.name in asked.only]
        rows = measure(pieces, 3 if asked.quick else asked.runs)
    if asked.json:
        with open(asked.json, "w", encoding="utf-8") as file:
            json.dump({"machine": about, "phases": phases, "rows": rows}, file, indent=1)
    return 0


if __name__ == "__main__":
    sys.exit(main())
