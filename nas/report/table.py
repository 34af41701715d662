"""The comparison as a short aligned table for the terminal."""

from __future__ import annotations

from nas.report.compare import Row, deciding_split, rows
from nas.report.record import Report, at
from nas.report.words import MISSING, SPACE, fixed, percent, perplexity

WIDEST_NAME = 24


def terminal_table(report: Report) -> str:
    """One line a model: what it keeps of the blocks, of all parameters, of the FLOPs and of the KV
    cache, its perplexities, its speed. Then one that counts subnets that could not be measured, if any."""
    split = deciding_split(report)
    head = [
        ("", "blocks", "all", "FLOPs", "KV", "perpl.", "perpl.", "× parent", "prefill"),
        ("", "kept", "kept", "kept", "kept", "valid.", "test", f"({split})", "× faster"),
    ]
    lines = [*head, *(_cells(row) for row in rows(report))]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head[0]))]
    text = [
        "  ".join(
            [line[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(line[1:], widths[1:], strict=True))]
        )
        for line in lines
    ]
    text.insert(len(head), "─" * len(text[0]))
    failures = at(report, "failures")
    if failures and isinstance(failures, list):
        subnets = "1 subnet" if len(failures) == 1 else f"{len(failures)} subnets"
        text.append(f"{subnets} could not be measured; the report says why")
    return "\n".join(line.rstrip() for line in text)


def _cells(row: Row) -> tuple[str, ...]:
    return (
        " ".join(row.name.split())[:WIDEST_NAME],
        percent(row.blocks_kept).replace(SPACE, " "),
        percent(row.kept, 0).replace(SPACE, " "),
        percent(row.flops_kept, 0).replace(SPACE, " "),
        percent(row.kv_kept, 0).replace(SPACE, " "),
        perplexity(row.validation),
        perplexity(row.test),
        fixed(row.times_parent, 3),
        MISSING if row.prefill_faster is None else str(row.prefill_faster),
    )
