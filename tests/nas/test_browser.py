"""The report in a real browser: nothing is said in the console, asked for, cut off or unreadable."""

from pathlib import Path

import pytest

from nas.report import write_html
from tests.experiments.toy_job import job, make_toy
from tests.nas.browser import BROWSER, REASON, Visit, look, visit
from tests.nas.example_report import synthetic_report

pytestmark = [pytest.mark.slow, pytest.mark.skipif(BROWSER is None, reason=REASON)]

WIDE, NARROW = 1200, 400
SECTIONS = (
    "What each block keeps",
    "Quality against size",
    "Beside the baselines",
    "The search",
    "The predictor",
    "What is left of the space",
    "What other budgets would give",
    "Latency, predicted and measured",
    "The search without its parts",
    "Where the time went",
    "To do it again",
)
SHAPES = {"small": (3, 9, 1, 1, 0.3), "usual": (8, 200, 8, 1, 0.5), "deep": (32, 300, 8, 4, 0.8)}


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Reports of made-up runs, and of a real one."""
    folder, pages = tmp_path_factory.mktemp("reports"), {}
    for name, shape in SHAPES.items():
        write_html(synthetic_report(*shape), folder / f"{name}.html")
        pages[name] = (folder / f"{name}.html").read_text(encoding="utf-8")
    assert job(make_toy(folder), folder / "run") == 0
    pages["toy"] = (folder / "run" / "report.html").read_text(encoding="utf-8")
    return pages


def is_clean(seen: Visit, width: int) -> None:
    assert seen.console == [], "the console says something"
    assert seen.requests == [] and seen.found["failed"] == [], "a report needs nothing beside it"
    assert seen.found["inside"] == width
    assert seen.found["needed"] <= width, "the page is wider than its window"
    assert seen.found["overlaps"] == [], "texts of a figure lie on one another"
    assert seen.found["faint"] == [], "texts are hard to read on their ground"


@pytest.mark.parametrize("width", [WIDE, NARROW])
@pytest.mark.parametrize("name", [*SHAPES, "toy"])
def test_a_report_is_whole_in_a_browser(name: str, width: int, pages: dict[str, str], tmp_path: Path) -> None:
    light = visit(pages[name], tmp_path, width)
    is_clean(light, width)
    absent = {"The search without its parts"} if name == "toy" else set()  # no ablation was run for it
    assert set(SECTIONS) - absent <= set(light.found["sections"])
    assert set(light.found["figures"]) == {1}  # drawn for both widths, shown once
    dark = visit(pages[name], tmp_path, width, dark=True)
    is_clean(dark, width)
    assert dark.found["paper"] != light.found["paper"]


def test_a_report_can_be_opened_as_a_file(pages: dict[str, str], tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text(pages["usual"], encoding="utf-8")
    dom, console = look(path.as_uri(), tmp_path)
    assert console == []
    assert all(section in dom for section in SECTIONS)


def page(inside: str) -> str:
    return f'<!doctype html><html><head></head><body style="background: white">{inside}</body></html>'


def text(words: str, x: int) -> str:
    return f'<text x="{x}" y="20">{words}</text>'


def test_an_honest_page_is_clean(tmp_path: Path) -> None:
    is_clean(visit(page(f"<p>Words</p><svg>{text('one', 0)}{text('two', 90)}</svg>"), tmp_path), WIDE)


FAULTS = {
    "an error in the console": ("<script>console.error('planted')</script>", "the console says"),
    "a script that fails": ("<script>null.x</script>", "the console says"),
    "a missing picture": ('<img src="missing.png">', "needs nothing beside it"),
    "a picture from elsewhere that is there": ('<img src="frame.html?">', "needs nothing beside it"),
    "a missing style sheet": ('<link rel="stylesheet" href="missing.css">', "needs nothing beside it"),
    "a missing background": ('<p style="background: url(missing.png)">Words</p>', "needs nothing beside it"),
    "a box that is too wide": (f'<p style="width: {WIDE + 300}px">Words</p>', "wider than its window"),
    "texts on one another": (f"<svg>{text('a longer text', 0)}{text('another', 30)}</svg>", "on one another"),
    "grey on white": ('<p style="color: #999">Words</p>', "hard to read"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_seen(fault: str, tmp_path: Path) -> None:
    html, words = FAULTS[fault]
    with pytest.raises(AssertionError, match=words):
        is_clean(visit(page(html), tmp_path), WIDE)
