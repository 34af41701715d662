"""The default predictor is worth its place on the measured pairs that come with the repository."""

import numpy as np
import pytest

from experiments.tables import DEMO, open_table, sibling
from nas.damage import no_correction
from predictors import make_predictor
from predictors.learning import Rows, learning_curve
from predictors.protocol import Predictor

TABLES = sorted(
    path.stem for path in DEMO.parent.glob("*.parquet") if "-" not in path.stem.replace("-8m", "")
)
SEEDS = 5


def taus(name: str, predictor: str, sizes: list[int]) -> dict[int, float]:
    """Kendall's tau in the bands of a table after so many pairs, mean over seeds."""
    table = open_table(DEMO.with_name(f"{name}.parquet"))
    rows = Rows(table.features, table.scores, table.kept())
    found: dict[int, list[float]] = {size: [] for size in sizes}
    for seed in range(SEEDS):

        def make(seed: int = seed) -> Predictor:
            bare = no_correction() if predictor == "additive_line" else make_predictor(predictor, seed)
            return table.correcting(bare)

        for judged in learning_curve(make, rows, sizes, seed, centres=table.centres, queries=10):
            found[judged.pairs].append(judged.kendall_tau_in_band)
    return {size: float(np.mean(values)) for size, values in found.items()}


@pytest.mark.slow
@pytest.mark.parametrize("name", TABLES)
def test_order_at_one_size_is_learned_better_than_by_lines_and_sums(name: str) -> None:
    sizes = [100, 300]
    own = taus(name, "xgboost", sizes)
    assert own[100] >= 0.70
    assert own[300] >= 0.80
    for other in ("ridge", "additive", "additive_line"):
        assert own[300] > taus(name, other, [300])[300]


@pytest.mark.parametrize("name", TABLES)
def test_a_table_is_what_its_readme_says(name: str) -> None:
    table, mutated, single = (
        open_table(DEMO.with_name(f"{name}.parquet")), *(sibling(DEMO.with_name(f"{name}.parquet"), kind)
        for kind in ("mutated", "replaced"))
    )  # fmt: skip
    assert mutated is not None and single is not None
    listed = (DEMO.parent / "README.md").read_text(encoding="utf-8")
    for each in (table, mutated, single):
        assert str(len(each.pairs)) in listed
        table.check_alike(each)
    assert np.allclose(table.scores, [pair.score for pair in table.pairs])
    known = {pair.architecture for pair in table.pairs}
    assert not known & {pair.architecture for pair in mutated.pairs}  # what is judged was not learned from
