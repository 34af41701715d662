"""Results side by side in the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nas.report.record import number


def table(results: Sequence[Mapping[str, Any]]) -> str:
    """A line for each result, the parent's first; a column for each text and task that was measured."""
    corpora = list(dict.fromkeys(name for result in results for name in result["perplexities"]))
    tasks = list(dict.fromkeys(name for result in results for name in result["tasks"]))
    wide = max((len(result["system"]) for result in results), default=6)

    def line(name: str, keep: str, kept: str, scores: Mapping[str, Any], ratio: float, seconds: str) -> str:
        texts = [shown(scores["perplexities"].get(each), 18, 2) for each in corpora]
        hits = [accuracy(scores["tasks"].get(each)) for each in tasks]
        return f"{name:{wide}}{keep:>6}{kept:>8}{''.join(texts)}{ratio:10.3f}{''.join(hits)}{seconds:>9}"

    lines = [
        f"{'system':{wide}}{'keep':>6}{'kept':>8}"
        + "".join(f"{Path(corpus).name[-16:]:>18}" for corpus in corpora)
        + f"{'× parent':>10}"
        + "".join(f"{task:>15}" for task in tasks)
        + f"{'seconds':>9}"
    ]
    if results:
        lines.append(line("parent", "", "1.000", results[0]["parent"], 1.0, ""))
    for each in results:
        keep, kept = f"{each['keep']:g}", f"{each['kept']:.3f}"
        lines.append(line(each["system"], keep, kept, each, each["over_parent"], f"{each['seconds']:.0f}"))
    lines.append("seconds: what is shared (statistics, a super-network) counts where it was first needed")
    return "\n".join(lines)


def shown(value: float | None, wide: int, digits: int) -> str:
    """A number in a column; a dash where there is none."""
    return f"{'–':>{wide}}" if value is None else f"{value:{wide}.{digits}f}"


def accuracy(scores: Mapping[str, Any] | None) -> str:
    """A task's accuracy and its standard error, in a column."""
    if scores is None:
        return f"{'–':>15}"
    error = number(scores, "acc_stderr")  # None for a single question
    return f"{scores['acc']:.3f}{'' if error is None else f' ±{error:.3f}'}".rjust(15)
