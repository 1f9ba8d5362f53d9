"""Drawing: a minimal SVG document that reads well on light and dark pages, whatever embeds it."""

from __future__ import annotations

from xml.sax.saxutils import escape, quoteattr

#: Width of one character of the text, for placing; fonts differ, so it errs on the wide side.
CHARACTER = 6.8

_STYLE = """\
text { font: 12px system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; fill: #24292f; }
.title { font-size: 15px; font-weight: 600; }
.faint { fill: #57606a; }
.end { text-anchor: end; }
.middle { text-anchor: middle; }
.panel { fill: #ffffff; stroke: #d0d7de; }
.axis { stroke: #8c959f; stroke-width: 1; }
.grid { stroke: #d8dee4; stroke-width: 1; }
.whisker { stroke: #24292f; stroke-width: 1.2; }
.c0 { fill: #2f7ed8; } .c1 { fill: #e08a1e; } .c2 { fill: #3a9e6a; } .c3 { fill: #a357c4; } .c4 { fill: #7a8691; }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3; }
  .faint { fill: #9da7b1; }
  .panel { fill: #0d1117; stroke: #30363d; }
  .axis { stroke: #6e7681; }
  .grid { stroke: #21262d; }
  .whisker { stroke: #e6edf3; }
  .c0 { fill: #58a6ff; } .c1 { fill: #f0a848; } .c2 { fill: #56c289; } .c3 { fill: #c58af0; } .c4 { fill: #8b949e; }
}
"""
COLOURS = 5


class Svg:
    """A document that grows; ``text()`` is the file. Coordinates are pixels from the top left corner."""

    def __init__(self, width: float, title: str) -> None:
        self.width = width
        self.height = 0.0
        self._title = title
        self._parts: list[str] = []

    def label(self, x: float, y: float, text: str, style: str = "") -> None:
        """Text whose baseline begins at ``x``, ``y``; ``style`` is a class of the style sheet."""
        kind = f" class={quoteattr(style)}" if style else ""
        self._parts.append(f'<text x="{x:.1f}" y="{y:.1f}"{kind}>{escape(text)}</text>')
        self._reach(y + 6)

    def bar(self, x: float, y: float, width: float, height: float, colour: int, tip: str = "") -> None:
        """A filled box; ``tip`` is shown by browsers under the pointer."""
        inside = f"<title>{escape(tip)}</title>" if tip else ""
        place = f'x="{x:.1f}" y="{y:.1f}" width="{max(width, 1):.1f}" height="{height:.1f}"'
        self._parts.append(f'<rect {place} rx="1.5" class="c{colour % COLOURS}">{inside}</rect>')
        self._reach(y + height)

    def line(self, x1: float, y1: float, x2: float, y2: float, style: str) -> None:
        """A straight line."""
        self._parts.append(f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{style}"/>')
        self._reach(max(y1, y2))

    def whisker(self, x1: float, x2: float, y: float) -> None:
        """A spread from ``x1`` to ``x2`` at the height ``y``."""
        self.line(x1, y, x2, y, "whisker")
        for x in (x1, x2):
            self.line(x, y - 3, x, y + 3, "whisker")

    def _reach(self, y: float) -> None:
        self.height = max(self.height, y)

    def text(self) -> str:
        """The file. It has its own background, for a page may be dark while the reader's system is not."""
        height = self.height + 14
        size = f'width="{self.width:.0f}" height="{height:.0f}" viewBox="0 0 {self.width:.0f} {height:.0f}"'
        return "\n".join(
            [
                f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img">',
                f"<title>{escape(self._title)}</title>",
                f"<style>\n{_STYLE}</style>",
                f'<rect x="0.5" y="0.5" width="{self.width - 1:.0f}" height="{height - 1:.0f}" rx="6" class="panel"/>',
                *self._parts,
                "</svg>\n",
            ]
        )
