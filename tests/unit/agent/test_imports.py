"""What the agent imports: under software emulation each module costs the boot of every VM tens of milliseconds."""

from __future__ import annotations

import json
import os
import subprocess
import sys

from support.source import SOURCE

COSTLY = {"argparse", "asyncio", "contextlib", "dataclasses", "inspect", "logging", "pathlib", "selectors", "shutil"}
COSTLY |= {"socket", "subprocess", "tempfile", "threading", "traceback", "typing", "base64", "array", "tokenize"}


def test_the_agent_imports_little() -> None:
    code = "import sys, hako.agent.main, json; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [os.path.realpath(sys.executable), "-S", "-c", code],
        env={"PYTHONPATH": SOURCE},
        capture_output=True,
        text=True,
        check=True,
    )
    modules = set(json.loads(done.stdout))
    assert not modules & COSTLY
    assert len(modules) < 100
