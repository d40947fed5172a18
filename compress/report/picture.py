"""What all pictures share: their size and style, headings, keys, markers and lists of chains."""

from __future__ import annotations

import io
from collections.abc import Sequence
from functools import cache
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont
from matplotlib.ft2font import FT2Font
from matplotlib.lines import Line2D

from compress.report.about import title
from compress.report.chains import Look
from compress.report.layout import clean, cut
from compress.report.timing_words import About

WIDTH = 1600  # pixels
DPI = 100
LINE = 20  # pixels from line to line
MONO = "DejaVu Sans Mono"
SIZE = 10.5  # points: 8.8 pixels a character
STYLE: Any = {  # its keys are typed one by one
    "font.family": "DejaVu Sans",
    "font.size": 12,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#555555",
    "axes.unicode_minus": True,
}


class Picture:
    """A figure in which things are placed in pixels from its upper left corner."""

    def __init__(self, height: float) -> None:
        self.height = height
        self.figure = Figure(figsize=(WIDTH / DPI, height / DPI), dpi=DPI, facecolor="white")

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Return where a pixel is, in matplotlib's coordinates."""
        return x / WIDTH, 1 - y / self.height

    def panel(self, left: float, top: float, width: float, height: float) -> Axes:
        """Return axes with a grid."""
        box = (*self.at(left, top + height), width / WIDTH, height / self.height)
        axes = self.figure.add_axes(box, facecolor="none")
        axes.grid(True, color="#e4e4e4", linewidth=0.8)
        axes.set_axisbelow(True)
        return axes

    def text(self, x: float, y: float, text: str, **style: Any) -> None:
        """Write a line whose middle is at `y`."""
        self.figure.text(*self.at(x, y), text, va="center", parse_math=False, **style)

    def heading(self, left: float, about: About, what: str, words: str = "") -> None:
        """Write what a picture shows, and how it is to be read; a model's name may be very long."""
        name, suite = title(about), clean(str(about.get("suite") or ""))
        # A title that is not the suite's name holds the model.
        parts = (name, about.get("model") if name == suite else "", what)
        heading = clean(" · ".join(cut(str(part), 60) for part in parts if part))
        self.text(left, 24, printable(heading), fontsize=15, fontweight="bold")
        self.text(left, 54, words, fontsize=11, color="#444444")

    def line(self, xs: Sequence[float], y: float, **style: Any) -> None:
        """Draw a horizontal line, or the marker of one point."""
        places = [self.at(x, y) for x in xs]
        self.figure.add_artist(Line2D(*zip(*places, strict=True), **style))

    def key(self, handles: list[Line2D], x: float, y: float, **style: Any) -> None:
        """Draw what markers and colours mean."""
        spaces: dict[str, Any] = {
            "handletextpad": 0.3,
            "columnspacing": 1.2,
            "borderpad": 0,
            "frameon": False,
        }
        self.figure.legend(handles=handles, bbox_to_anchor=self.at(x, y), **spaces, **style)

    def chain(
        self, x: float, y: float, label: str, lines: Sequence[str], color: str = "black"
    ) -> None:
        """Write a chain in lines, the middle of the first one at `y`, and its number before it."""
        style: dict[str, Any] = {"fontsize": SIZE, "family": MONO, "color": color}
        self.text(x - 10, y, label, ha="right", fontweight="bold", **style)
        for i, line in enumerate(lines):
            self.text(x, y + i * LINE, line, **style)

    def png(self) -> bytes:
        """Return the picture, the same bytes for the same content."""
        content = io.BytesIO()
        self.figure.savefig(content, format="png", metadata={"Software": None})
        return content.getvalue()


def marker(look: Look, size: float, filling: str = "full", edge: float = 1.8) -> dict[str, Any]:
    """Return how matplotlib draws a point: its filling is `full`, `left` (half of it) or `none`."""
    return {
        "linestyle": "none",
        "marker": look.marker,
        "color": look.colour,
        "fillstyle": "left" if filling == "left" else "full",
        "markerfacecolor": "white" if filling == "none" else look.colour,
        "markerfacecoloralt": "white",
        "markeredgewidth": edge,
        "markersize": size,
    }


def note(axes: Axes, words: str) -> None:
    """Write why a panel is empty into its middle."""
    style: dict[str, Any] = {"ha": "center", "va": "center", "color": "#666666"}
    axes.text(0.5, 0.5, words, transform=axes.transAxes, **style)


def printable(text: str) -> str:
    """Replace what the fonts cannot draw, which would warn, by a box."""
    return "".join(c if ord(c) in _glyphs() else "□" for c in text)


@cache
def _glyphs() -> frozenset[int]:
    fonts = (FT2Font(findfont(FontProperties(family=f))) for f in (MONO, "DejaVu Sans"))
    return frozenset.intersection(*(frozenset(font.get_charmap()) for font in fonts))
