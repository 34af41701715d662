"""The architecture block by block, and what is left of the search space."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch
from matplotlib.path import Path

from nas.report.record import Report, at
from nas.report.svg import canvas, paint, write

KINDS = {"kv_groups": "KV groups", "queries_per_group": "queries per group", "ffn": "FFN channels"}
"""Of knobs, as columns of a picture are headed; `mlp_units` has another word for a mixture of experts."""
KIND_PAINTS = {"kv_groups": "heads", "queries_per_group": "groups", "ffn": "ffn"}


def mlp_units(report: Report) -> str:
    """What the MLPs of the parent are made of, in words."""
    return str(at(report, "parent.mlp_units") or KINDS["ffn"])


def kept_blocks(report: Report) -> dict[int, Mapping[str, Any]]:
    """The subnet's blocks by their index in the parent."""
    return {int(block["source"]): block for block in at(report, "subnet.architecture.blocks") or []}


def architecture(report: Report, width: float) -> Figure:
    """Two bars per parent block on the ghosts of the parent's: upright where there is room, else lying."""
    blocks = int(report["parent"]["blocks"])
    return _upright(report, blocks, width) if width > 500 else _lying(report, blocks, width)


def _upright(report: Report, blocks: int, width: float) -> Figure:
    left, top, length, bottom = 46.0, 22.0, 150.0, 40.0
    pitch = (width - left - 4) / blocks
    thick, gap = min(30.0, 0.41 * pitch), min(3.0, 0.06 * pitch)
    figure, axes = canvas(width, top + length + bottom)
    base = top + length
    for fraction in (0.0, 0.5, 1.0):
        y = base - fraction * length
        axes.plot([left, width], [y, y], color=paint("rule"), linewidth=1, zorder=0)
        write(axes, left - 8, y, f"{100 * fraction:.0f} %", ha="right", colour="muted")
    boxes = _Boxes()
    every = next(s for s in (1, 2, 4, 5, 10, 20, 50, 100, 1000) if s * pitch >= 20)
    for block in range(blocks):
        middle = left + (block + 0.5) * pitch
        if block % every == 0:
            write(axes, middle, base + 12, str(block), ha="center", colour="muted")
        bars = _bars(report, block)
        if not any(bar[0] for bar in bars):
            boxes.outline(middle - gap / 2 - thick, top, 2 * thick + gap, length)
            if pitch >= 12:
                turned = 90 if 2 * thick < 50 else 0
                write(
                    axes, middle, base - length / 2, "dropped", ha="center", colour="muted", rotation=turned
                )
            continue
        for side, (kept, behind, colour, text) in zip(
            (middle - gap / 2 - thick, middle + gap / 2), bars, strict=True
        ):
            if not kept:
                boxes.outline(side, top, thick, length)
                if thick >= 12:
                    x, y = side + thick / 2, base - length / 2
                    write(axes, x, y, "skipped", ha="center", colour="muted", rotation=90)
                continue
            boxes.add(side, top, thick, length, "ghost")
            boxes.add(side, base - behind * length, thick, behind * length, "groups")
            boxes.add(side, base - kept * length, thick, kept * length, colour)
            if pitch >= 58:
                write(axes, side + thick / 2, top - 9, text, ha="center", size=10)
    boxes.draw(axes)
    write(axes, left + (width - left) / 2, base + 30, "block of the parent", ha="center", colour="muted")
    return figure


def _lying(report: Report, blocks: int, width: float) -> Figure:
    left, right, top = 30.0, 84.0, 20.0
    pitch = 26.0 if blocks <= 16 else 20.0
    length, thick = width - left - right, (pitch - 6) / 2
    figure, axes = canvas(width, top + blocks * pitch + 4)
    for fraction in (0.0, 0.5, 1.0):
        x = left + fraction * length
        axes.plot([x, x], [top, top + blocks * pitch], color=paint("rule"), linewidth=1, zorder=0)
        write(axes, x, 8, f"{100 * fraction:.0f} %", ha="center", colour="muted")
    boxes = _Boxes()
    for block in range(blocks):
        middle = top + (block + 0.5) * pitch
        write(axes, left - 8, middle, str(block), ha="right", colour="muted")
        bars = _bars(report, block)
        alive = any(bar[0] for bar in bars)
        text = " · ".join(bar[3] for bar in bars) if alive else "dropped"
        write(axes, left + length + 8, middle, text, colour="ink" if alive else "muted", size=10)
        if not alive:
            boxes.outline(left, middle - thick - 0.5, length, 2 * thick + 1)
            continue
        for y, (kept, behind, colour, _) in zip((middle - thick - 0.5, middle + 0.5), bars, strict=True):
            if kept:
                boxes.add(left, y, length, thick, "ghost")
                boxes.add(left, y, behind * length, thick, "groups")
                boxes.add(left, y, kept * length, thick, colour)
            else:
                boxes.outline(left, y, length, thick)
    boxes.draw(axes)
    return figure


def _bars(report: Report, block: int) -> tuple[tuple[float, float, str, str], ...]:
    """Of heads and of what the MLP has: fraction kept, that of KV groups behind it, paint, what is kept."""
    parent, own = report["parent"], kept_blocks(report).get(block, {})
    groups, queries, ffn = (int(own.get(kind) or 0) for kind in KINDS)
    all_groups, all_queries, all_ffn = (int(parent[kind]) for kind in KINDS)
    heads = groups * queries / (all_groups * all_queries)
    behind = groups / all_groups if queries < all_queries else 0.0
    return (
        (heads, behind, "heads", f"{groups * queries}/{all_groups * all_queries}" if groups else "–"),
        (ffn / all_ffn, 0.0, "ffn", f"{ffn}" if ffn else "–"),
    )


_BEHIND = {"ghost": 0, "groups": 1}


class _Boxes:
    """Rectangles, those of one colour drawn as one path: a page of thousands stays small."""

    def __init__(self) -> None:
        self.corners: dict[str, list[list[tuple[float, float]]]] = {}

    def add(self, x: float, y: float, width: float, height: float, colour: str) -> None:
        if width > 0 and height > 0:
            corners = [(x, y), (x + width, y), (x + width, y + height), (x, y + height), (x, y)]
            self.corners.setdefault(colour, []).append(corners)

    def outline(self, x: float, y: float, width: float, height: float) -> None:
        """A dashed one: nothing kept."""
        self.add(x + 0.5, y + 0.5, width - 1, height - 1, "")

    def draw(self, axes: Axes) -> None:
        """What lies behind first."""
        for colour, boxes in sorted(
            self.corners.items(), key=lambda item: _BEHIND.get(item[0], len(_BEHIND))
        ):
            codes = [Path.MOVETO, Path.LINETO, Path.LINETO, Path.LINETO, Path.CLOSEPOLY] * len(boxes)
            path = Path([corner for corners in boxes for corner in corners], codes)
            if colour:
                axes.add_patch(PathPatch(path, facecolor=paint(colour), linewidth=0))
            else:
                edge = paint("muted")
                axes.add_patch(
                    PathPatch(path, facecolor="none", edgecolor=edge, linewidth=1, linestyle=(0, (2, 3)))
                )


def space(report: Report, width: float) -> Figure:
    """A row per block, a column per kind of knob, a cell per choice: coloured if it is left, faint if it was
    dropped, a ring on the subnet's own."""
    choices, left_over = report["pruning"]["choices"], report["pruning"]["left"]
    kinds = [kind for kind in KINDS if any(len(at_knob) > 1 for at_knob in _of_kind(choices, kind).values())]
    blocks = 1 + max(int(knob.split(".")[0]) for knob in choices)
    weights = [max(len(c) for c in _of_kind(choices, kind).values()) + 6 for kind in kinds]
    gutter, gap, top, count_width = 26.0, 16.0, 24.0, 34.0
    pitch = 20.0 if blocks <= 12 else 15.0 if blocks <= 40 else 10.0
    free = width - gutter - gap * len(kinds) - count_width * len(kinds)
    figure, axes = canvas(width, top + blocks * pitch + 4)
    for block in range(blocks):
        write(axes, gutter - 8, top + (block + 0.5) * pitch, str(block), ha="right", colour="muted", size=10)
    boxes, x = _Boxes(), gutter
    for kind, weight in zip(kinds, weights, strict=True):
        length = free * weight / sum(weights)
        head = mlp_units(report) if kind == "ffn" else KINDS[kind]
        fits = length + count_width + gap >= 6.5 * len(head)  # px of a letter, on the wide side
        write(axes, x, 9, head if fits else head.split(" per ")[0], colour="muted")
        for block in range(blocks):
            knob = f"{block}.{kind}"
            if knob in choices:
                whole, stay = list(choices[knob]), set(left_over.get(knob, []))
                y = top + block * pitch
                write(
                    axes, x + length + 5, y + pitch / 2, f"{len(stay)}/{len(whole)}", colour="muted", size=9
                )
                each, high = min(length / len(whole), 26.0), pitch - 5
                wide = each - (1.5 if each >= 5 else 0.6)
                for place, choice in enumerate(whole):
                    colour = KIND_PAINTS[kind] if choice in stay else "ghost"
                    boxes.add(x + place * each, y + 2, wide, high, colour)
                    if choice == _chosen(report, block, kind):
                        _ring(axes, x + place * each + wide / 2, y + 2 + high / 2, min(5.0, wide, high - 3))
        x += length + count_width + gap
    boxes.draw(axes)
    return figure


def _ring(axes: Axes, x: float, y: float, size: float) -> None:
    axes.plot(
        [x],
        [y],
        "o",
        markersize=size,
        color=paint("paper"),
        markeredgecolor=paint("ink"),
        markeredgewidth=1.2,
    )


def _of_kind(choices: Mapping[str, Any], kind: str) -> dict[str, Any]:
    return {knob: value for knob, value in choices.items() if knob.endswith(f".{kind}")}


def _chosen(report: Report, block: int, kind: str) -> int | None:
    """The subnet's own choice; None without a subnet, or for the queries of a skipped attention."""
    if at(report, "subnet.architecture") is None:
        return None
    own = kept_blocks(report).get(block, {})
    return int(own.get(kind) or 0) if kind != "queries_per_group" or own.get("kv_groups") else None
