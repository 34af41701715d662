"""The main job as one of the systems compared: `experiments.compress` with its own defaults."""

from __future__ import annotations

import json

from experiments import compress
from experiments.published.case import Case, Common
from experiments.published.outcome import Outcome
from nas.architecture import Architecture
from nas.families import plain
from nas.parent import load_checkpoint
from nas.report import read_report


def prune(case: Case, keep: float, settings: Common) -> Outcome:
    """Run or resume the job in a folder of its own and take the checkpoint that it saved."""
    out = settings.out / f"secateur-{keep:g}" / "job"
    compress.main(
        compress.Settings(
            parent=settings.parent, corpus=settings.corpus, seq_len=settings.seq_len,
            calibration_windows=settings.calibration_windows, pair_windows=settings.search_windows,
            final_windows=settings.final_windows, test_windows=settings.test_windows, keep=keep,
            random_search=False, device=settings.device, dtype=settings.dtype,
            batch_size=settings.batch_size, seed=settings.seed, out=out, cache=settings.cache,
        )
    )  # fmt: skip
    report = read_report(out / compress.REPORT)
    model = load_checkpoint(out / "checkpoint", trust=True, dtype=case.parent.dtype)
    return Outcome(
        plain(model).to(case.parent.device),
        Architecture.from_json(json.dumps(report["subnet"]["architecture"])),
        ["the main job with its defaults"],
        {"evaluations": report["subnet"]["evaluations"], "stages": report["stages"]},
        saved=out / "checkpoint",
        seconds=sum(report["stages"].values()),
    )
