"""The report as one HTML file that needs nothing beside it: no network, no script, no font."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup
from matplotlib.figure import Figure

from nas.report import ablation, front, latency, pictures, plots, words
from nas.report.compare import deciding_split, pair_reference, ratio, rows, verdict
from nas.report.record import Report, at, number, plain, write_text
from nas.report.svg import inline

WIDE, NARROW, SQUARE = 780.0, 350.0, 370.0
"""Pixels that a figure is drawn for: on a page with room, on a telephone, and beside a table on either."""

METRIC_NAMES = {
    "kendall_tau": "Kendall τ, all sizes",
    "kendall_tau_in_band": "Kendall τ, in the budget’s band",
    "precision_at_k": "Precision@k",
    "regret": "Regret, nats",
    "r2": "R²",
    "random_pairs.kendall_tau": "Kendall τ, on random search’s pairs",
    "random_pairs.precision_at_k": "Precision@k, on random search’s pairs",
    "random_pairs.regret": "Regret, on random search’s pairs, nats",
}


def write_html(report: Report, path: str | Path) -> None:
    """Everything in the report that a person wants to see; what is missing is left out."""
    write_text(render(plain(report)), path)


def render(report: Report) -> str:
    """The page of a report of plain values."""
    here = Path(__file__).parent
    environment = Environment(
        loader=FileSystemLoader(here), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    shown = (
        "percent",
        "fixed",
        "perplexity",
        "times",
        "count",
        "big",
        "amount",
        "milliseconds",
        "seconds",
        "moment",
    )
    environment.filters.update({name: getattr(words, name) for name in (*shown, "cost_name")})
    environment.filters["value"] = _value
    reference = pair_reference(report)
    # Scores as perplexity over the parent's, negative log-likelihoods as perplexity.
    environment.filters["over"] = lambda score: words.times(ratio(_minus(score), reference))
    environment.filters["from_nll"] = lambda nll: words.perplexity(ratio(nll, 0.0))
    return environment.get_template("template.html.j2").render(
        report=report,
        at=lambda path: at(report, path),
        number=lambda path: number(report, path),
        mlp_units=pictures.mlp_units(report),
        rows=rows(report),
        split=deciding_split(report),
        verdict=verdict(report),
        budget=_budget(report),
        architecture=_architecture(report),
        quality=_quality(report),
        history=_history(report),
        predictor=_predictor(report),
        space=_space(report),
        latency=_latency(report),
        front=_front(report),
        ablation=ablation.facts(report),
        stages=_stages(report),
        facts=_facts(report),
    )


def _both(draw: Callable[[Report, float], Figure], report: Report, key: str, label: str) -> Markup:
    """A figure drawn for a page with room and again for a narrow one; the style sheet shows one of them."""
    parts = [
        Markup('<div class="{}">{}</div>').format(name, inline(draw(report, width), f"{key}-{name}", label))
        for name, width in (("wide", WIDE), ("narrow", NARROW))
    ]
    return Markup("").join(parts)


def _budget(report: Report) -> list[dict[str, Any]]:
    """Of each limit: its name, the parent's cost, the limit, and what the subnet costs."""
    return [
        {"name": name, "limit": limit, "parent": number(report, f"budget.parent_costs.{name}"),
         "subnet": number(report, f"subnet.costs.{name}"),
         "measured": latency.measured_request(report) if name == "latency_ms" else None}
        for name, limit in (at(report, "budget.limits") or {}).items() if words.is_number(limit)
    ]  # fmt: skip


def _architecture(report: Report) -> dict[str, Any] | None:
    full = number(report, "parent.queries_per_group")
    sizes = ("blocks", *pictures.KINDS)
    if at(report, "subnet.architecture.blocks") is None or any(
        not number(report, f"parent.{s}") for s in sizes
    ):
        return None
    parent, blocks = report["parent"], list(pictures.kept_blocks(report).values())
    heads = sum(block["kv_groups"] * block["queries_per_group"] for block in blocks)
    facts = {
        "kept": len(blocks), "of": parent["blocks"], "heads": heads,
        "all_heads": parent["blocks"] * parent["kv_groups"] * parent["queries_per_group"],
        "ffn": sum(block["ffn"] for block in blocks), "all_ffn": parent["blocks"] * parent["ffn"],
        "grouped": any(block["queries_per_group"] not in (0, full) for block in blocks),
        "dropped": sorted(set(range(parent["blocks"])) - set(pictures.kept_blocks(report))),
        "no_attention": [block["source"] for block in blocks if not block["kv_groups"]],
        "no_mlp": [block["source"] for block in blocks if not block["ffn"]],
    }  # fmt: skip
    label = f"What each of {parent['blocks']} blocks keeps: {heads} of {facts['all_heads']} heads in all"
    return {**facts, "svg": _both(pictures.architecture, report, "architecture", label)}


def _quality(report: Report) -> dict[str, Any] | None:
    kept, over, _ = plots.pair_points(report)
    if not len(kept) and not plots.compared(report):
        return None
    above = int((over > plots.quality_ceiling(report)).sum())
    svg = _both(plots.quality, report, "quality", "Perplexity over the parent’s against the fraction kept")
    return {"svg": svg, "pairs": len(kept), "above": above}


def _history(report: Report) -> dict[str, Any] | None:
    _, over, names = plots.pair_points(report)
    if not len(over):
        return None
    legend = [(words.baseline_name(n), paint, names.count(n)) for n, paint in plots.origins(names).items()]
    above = int((over > plots.history_ceiling(report)).sum())
    svg = _both(
        plots.history, report, "history", "Perplexity over the parent’s of every evaluation, in order"
    )
    best = plots.best_so_far(report).get(plots.SEARCH, np.empty(0))
    found = {"after": int(np.nanargmin(best)) + 1, "of": len(best)} if np.isfinite(best).any() else None
    return {"svg": svg, "legend": legend, "above": above, "best": found}


def _predictor(report: Report) -> dict[str, Any] | None:
    own = at(report, "predictor")
    lines = [at(report, f"predictor.{name}") or {} for name in ("additive_line", "ridge")]
    if not own:
        return None
    metrics = []
    for key in METRIC_NAMES:
        values = [number(each, key) for each in (own, *lines)]
        known = [value for value in values if value is not None]
        if not known:
            continue
        best = min(known) if key.endswith("regret") else max(known)
        metrics.append(
            {"name": METRIC_NAMES[key], "values": [(v, len(known) > 1 and v == best) for v in values]}
        )
    measured, _, inside = plots.held_out(report)
    svg = None
    if len(measured):
        svg = inline(
            plots.predictor(report, SQUARE),
            "predictor",
            "Predicted against measured perplexity of held-out pairs",
        )
    return {"metrics": metrics, "svg": svg, "pairs": len(measured), "inside": int(inside.sum())}


def _space(report: Report) -> dict[str, Any] | None:
    choices, left = at(report, "pruning.choices"), at(report, "pruning.left")
    if not choices or left is None or not all(choices.values()):
        return None
    before, after = (sum(len(options) for options in knobs.values()) for knobs in (choices, left))
    orders = [sum(np.log10(max(len(options), 1)) for options in knobs.values()) for knobs in (choices, left)]
    kinds = [
        kind
        for kind in pictures.KINDS
        if any(len(c) > 1 for knob, c in choices.items() if knob.endswith(kind))
    ]
    ever = {(at(one, "knob"), at(one, "choice")) for one in at(report, "pruning.dropped") or []}
    return {
        "before": before, "after": after,
        "ever": len(ever), "back": len(ever) - (before - after),
        "orders": [round(float(order)) for order in orders],
        "legend": [pictures.KIND_PAINTS[kind] for kind in kinds],
        "svg": _both(pictures.space, report, "space", f"{after} of {before} choices are left"),
    }  # fmt: skip


def _latency(report: Report) -> dict[str, Any] | None:
    found = latency.facts(report)
    if found is None:
        return None
    label = "Predicted against measured latencies, as shares of the parent’s"
    return {**found, "svg": inline(latency.picture(report, SQUARE), "latency", label)}


def _front(report: Report) -> dict[str, Any] | None:
    found = front.facts(report)
    if len(found) < 2:
        return None
    label = "Predicted perplexity over the parent’s against the fraction kept, for other budgets"
    return {
        "rows": found,
        "costs": [name for name in front.COSTS if any(name in row["shares"] for row in found)],
        "beyond": any(not row["known"] for row in found),
        "svg": _both(front.picture, report, "front", label),
    }


def _stages(report: Report) -> dict[str, Any] | None:
    stages = {str(name): number(at(report, "stages"), name) or 0.0 for name in at(report, "stages") or {}}
    if not stages:
        return None
    total, longest = sum(stages.values()), max([*stages.values(), 1e-9])
    return {
        "rows": [(n, t, t / longest, t / total if total else 0.0) for n, t in stages.items()],
        "total": total,
    }


def _facts(report: Report) -> list[tuple[str, list[tuple[str, str]]]]:
    """What one needs to do it again, as groups of name and value."""
    setting = {**(at(report, "setting.fields") or {}), "digest": at(report, "setting.digest")}
    groups = [
        ("Protocol", at(report, "protocol")),
        ("Setting that the pairs belong to", setting),
        ("Command line settings", at(report, "settings")),
        ("Parent", at(report, "parent")),
        ("Versions", at(report, "versions")),
        ("Run", {key: at(report, key) for key in ("seed", "created")}),
    ]  # fmt: skip
    flat = [
        (title, [pair for pair in _flat(group or {}) if pair[1] != words.MISSING]) for title, group in groups
    ]
    return [(title, pairs) for title, pairs in flat if pairs]


def _flat(group: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, str]]:
    for key, value in group.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{before}{key}.")
        else:
            yield f"{before}{key}", _value(value)


def _minus(value: float | None) -> float | None:
    return None if value is None else -value


def _value(value: Any) -> str:
    """Text as it is, anything else as JSON."""
    if value is None:
        return words.MISSING
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
