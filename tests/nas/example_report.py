"""A report with numbers that could be true, for tests of the page."""

import math
from typing import Any

import numpy as np

Report = dict[str, Any]
PARENT_NLL = 3.72
FFN, HIDDEN = 768, 288


def scores(damage: float) -> Report:
    nll = {"validation": PARENT_NLL - 0.02 + 0.93 * damage, "test": PARENT_NLL + damage}
    common = {"kl": damage, "tokens": 245_055}
    return {
        split: {"nll": value, "perplexity": math.exp(value), "accuracy": 0.62 - value / 12, **common}
        for split, value in nll.items()
    }


def latency(share: float) -> Report:
    return {"prefill_ms": 118.4 * share, "decode_ms_per_token": 6.3 * share, "batch": 1, "context": 1024}


def architecture(blocks: int, kv_groups: int, queries: int, rng: np.random.Generator) -> Report:
    """The ends wider than the middle, one block dropped, one without attention."""
    dropped, bare = int(blocks * 0.6), int(blocks * 0.6) - 2
    kept = []
    for block, bend in enumerate(np.sin(np.linspace(0, np.pi, blocks))):
        heads, channels = np.array([0.9 - 0.4 * bend, 0.8 - 0.45 * bend]) + rng.normal(0, 0.1, size=2)
        groups = 0 if block == bare else int(np.clip(kv_groups * heads, 1, kv_groups))
        each = 0 if block == bare else max(1, queries // (1 + block % 2))
        ffn = 32 * int(np.clip(24 * channels, 1, 24))
        kept.append({"source": block, "kv_groups": groups, "queries_per_group": each, "ffn": ffn})
    return {"hidden": HIDDEN, "blocks": [block for block in kept if block["source"] != dropped]}


def pairs_of(count: int, keep: float, rng: np.random.Generator) -> list[Report]:
    """Damage falls with size, and by the round."""
    found = []
    first = count * 7 // 10
    for i in range(count):
        late = 0 if i < first else 1 + (i - first) * 3 // (count - first)
        kept = keep * (1 - abs(rng.normal(0, 0.002)) if late else rng.uniform(0.75, 1.0))
        damage = 0.26 * (1 - keep) * (keep / kept) ** 3 + rng.gamma(1.6, 0.22 / (1 + 3 * late))
        score = 0.02 - PARENT_NLL - damage * (1 - 0.1 * late)
        origin = f"round {late}" if late else "start"
        found.append({"digest": f"{i:016x}", "kept": kept, "score": score, "origin": origin})
    return found


def pruning_of(blocks: int, kv_groups: int, queries: int, subnet: Report, rng: np.random.Generator) -> Report:
    """What is far from the subnet's choice was dropped."""
    own = {block["source"]: block for block in subnet["blocks"]}
    kinds = {
        "kv_groups": list(range(kv_groups + 1)),
        "queries_per_group": [q for q in (1, 2, 4) if q <= queries],
        "ffn": list(range(0, FFN + 1, 32)),
    }
    choices = {f"{block}.{kind}": c for block in range(blocks) for kind, c in kinds.items()}
    left, dropped, best = {}, [], -PARENT_NLL - 0.11
    for knob, options in choices.items():
        block, kind = knob.split(".")
        chosen = own.get(int(block), {}).get(kind, 0)
        left[knob] = [c for c in options if c == chosen or abs(c - chosen) <= 0.3 * max(options)]
        for choice in sorted(set(options) - set(left[knob])):
            reach = best - 0.06 - float(rng.gamma(2, 0.05)) if rng.random() > 0.1 else None
            record = {"round": 1 + len(dropped) % 3, "knob": knob, "choice": choice}
            dropped.append({**record, "best_with": reach, "best": best})
    return {"dropped": dropped, "choices": choices, "left": left}


def front_of(keep: float, costs: dict[str, float]) -> list[Report]:
    """Smaller budgets cost more, the outer two are beyond the pairs."""
    return [
        {
            "kept": keep * share, "among_pairs": 0.7 < share < 1.2, "digest": f"{number:016x}",
            "costs": {name: int(keep * share * cost) for name, cost in costs.items()},
            "predicted_score": -PARENT_NLL - 0.1 / share,
        }
        for number, share in enumerate((0.6, 0.8, 1.0, 1.1, 1.3))
    ]  # fmt: skip


def latencies_of(rng: np.random.Generator) -> Report:
    """Sums a little too low, and whole subnets that scatter."""
    phases = {}
    for phase, whole in (("prefill", 118.4), ("decode", 6.3)):
        measured = whole * np.linspace(0.3, 1.0, 16)
        predicted = (measured * rng.lognormal(0, 0.04, 16)).tolist()
        phases[phase] = {
            "parent": whole * 0.98, "whole": whole, "slope": 1.04, "offset": 0.3, "error": 0.032,
            "raw_error": 0.051, "predicted": predicted, "measured": measured.tolist(),
        }  # fmt: skip
    request = {"batch": 1, "context": 1024, "tokens": 8}
    return {
        "words": "batch 1, 1024 tokens read and 8 written, float32, on a device",
        "request": request,
        **phases,
    }


def ablation_of(rng: np.random.Generator) -> Report:
    """Worse without each part."""
    rows = [
        {
            "variant": name, "seed": seed, "evaluations": 100,
            "score": -PARENT_NLL - 0.1 - behind - 0.004 * rng.random(),
            "final_score": -PARENT_NLL - 0.1 - behind - 0.01 * rng.random(),
        }
        for name, behind in (("predictor, pruned space", 0.0), ("no predictor: random", 0.05))
        for seed in range(3)
    ]  # fmt: skip
    return {"reference": -PARENT_NLL, "settings": {"keep": 0.5, "final_windows": 128}, "rows": rows}


def synthetic_report(
    blocks: int = 8, pairs: int = 200, kv_groups: int = 8, queries: int = 1, keep: float = 0.5, seed: int = 0
) -> Report:
    """What a run leaves, as numbers that could be true."""
    rng = np.random.default_rng(seed)
    inside, outside = blocks * (4 * HIDDEN**2 + 3 * HIDDEN * FFN), 2048 * HIDDEN
    shape = architecture(blocks, kv_groups, queries, rng)
    found = pairs_of(pairs, keep, rng)
    pruning = pruning_of(blocks, kv_groups, queries, shape, rng)

    def model(kept: float, damage: float) -> Report:
        return {
            "architecture": shape,
            "block_parameters_kept": kept,
            "parameters_kept": (kept * inside + outside) / (inside + outside),
            "scores": scores(damage),
            "latency": latency(0.2 + 0.8 * kept),
            "predicted_latency": latency(0.22 + 0.8 * kept),
        }

    def metrics(*values: float) -> Report:
        names = ("kendall_tau", "kendall_tau_in_band", "precision_at_k", "regret", "r2")
        return dict(zip(names, values, strict=True))

    costs = {"block_parameters": inside, "parameters": inside + outside, "flops": 5e9, "kv_cache_bytes": 5e6}
    near = -PARENT_NLL - 0.14
    return {
        "command": f"python -m experiments.compress --parent models/wiki-llama --keep {keep} --seed {seed}",
        "created": "2026-03-14T15:09:26+00:00",
        "parent": {
            "name": "wiki-llama", "family": "llama", "digest": "8c1f2ab34d5e6f70",
            "parameters": inside + outside, "block_parameters": inside, "blocks": blocks,
            "kv_groups": kv_groups, "queries_per_group": queries, "ffn": FFN, "hidden": HIDDEN,
        },
        "setting": {
            "digest": "5d0c9f2e11aa47b3",
            "fields": {"ranking": "elimination", "dtype": "float32", "calibration": {"windows": 128}},
        },
        "settings": {"parent": "models/wiki-llama", "corpus": "wikitext-2", "keep": keep, "max_flops": None},
        "budget": {"limits": {"block_parameters": int(keep * inside)}, "parent_costs": costs},
        "subnet": {
            **model(keep * 0.9994, 0.0784), "digest": f"{200:016x}", "checkpoint": "checkpoint",
            "costs": {name: int(keep * cost) for name, cost in costs.items()},
            "finalists": [
                {"digest": f"{i:016x}", "score": -3.21 - i / 300, "validation_nll": 3.17 + i / 500}
                for i in range(200, 203)
            ],
        },
        "parent_scores": {**scores(0.0), "latency": latency(1.0)},
        "baselines": {
            "uniform": {**model(keep * 0.987, 0.131), "evaluations": 1},
            "random_search": {**model(keep * 0.998, 0.1182), "evaluations": pairs},
            "drop_layers": {**model(keep * 0.966, 0.4187), "evaluations": blocks, "latency": None},
        },
        "predictor": {
            "name": "xgboost", **metrics(0.8312, 0.6478, 0.7, 0.0041, 0.942),
            "ridge": metrics(0.7441, 0.5519, 0.5, 0.0173, 0.871),
            "k": 10, "band": 0.05, "pairs": pairs, "folds": 5,
            "held_out": [
                {"measured": y, "predicted": y + rng.normal(0, 0.05), "inside": pair["kept"] > 0.45}
                for pair in found if (y := pair["score"])
            ],
        },
        "search": {
            "rounds": [
                {
                    "round": r, "pairs": pairs * (7 + r) // 10, "best_score": near + r / 100,
                    "predicted_best": near + 0.034, "measured_best": near + r / 100,
                    "choices_left": 400 - 40 * r, "proposals": 25_600, "seconds": 9.2,
                }
                for r in (1, 2, 3)
            ]
        },
        "pruning": pruning,
        "front": front_of(keep, costs),
        "latency_table": latencies_of(rng),
        "ablation": ablation_of(rng),
        "pairs": found,
        "failures": [],
        "stages": {"load": 1.8, "repair_bank": 19.7, "pairs": 212.5, "search": 48.1, "evaluate": 31.4},
        "protocol": {
            "validation": "wikitext-2 valid, windows of 256, 245,055 tokens, float32",
            "test": "wikitext-2 test, windows of 256, 283,305 tokens, float32",
            "pairs": "wikitext-2 valid, 64 windows of 256, one-pass repair",
        },
        "versions": {"python": "3.11.9", "torch": "2.9.0", "optuna": "5.0.0"},
        "seed": seed,
    }  # fmt: skip
