"""``python -m hako`` is the command ``hako``."""

from __future__ import annotations

import sys

from hako.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
