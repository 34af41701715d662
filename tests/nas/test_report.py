"""A report is whole, finite, escaped, self-contained, and says so when a baseline wins."""

import copy
import json
import math
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest

from experiments.results import failures_record
from nas.architecture import Architecture, Block
from nas.report import check_report, terminal_table, verdict, write_html, write_json
from nas.report.plots import best_so_far, held_out, pair_points
from nas.report.record import REQUIRED, plain
from tests.nas.example_report import PARENT_NLL, Report, scores, synthetic_report

NASTY = "<img src=x onerror=\"alert('1')\">&amp;$x_{1}$ </script>"
VOID = ("meta", "img", "br", "use", "path", "rect")


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


def test_experts_are_called_so(tmp_path: Path) -> None:
    report = synthetic_report()
    assert "FFN channels" in html_of(report, tmp_path) and "experts" not in html_of(report, tmp_path)
    report["parent"]["mlp_units"] = "experts"
    page = html_of(report, tmp_path)
    assert f"{report['parent']['ffn']} experts, hidden width" in page and "% of the experts" in page
    assert "FFN channels" not in page


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
    report["failures"] = [{"digest": NASTY, "reason": NASTY}]
    for pair in report["pairs"][:9]:
        pair["origin"] = NASTY
    tame = {tag for tag, _ in Page(html_of(synthetic_report(3, 20), tmp_path)).tags}
    page = Page(html_of(report, tmp_path))
    assert {tag for tag, _ in page.tags} <= tame
    assert page.text.count(NASTY) >= 15
    assert NASTY.split()[0] in terminal_table(report)


@pytest.mark.parametrize("count", [0, 1, 2])
def test_subnets_that_could_not_be_measured_are_counted_with_their_reasons(
    count: int, tmp_path: Path
) -> None:
    report = synthetic_report(3, 12)
    poison = Architecture(16, (Block(0, 1, 1, 4),))
    known = {poison: "it scored nan (tried 2 times)", replace(poison, hidden=8): "10 workers died"}
    report["failures"] = failures_record(dict([*known.items()][:count]))
    page, table = Page(html_of(report, tmp_path)).text, terminal_table(report)
    said = f"{count} subnet{'s' * (count > 1)} could not be measured"
    assert (said in page) == (said in table) == (count > 0) == (poison.digest in page)
    assert [reason in page for reason in known.values()] == [count > 0, count > 1]


def hostile(value: Any) -> Any:
    """The same with every text in it, wherever it is, one that would break out of where it is shown."""
    if isinstance(value, dict):
        return {key: hostile(item) for key, item in value.items()}
    if isinstance(value, list):
        return [hostile(item) for item in value]
    return NASTY if isinstance(value, str) else value


def test_no_text_of_a_report_is_markup(tmp_path: Path) -> None:
    """Nor can one close an attribute: none is there that the page of a tame report has not."""
    report = synthetic_report(3, 20)
    tame, page = (Page(html_of(each, tmp_path)) for each in (report, hostile(report)))
    known = {(tag, name) for tag, attributes in tame.tags for name in attributes}
    assert {(tag, name) for tag, attributes in page.tags for name in attributes} <= known
    assert page.text.count(NASTY) >= 30


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
