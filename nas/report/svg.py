"""Matplotlib figures as inline SVG that takes its colours and its font from the page around it."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable

import matplotlib
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure

FONT_SIZE = (
    11.0  # px, as are all sizes here: a figure is drawn at 72 dots per inch and shown at its own width
)
ROUNDS = 6
BASELINE_MARKERS = {"uniform": ("s", 8), "random_search": ("D", 7.5), "drop_layers": ("^", 9)}
"""Matplotlib marker and its size; each baseline has a paint of its own name."""

_PAINTS = (
    "paper", "ink", "muted", "rule", "ghost", "dot",
    "subnet", "heads", "groups", "ffn", "uniform", "random_search", "drop_layers", "other",
    "start", *(f"round{i}" for i in range(1, ROUNDS + 1)),
)  # fmt: skip
"""Names of the page's colours: the style sheet gives each, light and dark, as a variable `--NAME`."""


def paint(name: str) -> str:
    """A stand-in colour that `inline` turns into the page's variable of this name."""
    return f"#0b5e{_PAINTS.index(name):02x}"


def frame(
    width: float, height: float, *, left: float, bottom: float, right: float = 12.0, top: float = 12.0
) -> tuple[Figure, Axes]:
    """Axes with margins in px, nothing drawn but quiet tick labels."""
    figure = Figure(figsize=(width / 72, height / 72), dpi=72)
    axes = figure.add_axes(
        (left / width, bottom / height, (width - left - right) / width, (height - bottom - top) / height)
    )
    axes.patch.set_visible(False)
    axes.grid(False)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.tick_params(which="both", length=0, pad=5, labelsize=FONT_SIZE, labelcolor=paint("muted"))
    return figure, axes


def canvas(width: float, height: float) -> tuple[Figure, Axes]:
    """Axes in px from the top left corner, without ticks."""
    figure, axes = frame(width, height, left=0, bottom=0, right=0, top=0)
    axes.set_axis_off()
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)
    return figure, axes


def write(
    axes: Axes, x: float, y: float, text: str, *, ha: str = "left", va: str = "center", colour: str = "ink",
    size: float = FONT_SIZE, bold: bool = False, rotation: float = 0.0,
) -> None:  # fmt: skip
    """Plain text at data coordinates; `$` means itself."""
    axes.text(
        x, y, text, ha=ha, va=va, color=paint(colour), fontsize=size, rotation=rotation,
        fontweight="bold" if bold else "normal", parse_math=False,
    )  # fmt: skip


def ticks(axes: Axes, which: str, at: Iterable[float], labels: Iterable[str], *, rules: bool = True) -> None:
    """Tick labels at these places and nowhere else, with thin lines across."""
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_ticks(list(at), labels=[str(label) for label in labels])
    axis.set_ticks([], minor=True)
    if rules:
        axis.grid(True, which="major", color=paint("rule"), linewidth=1)
        axes.set_axisbelow(True)


def inline(figure: Figure, key: str, label: str) -> Markup:
    """The figure as an `<svg>` element: `label` is what it says to those who do not see it, `key` keeps its
    references apart from those of other figures of the page."""
    stream = io.StringIO()
    # What SVG export reads from the global settings is set for its duration and then as it was.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": key, "text.usetex": False}):
        nothing = {name: None for name in ("Date", "Creator", "Format", "Type")}
        figure.savefig(stream, format="svg", transparent=True, metadata=nothing)
    width, height = (72 * inches for inches in figure.get_size_inches())
    text = stream.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<!--.*?-->|<style.*?</style>|<metadata.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"<[^>]*>", lambda tag: _tag(tag[0], key), text)
    text = re.sub(r">\s+<", "><", text.strip())
    opening = (
        f'<svg role="img" aria-label="{escape(label)}" viewBox="0 0 {width:g} {height:g}" '
        f'style="max-width: {1.25 * width:g}px">'
    )
    return Markup(opening + text[text.index(">") + 1 :])


def _tag(tag: str, key: str) -> str:
    """One tag with our colours, our ids, coordinates of two decimals, and the page's font."""
    tag = re.sub(r"#0b5e([0-9a-f]{2})", lambda found: f"var(--{_PAINTS[int(found[1], 16)]})", tag)
    tag = re.sub(r"font: (?:(bold|\d+) )?(\d+px) [^;\"]*", _font, tag)
    tag = re.sub(r" font-family: [^;\"]*;?", "", tag)
    # Ids of Matplotlib's own groups are never referred to and would be there twice; those of markers and
    # clip paths are a letter and eleven hexadecimal digits.
    tag = re.sub(r' id="(?![a-z]{1,2}[0-9a-f]{10}")[^"]*"', "", tag)
    tag = re.sub(r'(id="|href="#|url\(#)(?=[a-z]{1,2}[0-9a-f]{10})', rf"\g<1>{key}-", tag)
    tag = tag.replace("xlink:href", "href").replace("\n", " ")
    return re.sub(r"(\d\.\d\d)\d+", r"\1", tag)


def _font(found: re.Match[str]) -> str:
    return (f"font-weight: {found[1]}; " if found[1] else "") + f"font-size: {found[2]}"
