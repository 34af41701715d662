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
from nas.report.plots import best_so_far, held_out, pair_points
from nas.report.record import REQUIRED, plain

Report = dict[str, Any]
PARENT_NLL = 3.72
FFN, HIDDEN = 768, 288
NASTY = "<img src=x onerror=\"alert('1')\">&amp;$x_{1}$ </script>"
VOID = ("meta", "img", "br", "use", "path", "rect")


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
        "pairs": found,
        "stages": {"load": 1.8, "repair_bank": 19.7, "pairs": 212.5, "search": 48.1, "evaluate": 31.4},
        "protocol": {
            "validation": "wikitext-2 valid, windows of 256, 245,055 tokens, float32",
            "test": "wikitext-2 test, windows of 256, 283,305 tokens, float32",
            "pairs": "wikitext-2 valid, 64 windows of 256, one-pass repair",
        },
        "versions": {"python": "3.11.9", "torch": "2.9.0", "optuna": "5.0.0"},
        "seed": seed,
    }  # fmt: skip


def html_of(report: Report, folder: Path) -> str:
    write_html(report, folder / "report.html")
    return (folder / "report.html").read_text(encoding="utf-8")


class Page(HTMLParser):
    """Tags with their attributes, the text that is shown, and whether all is closed in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []
        self.text = " ".join(" ".join(self.words).split()).replace("\u202f", " ")

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words.append(data)


def without(report: Report, path: str) -> Report:
    result = copy.deepcopy(report)
    *way, last = path.split(".")
    place = result
    for key in way:
        place = place[key]
    del place[last]
    return result


@pytest.mark.parametrize("shape", [(8, 200, 8, 1, 0.5), (32, 300, 8, 4, 0.8), (3, 9, 1, 1, 0.3)])
def test_the_page_needs_nothing_beside_it(shape: tuple[int, int, int, int, float], tmp_path: Path) -> None:
    html = html_of(synthetic_report(*shape), tmp_path)
    page = Page(html)
    assert not {tag for tag, _ in page.tags} & {"script", "link", "img", "iframe", "object", "base", "image"}
    for _, attributes in page.tags:
        for name, value in attributes.items():
            assert name not in ("src", "srcset", "data") and not name.startswith("on")
            assert name != "href" or str(value).startswith("#")
    assert not re.search(r"https?:|@import|url\((?!#)", html)
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    uses = {str(attributes["href"])[1:] for tag, attributes in page.tags if tag == "use"}
    assert len(ids) == len(set(ids)) and uses <= set(ids)
    assert "0b5e" not in html, "a stand-in colour was left"


def test_the_page_holds_the_numbers(tmp_path: Path) -> None:
    report = synthetic_report()
    text = Page(html_of(report, tmp_path)).text
    shown = ("wiki-llama", "50.0 %", "1.082 ×", "41.26 → 44.63", "1.67 ×", "0.831", "0.744", "3 min 32 s")
    assert [number for number in shown if number not in text] == []
    assert report["command"] in text and "2026-03-14 15:09 UTC" in text
    assert "beats all three baselines" in text and "40 % less damage than uniform pruning" in text
    assert all(f"{block['ffn']}" in text for block in report["subnet"]["architecture"]["blocks"])
    assert "calibration.windows 128" in text


def test_everything_shown_is_escaped(tmp_path: Path) -> None:
    report = synthetic_report(3, 20)
    report["command"] = report["created"] = report["parent"]["name"] = report["parent"]["family"] = NASTY
    report["settings"] = {NASTY: NASTY, "corpus": NASTY}
    report["setting"]["fields"] = {NASTY: {NASTY: [NASTY, 1]}}
    report["predictor"]["name"] = report["protocol"]["pairs"] = report["versions"][NASTY] = NASTY
    report["stages"][NASTY] = 2.0
    report["budget"]["limits"][NASTY] = 7
    report["baselines"] = {NASTY: report["baselines"]["uniform"], "日本語": report["baselines"]["uniform"]}
    report["subnet"]["digest"] = report["subnet"]["finalists"][0]["digest"] = NASTY
    report["pruning"]["dropped"] = [
        {"round": 1, "knob": NASTY, "choice": NASTY, "best_with": None, "best": -4.0}
    ]
    for pair in report["pairs"][:9]:
        pair["origin"] = NASTY
    tame = {tag for tag, _ in Page(html_of(synthetic_report(3, 20), tmp_path)).tags}
    page = Page(html_of(report, tmp_path))
    assert {tag for tag, _ in page.tags} <= tame
    assert page.text.count(NASTY) >= 15
    assert NASTY.split()[0] in terminal_table(report)


def test_drawing_leaves_matplotlib_as_it_was(tmp_path: Path) -> None:
    before = dict(matplotlib.rcParams)
    first = html_of(synthetic_report(3, 20), tmp_path)
    assert dict(matplotlib.rcParams) == before
    with matplotlib.rc_context(
        {"axes.grid": True, "axes.facecolor": "black", "font.size": 30, "text.color": "red"}
    ):
        assert html_of(synthetic_report(3, 20), tmp_path) == first


@pytest.mark.slow
def test_it_is_light_to_import() -> None:
    code = "import sys, nas.report; print({'torch', 'matplotlib.pyplot', 'pandas'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


@pytest.mark.parametrize(
    "path", [*REQUIRED, "search", "pruning", "budget.limits", "subnet", "predictor", "parent.ffn"]
)
def test_what_is_missing_is_left_out(path: str, tmp_path: Path) -> None:
    report = without(synthetic_report(3, 12, 2, 2), path)
    Page(html_of(report, tmp_path))
    assert terminal_table(report)
    wanted = path in REQUIRED or path in ("subnet", "predictor")
    if wanted:
        with pytest.raises(ValueError, match=f"the report lacks .*{re.escape(path)}"):
            check_report(report)
    else:
        check_report(report)


def test_an_empty_report_is_a_page_and_a_table(tmp_path: Path) -> None:
    assert "<svg" not in html_of({}, tmp_path)
    assert terminal_table({}).count("\n") == 2
    assert verdict({}) is None


def test_json_comes_back_equal(tmp_path: Path) -> None:
    report = synthetic_report()
    write_json(report, tmp_path / "new" / "report.json")
    assert json.loads((tmp_path / "new" / "report.json").read_text(encoding="utf-8")) == report
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["report.json"]


def test_json_is_finite_and_plain(tmp_path: Path) -> None:
    report = {
        "floats": [math.nan, math.inf, np.float32(0.5), np.float64("-inf")],
        "array": np.arange(4).reshape(2, 2),
        "path": Path("a") / "b",
        3: (np.int64(7), np.bool_(True), {2, 1}),
    }
    write_json(report, tmp_path / "r.json")
    assert json.loads((tmp_path / "r.json").read_text(encoding="utf-8")) == {
        "floats": [None, None, 0.5, None],
        "array": [[0, 1], [2, 3]],
        "path": str(Path("a") / "b"),
        "3": [7, True, [1, 2]],
    }


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    write_json({"seed": 1}, path)
    with pytest.raises(TypeError, match="object"):
        write_json({"seed": object()}, path)
    assert json.loads(path.read_text(encoding="utf-8")) == {"seed": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_the_table_is_aligned_and_short() -> None:
    lines = terminal_table(synthetic_report()).splitlines()
    names = ["parent", "subnet", "uniform", "random search", "drop layers"]
    assert [line.split("  ")[0] for line in lines[3:]] == names
    assert " ".join(lines[4].split()) == "subnet 50.0 % 53 % 50 % 50 % 43.51 44.63 1.082 1.7"
    assert max(map(len, lines)) <= 80 and len({len(line) for line in lines}) == 1
    assert lines[-1].endswith("–")


@pytest.mark.parametrize(
    ("damage", "outcome", "words"),
    [
        (0.07, "better", "beats all three baselines"),
        (0.1185, "level", "gained nothing over random search (1.125 ×)"),
        (0.2, "worse", "did not pay here: random search (1.125 ×) and uniform pruning (1.140 ×) are better"),
        (-0.01, "better", "less damage than uniform pruning"),
    ],
)
def test_the_verdict_is_honest(damage: float, outcome: str, words: str) -> None:
    report = synthetic_report(3, 12)
    report["subnet"]["scores"] = scores(damage)
    found = verdict(report)
    assert found is not None and found.outcome == outcome
    assert words in found.text.replace("\u202f", " ")


def test_the_verdict_names_a_subnet_that_is_not_faster() -> None:
    report = synthetic_report(3, 12)
    assert "faster" not in verdict(report).text
    report["subnet"]["latency"]["prefill_ms"] = 130.0
    assert "no faster than its parent" in verdict(report).text


def test_without_test_text_validation_decides() -> None:
    report = without(synthetic_report(3, 12), "subnet.scores.test")
    assert "validation perplexity" in verdict(report).text
    assert "(validation)" in terminal_table(report)


def test_the_best_so_far_counts_only_what_is_within_the_budget() -> None:
    report = synthetic_report(3, 12)
    report["pairs"][4] = {"digest": "0", "kept": 0.9, "score": -PARENT_NLL, "origin": "start"}
    kept, over, origins = pair_points(report)
    best = best_so_far(report)["search"]
    assert len(kept) == len(over) == len(origins) == len(best) == 12
    assert over[4] == over.min() and best[-1] == np.delete(over, 4).min()
    assert (np.diff(best) <= 0).all()


def test_scores_that_are_not_finite_are_not_drawn(tmp_path: Path) -> None:
    report = synthetic_report(3, 12)
    report["pairs"][0]["score"] = report["pairs"][1]["score"] = -math.inf
    report["predictor"]["held_out"][0]["predicted"] = math.nan
    report["predictor"]["kendall_tau_in_band"] = math.nan
    report["baselines"]["drop_layers"]["scores"]["test"].update(nll=900.0, perplexity=math.inf)
    report["baselines"]["uniform"]["scores"]["validation"]["nll"] = PARENT_NLL + 5  # drawn at the upper edge
    assert "151 ×, above" in Page(html_of(report, tmp_path)).text
    assert len(pair_points(plain(report))[0]) == 10
    assert len(held_out(plain(report))[0]) == 11
