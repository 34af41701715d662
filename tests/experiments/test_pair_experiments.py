"""The experiments on stored pairs, end to end: tables are built, judged, searched, and say what is wrong."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from experiments import ablation, build_pairs, compare_predictors, compress, measure_latency, search_subnets
from experiments.command_line import run
from experiments.strategies import STRATEGIES
from nas.pair_table import read_pairs
from tests.experiments.toy_job import PAIRS, arguments, everything_in, make_toy

FIELDS = {
    "predictor", "pairs", "seed", "kendall_tau", "kendall_tau_in_band", "precision_at_k", "regret",
    "fit_seconds", "predict_seconds",
}  # fmt: skip
ROWS = 60
SHAKY = """
import numpy as np
class Raises:
    def fit(self, X, y): raise RuntimeError("out of luck")
    def predict(self, X): return X[:, 0]
class Nan(Raises):
    def fit(self, X, y): return self
    def predict(self, X): return np.full(len(X), np.nan)
class Wide(Nan):
    def predict(self, X): return X
"""


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_toy(tmp_path_factory.mktemp("toy"))


def subject(toy: Path) -> list[str]:
    """The toy as every experiment names it."""
    return [
        "--parent", str(toy / "parent"), "--corpus", str(toy / "corpus"), "--cache", str(toy / "cache"),
        "--seq-len", "24", "--calibration-windows", "16", "--pair-windows", "4",
    ]  # fmt: skip


def built(toy: Path, kind: str, out: Path, *more: str) -> int:
    command = [*subject(toy), "--kind", kind, "--out", str(out), "--keep", "0.4", "0.6", *more]
    return run(build_pairs.Settings, build_pairs.main, command)


@pytest.fixture(scope="module")
def tables(toy: Path) -> Path:
    """The folder of three tables, `toy.parquet` and those beside it."""
    folder = toy / "tables"
    assert built(toy, "uniform", folder / "toy.parquet", "--rows", str(ROWS)) == 0
    assert built(toy, "mutated", folder / "toy-mutated.parquet", "--rows", "20", "--search-pairs", "44") == 0
    assert built(toy, "replaced", folder / "toy-replaced.parquet") == 0
    return folder


def test_uniform_rows_lie_about_their_sizes(tables: Path) -> None:
    table = read_pairs(tables / "toy.parquet")
    assert len(table.pairs) == len({pair.architecture for pair in table.pairs}) > 0.9 * ROWS
    kept = table.kept()
    assert ((kept <= 0.6 * 1.06) & (kept > 0.4 * 0.8)).all()
    assert {pair.origin for pair in table.pairs} == {"uniform"}
    assert table.centres == (0.4, 0.6)


def test_mutated_rows_are_better_than_uniform_ones_and_singles_change_one_module(tables: Path) -> None:
    uniform, mutated, single = (
        read_pairs(tables / f"toy{kind}.parquet") for kind in ("", "-mutated", "-replaced")
    )
    assert uniform.setting == mutated.setting == single.setting
    assert (mutated.kept() <= 0.6).all()
    assert np.median(mutated.scores) > np.median(uniform.scores)
    whole = np.array([2, 2, 24])
    changed = single.widths != whole
    assert (changed[..., :2].any(-1).sum(1) + changed[..., 2].sum(1) == 1).all()


def test_the_same_command_again_measures_nothing(
    toy: Path, tables: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = everything_in(tables)
    monkeypatch.setattr("nas.building.evaluate", _never)
    assert built(toy, "uniform", tables / "toy.parquet", "--rows", str(ROWS)) == 0
    after = everything_in(tables)
    assert after.keys() == before.keys()
    assert read_pairs(tables / "toy.parquet").scores.size
    assert all(after[name] == before[name] for name in before if name.endswith(".journal"))


def test_a_table_is_not_built_over_with_other_settings(
    toy: Path, tables: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = everything_in(tables)
    for more, words in (
        (["--seed", "1"], "seed is 0 and 1"),
        (["--rows", "10"], "or more, or another --out"),
    ):
        assert built(toy, "uniform", tables / "toy.parquet", "--rows", str(ROWS), *more) == 2
        assert words in capsys.readouterr().err
    assert built(toy, "replaced", tables / "toy.parquet") == 2
    assert everything_in(tables) == before


def _never(*_: object, **__: object) -> None:
    pytest.fail("something was evaluated")


def compared(tables: Path, out: Path, *more: str) -> int:
    command = ["--pairs-from", str(tables / "toy.parquet"), "--pairs", "12", "24", "--seeds", "2", "--k", "3"]
    quick = ["--queries", "100", "--band", "0.2", "--out", str(out)]
    return run(compare_predictors.Settings, compare_predictors.main, [*command, *quick, *more])


def test_predictors_are_compared_and_a_comparison_grows(
    tables: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert compared(tables, tmp_path, "--predictors", "ridge", "one_block_replacement", "additive_line") == 0
    rows = json.loads((tmp_path / "predictors.json").read_text())
    assert len(rows) == 3 * 2 * 2
    assert all(set(row) >= FIELDS for row in rows)
    assert all(row["fit_seconds"] >= 0 and row["predict_seconds"] > 0 for row in rows)
    assert (tmp_path / "predictors.png").read_bytes().startswith(b"\x89PNG")
    shown = capsys.readouterr().out
    assert "one_block_replacement" in shown and "τ 24" in shown

    # A plug-in by import path joins; what is there is not judged again.
    (tmp_path / "mine_to_plug.py").write_text(
        "from sklearn.linear_model import LinearRegression\nclass Mine(LinearRegression):\n    pass\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    assert compared(tables, tmp_path, "--predictors", "ridge", "mine_to_plug:Mine") == 0
    more = json.loads((tmp_path / "predictors.json").read_text())
    assert more[: len(rows)] == rows
    assert {row["predictor"] for row in more} == {*(row["predictor"] for row in rows), "mine_to_plug:Mine"}

    # Its code changed: its rows are judged anew, the others stay.
    source = tmp_path / "mine_to_plug.py"
    source.write_text(source.read_text().replace("    pass", "    changed = True"))
    del sys.modules["mine_to_plug"]
    assert compared(tables, tmp_path, "--predictors", "mine_to_plug:Mine") == 0
    again = json.loads((tmp_path / "predictors.json").read_text())
    assert len(again) == len(more)
    assert again[: len(rows)] == rows
    assert {r["code"] for r in again[len(rows) :]}.isdisjoint({r["code"] for r in more[len(rows) :]})

    capsys.readouterr()
    assert compared(tables, tmp_path, "--predictors", "ridge", "--bare") == 2
    assert "give another --out" in capsys.readouterr().err


def searched(tables: Path, out: Path, *more: str) -> int:
    command = ["--pairs-from", str(tables / "toy.parquet"), "--predictor", "ridge", "--out", str(out)]
    quick = ["--levels", "0.4", "0.6", "--seconds", "0.05"]
    return run(search_subnets.Settings, search_subnets.main, [*command, *quick, *more])


def test_a_front_is_searched_within_every_budget(
    toy: Path, tables: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    latency = tmp_path / "latency.json"
    command = ["--parent", str(toy / "parent"), "--latency-context", "16", "--latency-tokens", "2"]
    assert (
        run(
            measure_latency.Settings,
            measure_latency.main,
            [*command, "--latency-repeats", "1", "--out", str(latency)],
        )
        == 0
    )
    table = read_pairs(tables / "toy.parquet")
    whole = table.cost(table.space.shape.parent)
    for cost in ("block_parameters", "flops", "latency_ms"):
        levels = [0.4, 0.6] if cost != "latency_ms" else [0.8, 0.95]  # of the toy's much is fixed
        more = ["--latency-table", str(latency), "--levels", "0.8", "0.95"] if cost == "latency_ms" else []
        assert searched(tables, tmp_path / cost, "--cost", cost, *more) == 0
        found = json.loads((tmp_path / cost / "search.json").read_text())["rows"]
        assert [row["level"] for row in found] == levels
        assert all(row["costs"][cost] <= row["limit"] for row in found)
        if cost in whole:
            assert all(row["limit"] == row["level"] * whole[cost] for row in found)
    assert "predicted from" in capsys.readouterr().out
    assert searched(tables, tmp_path, "--cost", "latency_ms") == 2
    assert "--latency-table" in capsys.readouterr().err


@pytest.mark.slow
def test_all_strategies_keep_every_budget(tables: Path, tmp_path: Path) -> None:
    assert searched(tables, tmp_path, "--compare") == 0
    rows = json.loads((tmp_path / "search.json").read_text())["rows"]
    assert {row["strategy"] for row in rows} == {*STRATEGIES, search_subnets.BOTH}
    assert all(row["costs"]["block_parameters"] <= row["limit"] for row in rows)


def test_a_finished_run_is_a_table_too_and_its_report_takes_an_ablation(
    toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert (
        run(compress.Settings, compress.main, arguments(toy, out, random_search=None, latency_repeats=1)) == 0
    )
    table = read_pairs(out / "pairs.parquet")
    assert len(table.pairs) >= PAIRS
    report = json.loads((out / "report.json").read_text())
    assert {pair.architecture.digest for pair in table.pairs} == {pair["digest"] for pair in report["pairs"]}
    assert all(set(row) >= {"kept", "predicted_score", "among_pairs"} for row in report["front"])
    assert report["subnet"]["predicted_latency"]["prefill_ms"] > 0
    command = ["--pairs-from", str(out), "--predictors", "ridge", "--pairs", "0", "--seeds", "1"]
    assert (
        run(compare_predictors.Settings, compare_predictors.main, [*command, "--out", str(tmp_path / "p")])
        == 0
    )

    command = [*subject(toy), "--evaluations", "24", "--first-pairs", "12", "--rounds", "2", "--trials", "40"]
    command += ["--predictor", "ridge", "--seeds", "1", "--final-windows", "4", "--keep", "0.6"]
    command += ["--out", str(tmp_path / "ablation"), "--report-in", str(out)]
    assert run(ablation.Settings, ablation.main, command) == 0
    rows = json.loads((tmp_path / "ablation" / "ablation.json").read_text())["rows"]
    assert [row["variant"] for row in rows] == list(ablation.VARIANTS)
    assert {row["evaluations"] for row in rows} == {24}
    firsts = {tuple(row["best_so_far"][:12]) for row in rows}
    assert len(firsts) == 1  # all variants start alike
    page = (out / "report.html").read_text()
    for words in ("The search without its parts", "What other budgets would give", "Latency, predicted"):
        assert words in page


def test_a_latency_budget_of_the_main_job_is_kept(toy: Path, tmp_path: Path) -> None:
    latency = tmp_path / "latency.json"
    command = ["--parent", str(toy / "parent"), "--latency-context", "24", "--latency-tokens", "2"]
    command += ["--latency-repeats", "2", "--out", str(latency)]
    assert run(measure_latency.Settings, measure_latency.main, command) == 0
    limit = 0.9 * sum(
        json.loads(latency.read_text())[p]["whole"] * n for p, n in (("prefill", 1), ("decode", 2))
    )
    done = arguments(
        toy, tmp_path / "run", keep="none", max_latency=limit, latency_table=latency, latency_tokens=2
    )
    assert run(compress.Settings, compress.main, [*done, "--no-random-search"]) == 0
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["budget"]["limits"] == {"latency_ms": pytest.approx(limit)}
    for model in [report["subnet"], *filter(None, report["baselines"].values())]:
        assert model["costs"]["latency_ms"] <= limit


@pytest.mark.parametrize(
    ("script", "options", "words"),
    [
        (compare_predictors, ["--pairs-from", "nowhere"], "there is no pair table nowhere"),
        (compare_predictors, ["--pairs-from", "."], "holds no pairs.parquet"),
        (compare_predictors, ["--predictors", "oracle"], "no predictor is called 'oracle'"),
        (compare_predictors, ["--fresh", "1.5"], "--fresh is 1.5"),
        (compare_predictors, ["--pairs", "1"], "--pairs is (1,)"),
        (compare_predictors, ["--pairs", "100000"], "--pairs asks for 100000"),
        (search_subnets, ["--levels", "2"], "--levels is (2.0,)"),
        (search_subnets, ["--strategies", "luck"], "no strategy is called 'luck'"),
        (search_subnets, ["--seconds", "0"], "--seconds is 0.0"),
        (
            search_subnets,
            ["--levels", "0.001"],
            "--levels 0.001 of the parent's block_parameters is too small",
        ),
        (
            compare_predictors,
            ["--predictors", "ridge", "--around", "5", "--seeds", "1"],
            "give another --around",
        ),
        (
            compare_predictors,
            ["--predictors", "shaky:Raises", "--seeds", "1"],
            "'shaky:Raises' failed to learn",
        ),
        (
            compare_predictors,
            ["--predictors", "shaky:Nan", "--seeds", "1"],
            "predictions that are not finite",
        ),
        (compare_predictors, ["--predictors", "shaky:Wide", "--seeds", "1"], "predictions of shape"),
        (compare_predictors, ["--predictors", "broken:X"], "cannot be imported"),
        (search_subnets, ["--predictor", "shaky:Nan"], "predictions that are not finite"),
        (measure_latency, ["--out", "."], "is a folder"),
        (build_pairs, ["--keep", "0.99"], "--keep is 0.99"),
        (build_pairs, ["--out", "table.csv"], "ends in .parquet"),
        (ablation, ["--keep", "0"], "--keep is 0.0"),
        (ablation, ["--report-in", "."], "holds no report.json"),
        (measure_latency, ["--parent", "nowhere"], "nowhere"),
        (compress, ["--max-latency", "5", "--latency-repeats", "0"], "--max-latency needs a latency table"),
    ],
)
def test_bad_input_is_one_sentence_and_two(
    script: object, options: list[str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "shaky.py").write_text(SHAKY)
    (tmp_path / "broken.py").write_text("def x(:")
    assert run(script.Settings, script.main, options) == 2  # type: ignore[attr-defined]
    said = capsys.readouterr().err
    assert words in said
    assert "Traceback" not in said
