"""A report is whole, finite, escaped, self-contained, and says so when a baseline wins."""

import copy
import json
import math
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest

from nas.report import check_report, terminal_table, verdict, write_html, write_json
from nas.report.plots import best_so_far, pair_points
from nas.report.record import REQUIRED, plain

Report = dict[str, Any]
NASTY = "<img src=x onerror=\"alert('1')\">&amp;$x_{1}$ </script>"


def scored(nll: float, kl: float | None = None) -> dict[str, Any]:
    return {"nll": nll, "perplexity": math.exp(nll), "accuracy": 0.62 - nll / 12, "kl": kl, "tokens": 245_055}


def latency(share: float) -> dict[str, Any]:
    return {
        "prefill_ms": 118.4 * share,
        "decode_ms_per_token": 6.31 * share**0.7,
        "batch": 1,
        "context": 1024,
    }


def synthetic_report(
    blocks: int = 8, pairs: int = 200, kv_groups: int = 8, queries: int = 1, keep: float = 0.5, seed: int = 0
) -> Report:
    """What a run leaves, as numbers that could be true: damage falls with size, noise, three rounds."""
    rng = np.random.default_rng(seed)
    ffn, hidden, parent_nll = 768, 288, 3.72
    per_block = 4 * hidden**2 + 3 * hidden * ffn
    inside, outside = blocks * per_block, 2048 * hidden
    limit = int(keep * inside)
    choices: dict[str, list[int]] = {}
    for block in range(blocks):
        choices[f"{block}.kv_groups"] = list(range(kv_groups + 1))
        choices[f"{block}.queries_per_group"] = [q for q in (1, 2, 4) if q <= queries]
        choices[f"{block}.ffn"] = list(range(0, ffn + 1, 32))
    middle = np.sin(np.linspace(0, np.pi, blocks))
    dropped_block = int(blocks * 0.6)
    architecture = {
        "hidden": hidden,
        "blocks": [
            {
                "source": block,
                "kv_groups": 0 if block == dropped_block - 2 else int(np.clip(kv_groups * (0.9 - 0.4 * middle[block] + rng.normal(0, 0.1)), 1, kv_groups)),
                "queries_per_group": 0 if block == dropped_block - 2 else max(1, queries // (1 + block % 2)),
                "ffn": int(np.clip(round(24 * (0.8 - 0.45 * middle[block] + rng.normal(0, 0.1))), 1, 24)) * 32,
            }
            for block in range(blocks)
            if block != dropped_block
        ],
    }  # fmt: skip
    own = {block["source"]: block for block in architecture["blocks"]}

    left: dict[str, list[int]] = {}
    dropped: list[dict[str, Any]] = []
    best = -(parent_nll + 0.11)
    for knob, options in choices.items():
        block, kind = knob.split(".")
        chosen = own.get(int(block), {}).get(kind, 0)
        near = {c for c in options if abs(c - chosen) <= 0.3 * max(options)} | {chosen}
        left[knob] = [c for c in options if c in near]
        for choice in options:
            if choice not in near:
                reached = best - float(rng.gamma(2, 0.05)) - 0.06 if rng.random() > 0.1 else None
                dropped.append(
                    {
                        "round": 1 + len(dropped) % 3,
                        "knob": knob,
                        "choice": choice,
                        "best_with": reached,
                        "best": best,
                    }
                )

    found = []
    origins = ["start"] * (pairs * 7 // 10) + [
        f"round {1 + i * 3 // (pairs - pairs * 7 // 10)}" for i in range(pairs - pairs * 7 // 10)
    ]
    for i, origin in enumerate(origins):
        late = 0 if origin == "start" else int(origin[-1])
        kept = keep * (1 - abs(rng.normal(0, 0.002)) if late else rng.uniform(0.75, 1.0))
        damage = 0.13 * (keep / kept) ** 3 / (keep / 0.5) + rng.gamma(1.6, 0.22 / (1 + 3 * late))
        found.append(
            {
                "digest": f"{i:016x}",
                "kept": kept,
                "score": -(parent_nll - 0.02 + damage * (1 - 0.1 * late)),
                "origin": origin,
            }
        )
    held = [
        {"measured": p["score"], "predicted": p["score"] + float(rng.normal(0, 0.05)), "kept": p["kept"]}
        for p in found
    ]

    def model(kept: float, validation: float, test: float, evaluations: int) -> dict[str, Any]:
        return {
            "architecture": architecture, "block_parameters_kept": kept,
            "parameters_kept": (kept * inside + outside) / (inside + outside),
            "scores": {"validation": scored(parent_nll - 0.02 + validation, validation), "test": scored(parent_nll + test, test)},
            "latency": latency(0.2 + 0.8 * kept), "evaluations": evaluations,
        }  # fmt: skip

    subnet = model(keep * 0.9994, 0.072, 0.0784, pairs)
    parameters = int(subnet["parameters_kept"] * (inside + outside))
    metrics = {
        "kendall_tau": 0.8312,
        "kendall_tau_in_band": 0.6478,
        "precision_at_k": 0.7,
        "regret": 0.0041,
        "r2": 0.942,
    }
    ridge = {
        "kendall_tau": 0.7441,
        "kendall_tau_in_band": 0.5519,
        "precision_at_k": 0.5,
        "regret": 0.0173,
        "r2": 0.871,
    }
    return {
        "command": f"python -m experiments.compress --parent models/wiki-llama-8m --corpus corpora/wikitext-2 --keep {keep} --seed {seed}",
        "created": "2026-03-14T15:09:26+00:00",
        "parent": {
            "name": "wiki-llama-8m", "family": "llama", "digest": "8c1f2ab34d5e6f70", "parameters": inside + outside,
            "block_parameters": inside, "blocks": blocks, "kv_groups": kv_groups, "queries_per_group": queries,
            "ffn": ffn, "hidden": hidden,
        },
        "setting": {"digest": "5d0c9f2e11aa47b3", "fields": {"ranking": "elimination", "seq_len": 256, "dtype": "float32", "calibration": {"windows": 128, "split": "train"}}},
        "settings": {"parent": "models/wiki-llama-8m", "corpus": "corpora/wikitext-2", "keep": keep, "pairs": pairs, "rounds": 3, "predictor": "xgboost", "max_flops": None, "seed": seed},
        "budget": {
            "limits": {"block_parameters": limit},
            "parent_costs": {"block_parameters": inside, "parameters": inside + outside, "flops": 4_812_345_344, "kv_cache_bytes": 4_718_592},
        },
        "subnet": {
            **subnet, "digest": "00000000000000c7", "checkpoint": "checkpoint",
            "costs": {"block_parameters": int(limit * 0.9994), "parameters": parameters, "flops": 2_612_345_344, "kv_cache_bytes": 2_718_592},
            "finalists": [{"digest": f"{0xC7 + i:016x}", "pair_score": -3.811 - i / 300, "validation_nll": 3.772 + i / 500} for i in range(3)],
        },
        "parent_scores": {"validation": scored(parent_nll - 0.02, 0.0), "test": scored(parent_nll, 0.0), "latency": latency(1.0)},
        "baselines": {
            "uniform": {**model(keep * 0.987, 0.127, 0.131, 1), "latency": latency(0.61)},
            "random_search": model(keep * 0.998, 0.109, 0.1182, pairs),
            "drop_layers": {**model(keep * 0.996, 0.402, 0.4187, blocks), "latency": None},
        },
        "predictor": {"name": "xgboost", **metrics, "k": 10, "band": 0.05, "pairs": pairs, "folds": 5, "ridge": ridge, "held_out": held},
        "search": {
            "rounds": [
                {"round": r, "pairs": len(found) * (7 + r) // 10, "best_score": best - 0.03 + r / 100, "predicted_best": best + 0.004, "measured_best": best - 0.03 + r / 100,
                 "choices_left": sum(map(len, choices.values())) - len(dropped) * r // 3, "proposals": 25_600, "seconds": 14.2 + r}
                for r in (1, 2, 3)
            ]
        },
        "pruning": {"dropped": dropped, "choices": choices, "left": left},
        "pairs": found,
        "stages": {"load": 1.8, "statistics": 6.4, "ranking": 11.2, "repair bank": 19.7, "pairs": 212.5, "search": 48.1, "repair and save": 9.9, "evaluate": 31.4, "baselines": 88.0},
        "protocol": {"validation": "wikitext-2 valid, windows of 256, 245,055 tokens, float32", "test": "wikitext-2 test, windows of 256, 283,305 tokens, float32", "pairs": "wikitext-2 valid, 64 windows of 256, one-pass repair"},
        "versions": {"python": "3.11.9", "torch": "2.9.0", "transformers": "5.23.0", "optuna": "5.0.0", "xgboost": "3.2.0"},
        "seed": seed,
    }  # fmt: skip
