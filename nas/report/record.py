"""The report as plain data: what it must hold, how it is read where parts are missing, how it is written."""

from __future__ import annotations

import json
import math
import os
import sys
import uuid
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

from data.errors import InputError, first_line
from data.json_text import from_json

Report = Mapping[str, Any]

LARGEST = sys.float_info.max
METRICS = ("kendall_tau", "kendall_tau_in_band", "precision_at_k", "regret")
REQUIRED = (
    "parent", "setting", "budget",
    "subnet.architecture", "subnet.block_parameters_kept", "subnet.parameters_kept",
    "subnet.scores.validation", "subnet.scores.test",
    "parent_scores", "baselines.uniform", "baselines.random_search", "baselines.drop_layers",
    *(f"predictor.{metric}" for metric in METRICS), *(f"predictor.ridge.{metric}" for metric in METRICS),
    "stages", "pairs", "versions", "seed",
)  # fmt: skip
"""Dotted paths that every finished report has."""
MOST_BLOCKS = 10_000
"""That a page could show; no model has as many."""


def check_report(report: Report) -> None:
    """Raise `ValueError` naming every path of `REQUIRED` that is not there; what is there may be None."""
    absent = object()
    missing = [path for path in REQUIRED if at(report, path, absent) is absent]
    if missing:
        raise ValueError(f"the report lacks {', '.join(missing)}")


def read_report(path: Path) -> dict[str, Any]:
    """A finished report; `InputError` where the file is none, or only a part of one."""
    try:
        report = from_json(path.read_text(encoding="utf-8"))
        check_report(report)
        if (number(report, "parent.blocks") or 0) > MOST_BLOCKS:
            raise ValueError(f"its parent has {report['parent']['blocks']} blocks")
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is no whole report ({first_line(error)}); run its job again") from error
    return dict(report)


def at(report: Any, path: str, default: Any = None) -> Any:
    """What lies at a dotted path of nested mappings, or `default`."""
    for key in path.split("."):
        if not isinstance(report, Mapping) or key not in report:
            return default
        report = report[key]
    return report


def named(report: Any, path: str) -> Mapping[str, Any]:
    """The mapping at a dotted path, empty where there is none."""
    value = at(report, path)
    return value if isinstance(value, Mapping) else {}


def number(report: Any, path: str) -> float | None:
    """The finite number at a dotted path, or None."""
    value = at(report, path)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) <= LARGEST:
        return None
    return float(value)


def plain(value: Any) -> Any:
    """The same in what JSON has: numpy values, arrays and tensors cast, what is not finite None, keys text.

    Anything that has no such form raises `TypeError`.
    """
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, (set, frozenset)):
        return [plain(item) for item in sorted(value)]
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    raise TypeError(f"a report holds plain values, not {value!r} of type {type(value).__name__}")


def write_json(report: Any, path: str | Path) -> None:
    """The report as JSON, keys in the order given; a reader sees the old file or the whole new one."""
    write_text(json.dumps(plain(report), indent=1, allow_nan=False, ensure_ascii=False) + "\n", path)


def write_text(text: str, path: str | Path) -> None:
    """Put the text in place of what is at `path`, at once, making its folder if need be."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.part")
    try:
        # Half of a surrogate pair, as file names that are not UTF-8 bring it, cannot be encoded.
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace", newline="\n")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
