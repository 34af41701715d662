"""Numbers and architectures as people read them. Whatever is missing or not finite is a dash."""

from __future__ import annotations

import sys
from datetime import datetime
from typing import Any

from nas.architecture import Architecture

LARGEST = sys.float_info.max
MISSING = "–"
SPACE = "\u202f"
"""Narrow and unbreakable, between a number and its unit."""

COSTS = {
    "block_parameters": "block parameters",
    "parameters": "all parameters",
    "flops": "FLOPs per window",
    "kv_cache_bytes": "KV cache per window",
    "latency_ms": "latency per request",
}
BASELINES = {"uniform": "uniform", "random_search": "random search", "drop_layers": "drop layers"}


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= LARGEST


def percent(value: Any, digits: int = 1) -> str:
    """A fraction: 0.4997 -> 50.0 %."""
    return f"{100 * value:.{digits}f}{SPACE}%" if is_number(value) else MISSING


def fixed(value: Any, digits: int = 3) -> str:
    """With so many decimals, a true minus sign and thousands separated."""
    return f"{value:,.{digits}f}".replace("-", "−") if is_number(value) else MISSING


def perplexity(value: Any) -> str:
    """About four significant digits."""
    if not is_number(value):
        return MISSING
    return f"{value:.2f}" if value < 100 else f"{value:.1f}" if value < 1000 else f"{value:,.0f}"


def times(value: Any, digits: int = 3) -> str:
    """A ratio: 1.087 ×; digits are given up as it grows."""
    if not is_number(value):
        return MISSING
    shown = digits if value < 10 else 1 if value < 100 else 0
    return f"{value:,.{shown}f}{SPACE}×"


def count(value: Any) -> str:
    """A whole number with its thousands separated."""
    return f"{value:,.0f}" if is_number(value) else MISSING


def big(value: Any) -> str:
    """Three or four significant digits and a unit: 8.13 M."""
    if not is_number(value):
        return MISSING
    for size, unit in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            scaled = value / size
            return f"{scaled:.{2 if scaled < 10 else 1}f}{SPACE}{unit}"
    return f"{value:g}"


def amount(value: Any, cost: str) -> str:
    """A cost in its unit."""
    if cost.endswith("_ms"):
        return milliseconds(value)
    if not cost.endswith("_bytes") or not is_number(value):
        return big(value)
    for size, unit in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if value >= size:
            return f"{value / size:.{2 if value < 10 * size else 1}f}{SPACE}{unit}"
    return f"{value:.0f}{SPACE}B"


def milliseconds(value: Any) -> str:
    """Three significant digits."""
    if not is_number(value):
        return MISSING
    return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f}{SPACE}ms"


def seconds(value: Any) -> str:
    """A duration: 8.2 s, 41 s, 3 min 20 s, 2 h 5 min."""
    if not is_number(value):
        return MISSING
    if value < 60:
        return f"{value:.{2 if value < 1 else 1 if value < 10 else 0}f}{SPACE}s"
    minutes, rest = divmod(round(value), 60)
    if minutes < 60:
        return f"{minutes}{SPACE}min {rest}{SPACE}s"
    return f"{minutes // 60}{SPACE}h {minutes % 60}{SPACE}min"


def moment(value: Any) -> str:
    """An ISO time as 2026-03-14 15:09 UTC; what is none, as it is."""
    try:
        time = datetime.fromisoformat(str(value))
    except ValueError:
        return str(value)
    return f"{time:%Y-%m-%d %H:%M} {time.tzname() or ''}".strip()


def cost_name(name: str) -> str:
    return COSTS.get(name, name.replace("_", " "))


def baseline_name(name: str) -> str:
    return BASELINES.get(name, name.replace("_", " "))


def blocks(architecture: Architecture, between: str = "\n") -> str:
    """One line a kept block, by its index in the parent: `0: 3 × 2 heads, 320 channels`."""
    lines = []
    for block in architecture.blocks:
        heads = f"{block.kv_groups} × {block.queries_per_group} heads" if block.heads else "no attention"
        width = f" of {block.head_width} channels" if block.head_width else ""
        mlp = f"{block.ffn} channels" if block.ffn else "no MLP"
        lines.append(f"{block.source}: {heads}{width}, {mlp}")
    return between.join(lines)


def listing(parts: list[str]) -> str:
    """a, b and c."""
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)
