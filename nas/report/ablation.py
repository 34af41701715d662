"""What the search is worth without its parts, where experiments.ablation was run for this report."""

from __future__ import annotations

from typing import Any

import numpy as np

from nas.report.record import Report, at, number


def facts(report: Report) -> dict[str, Any] | None:
    """Of each variant, in the order it was run: the perplexity of its best over the parent's on the windows
    of the search, and on others in nats above the first variant's, mean and deviation over seeds."""
    found: dict[str, list[tuple[float, float, float]]] = {}
    for row in at(report, "ablation.rows") or []:
        numbers = [number(row, name) for name in ("score", "final_score", "evaluations")]
        if None not in numbers:
            found.setdefault(str(at(row, "variant", "")), []).append(tuple(numbers))  # type: ignore[arg-type]
    reference = number(report, "ablation.reference")
    if not found or reference is None:
        return None
    tables = {name: np.array(rows) for name, rows in found.items()}
    first = next(iter(tables.values()))
    return {
        "rows": [
            {
                "name": name,
                "over": float(np.exp(reference - rows[:, 0]).mean()),
                "behind": float((first[:, 1].mean() - rows[:, 1]).mean()),
                "spread": float(rows[:, 1].std(ddof=1)) if len(rows) > 1 else None,
                "seeds": len(rows),
                "evaluations": float(rows[:, 2].mean()),
            }
            for name, rows in tables.items()
        ],
        "keep": number(report, "ablation.settings.keep"),
        "windows": number(report, "ablation.settings.final_windows"),
    }
