"""Writes docs/configuration.md from the settings table: ``python -m hako.config.reference docs/configuration.md``."""

from __future__ import annotations

import sys

from hako.config.settings import SECTIONS, rows

_HEAD = """\
# Configuration

<!-- Made from the table in src/hako/config/settings.py by `make docs`. Do not edit. -->

hako works without any configuration. What you want otherwise goes into `/etc/hako/config.toml`, or into files
named `*.toml` in `/etc/hako/config.d/`, which are read after it in the order of their names; what is read later
wins. `HAKO_CONFIG` names another file, and its `config.d` is the one beside it. A wrong name or value is an error
that says where it is.

```toml
[sandbox]
memory = "1g"
vcpus = 2
```

Sizes are written with `k`, `m` or `g` (1k is 1024 bytes), times in seconds.

Some settings can be changed for one sandbox by an annotation of the container or pod (`docker run --annotation`,
`metadata.annotations` in Kubernetes). Only those that are listed with an annotation below can: the others decide
about the host, and who writes a pod does not. The annotations of Kata Containers that are listed are understood
too; hako's own wins where both are given.
"""


def reference() -> str:
    """The whole page."""
    lines = [_HEAD]
    for section in SECTIONS:
        lines += [f"## [{section.name}]", "", f"{section.title}.", ""]
        lines += ["| setting | default | accepts | meaning |", "|---|---|---|---|"]
        for key, row in rows(section):
            accepts = row.limits() or row.kind
            lines.append(f"| `{key}` | `{row.show(row.default)}` | {accepts} | {row.help} |")
        lines.append("")
        for key, row in rows(section):
            if row.annotation:
                also = f", or `{row.kata}`{_unit(row.kata_unit)}" if row.kata else ""
                lines.append(f"- `{key}` by annotation: `{row.annotation}`{also}")
        if lines[-1]:
            lines.append("")
    return "\n".join(lines).rstrip("\n") + "\n"


def _unit(unit: str) -> str:
    return " (a bare number counts MiB)" if unit == "m" else ""


def main(argv: list[str]) -> int:
    """Write the page to the file that ``argv`` names."""
    with open(argv[1], "w", encoding="utf-8") as file:
        file.write(reference())
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv))
