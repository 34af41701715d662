"""Parent, subnet and baselines side by side, and in one sentence whether the search was worth its while."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import quantiles
from typing import Any, Literal

from nas.report.record import Report, at, named, number
from nas.report.words import SPACE, baseline_name, listing, percent, times

LEVEL = 0.001
"""Nats per token within which two models count as level: a tenth of a percent of perplexity."""

METHODS = {
    "uniform": "uniform pruning",
    "random_search": "random search",
    "drop_layers": "dropping whole layers",
}


@dataclass(frozen=True)
class Speed:
    """How many times as fast as the parent: the median of the ratios of the turns and their quartiles. Where
    turns are not in the report, the ratio of the medians, and None for the quartiles.

    Turn by turn, since both had the same share of the machine in a turn: the ratio of the two medians can lie
    outside the quartiles of the ratios.
    """

    times: float
    low: float | None
    high: float | None

    def __str__(self) -> str:
        """With half the distance of the quartiles."""
        if self.low is None or self.high is None:
            return f"{self.times:.1f}"
        return f"{self.times:.1f} ±{(self.high - self.low) / 2:.1f}"


@dataclass(frozen=True)
class Row:
    """One model of the comparison; None where it was not measured. `times_parent` is its perplexity over the
    parent's on the deciding split, the two `faster` are the parent's time over its own, with the quartiles of
    that over the turns in which both were measured."""

    key: str
    name: str
    blocks_kept: float | None
    kept: float | None
    flops_kept: float | None
    kv_kept: float | None
    validation: float | None
    test: float | None
    times_parent: float | None
    accuracy: float | None
    kl: float | None
    prefill_faster: Speed | None
    decode_faster: Speed | None
    evaluations: float | None


@dataclass(frozen=True)
class Verdict:
    """`outcome` is how the subnet stands against the best baseline; `text` says it with the numbers."""

    outcome: Literal["better", "level", "worse", "alone"]
    text: str


def _times(report: Any, path: str) -> list[float]:
    """The times of two turns or more at a dotted path; none where anything there is no time."""
    listed = at(report, path)
    found = [number({"ms": each}, "ms") or 0.0 for each in listed] if isinstance(listed, list | tuple) else []
    return found if len(found) > 1 and min(found) > 0 else []


def deciding_split(report: Report) -> str:
    """The split that models are compared on: test, or validation where test text was not scored."""
    scored = all(number(report, f"{who}.test.nll") is not None for who in ("parent_scores", "subnet.scores"))
    return "test" if scored else "validation"


def rows(report: Report) -> list[Row]:
    """Parent, subnet, then the baselines in the report's order; those not in the report are left out."""
    found = []
    if named(report, "parent_scores"):
        parent = {
            "block_parameters_kept": 1.0, "parameters_kept": 1.0, "scores": report["parent_scores"],
            "costs": at(report, "budget.parent_costs"),
        }  # fmt: skip
        found.append(
            _row(report, "parent", "parent", {**parent, "latency": at(report, "parent_scores.latency")})
        )
    if named(report, "subnet"):
        pairs = at(report, "pairs")
        tried = {"evaluations": len(pairs)} if pairs and isinstance(pairs, list) else {}
        found.append(_row(report, "subnet", "subnet", {**tried, **report["subnet"]}))
    baselines = named(report, "baselines")
    return found + [_row(report, key, baseline_name(key), value) for key, value in baselines.items() if value]


def _row(report: Report, key: str, name: str, model: Any) -> Row:
    def faster(median: str, turns: str) -> Speed | None:
        whole, own = number(report, f"parent_scores.latency.{median}"), number(model, f"latency.{median}")
        if not whole or not own:
            return None
        theirs, ours = _times(report, f"parent_scores.latency.{turns}"), _times(model, f"latency.{turns}")
        if key == "parent" or not theirs or len(theirs) != len(ours):
            return Speed(whole / own, None, None)
        ratios = [a / b for a, b in zip(theirs, ours, strict=True)]
        low, middle, high = quantiles(ratios, n=4, method="inclusive")
        return Speed(middle, low, high)

    def part(cost: str) -> float | None:
        whole, own = number(report, f"budget.parent_costs.{cost}"), number(model, f"costs.{cost}")
        return own / whole if whole and own is not None else None

    split = deciding_split(report)
    return Row(
        key=key,
        name=name,
        blocks_kept=number(model, "block_parameters_kept"),
        kept=number(model, "parameters_kept"),
        flops_kept=part("flops"),
        kv_kept=part("kv_cache_bytes"),
        validation=number(model, "scores.validation.perplexity"),
        test=number(model, "scores.test.perplexity"),
        times_parent=ratio(
            number(model, f"scores.{split}.nll"), number(report, f"parent_scores.{split}.nll")
        ),
        accuracy=number(model, f"scores.{split}.accuracy"),
        kl=number(model, f"scores.{split}.kl"),
        prefill_faster=faster("prefill_ms", "prefill_turns"),
        decode_faster=faster("decode_ms_per_token", "decode_turns"),
        evaluations=number(model, "evaluations"),
    )


def ratio(nll: float | None, reference: float | None) -> float | None:
    """Perplexity over the reference's, from two negative log-likelihoods; None if it is not finite."""
    if nll is None or reference is None or nll - reference > 700:
        return None
    return math.exp(nll - reference)


def pair_reference(report: Report) -> float | None:
    """The parent's negative log-likelihood by the protocol of the pairs: `parent_scores.pairs` where the
    report has it, else on validation text."""
    value = number(report, "parent_scores.pairs.nll")
    return number(report, "parent_scores.validation.nll") if value is None else value


def verdict(report: Report) -> Verdict | None:
    """How the subnet compares with the baselines on the deciding split; None if it has no score there.

    Damage is the increase of log-perplexity over the parent's.
    """
    split = deciding_split(report)
    parent = number(report, f"parent_scores.{split}.nll")
    subnet = number(report, f"subnet.scores.{split}.nll")
    if parent is None or subnet is None:
        return None
    own = subnet - parent
    better, level, worse = [], [], []
    for key, baseline in named(report, "baselines").items():
        nll = number(baseline, f"scores.{split}.nll")
        if nll is None:
            continue
        name, damage = METHODS.get(key, baseline_name(key)), nll - parent
        if damage < own - LEVEL:
            better.append((damage, f"{name} ({times(math.exp(damage))})"))
        elif damage <= own + LEVEL:
            level.append(f"{name} ({times(math.exp(damage))})")
        else:
            less = f"{percent(1 - own / damage, 0)} less damage than {name}"
            worse.append(less if 0 <= own < damage else f"less damage than {name}")
    better.sort()
    return Verdict(
        "worse" if better else "level" if level else "better" if worse else "alone",
        _sentences(own, split, [text for _, text in better], level, worse) + _speed(report),
    )


def _sentences(own: float, split: str, better: list[str], level: list[str], worse: list[str]) -> str:
    result = f"{times(math.exp(own))} the parent’s {split} perplexity"
    if better:
        verb = "is" if len(better) == 1 else "are"
        text = f"The search did not pay here: {listing(better)} {verb} better than the subnet found"
    elif level:
        text = f"The search gained nothing over {listing(level)}: the subnet found is level with it"
    elif worse:
        everyone = {1: "the baseline", 2: "both baselines", 3: "all three baselines"}.get(
            len(worse), "all baselines"
        )
        return f"The subnet found beats {everyone} at {result}: it does {listing(worse)}."
    else:
        return f"The subnet found stands at {result}; there is no baseline to compare it with."
    return f"{text}, at {result}." + (f" The subnet does {listing(worse)}." if worse else "")


def _speed(report: Report) -> str:
    """What the subnet costs, and how fast it is."""
    subnet = next((row for row in rows(report) if row.key == "subnet"), None)
    if subnet is None:
        return ""
    costs = {"parameters": subnet.kept, "FLOPs": subnet.flops_kept, "KV cache": subnet.kv_kept}
    known = [f"{percent(part, 0)} of the {name}" for name, part in costs.items() if part is not None]
    text = f" It keeps {listing(known)}." if known else ""
    if (speed := subnet.prefill_faster) is None:
        return text
    slow = " It is no faster than its parent: prefill" if speed.times < 1.02 else " Prefill"
    return f"{text}{slow} runs at {speed.times:.2f}{SPACE}× its parent’s speed{spread_of(speed)}."


def spread_of(speed: Speed) -> str:
    """The quartiles in brackets, if they are known."""
    return "" if speed.low is None else f" (quartiles {speed.low:.2f} to {speed.high:.2f})"
