"""A pair table holds all that its pairs, and any other architecture of their space, need to be judged."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.errors import InputError
from nas.cost import CostModel
from nas.pair_table import METADATA, PairTable, read_pairs, write_pairs
from nas.pairs import Pair, Setting
from nas.shape import architecture_of
from tests.nas.small_spaces import SEQ_LEN, everything, hints_of, score, small_space


def small_table(rows: int = 40, seed: int = 0, setting: int = 0) -> PairTable:
    space = small_space(3)
    widths = everything(space)
    chosen = widths[np.random.default_rng(seed).permutation(len(widths))[:rows]]
    pairs = tuple(
        Pair(architecture_of(row, space.shape), float(value), "uniform", {"accuracy": 0.25})
        for row, value in zip(chosen, score(chosen), strict=True)
    )
    cost = CostModel(space.shape, SEQ_LEN, 2)
    return PairTable(space, cost, hints_of(space.shape), Setting({"seed": setting}), 0.0, (0.5,), pairs)


@settings(max_examples=10)
@given(rows=st.integers(0, 60), seed=st.integers(0, 99))
def test_what_is_written_is_read_back(tmp_path_factory: pytest.TempPathFactory, rows: int, seed: int) -> None:
    table, path = small_table(rows, seed), tmp_path_factory.mktemp("table") / "pairs.parquet"
    write_pairs(table, path)
    again = read_pairs(path)
    assert again.pairs == table.pairs
    assert (again.space, again.cost, again.reference) == (table.space, table.cost, table.reference)
    assert (again.centres, again.setting) == (table.centres, table.setting)
    assert np.array_equal(again.scores, table.scores)
    other = everything(table.space)  # also what is no pair is encoded alike
    assert np.array_equal(again.encoding(other), table.encoding(other))
    assert [path.name for path in path.parent.iterdir()] == ["pairs.parquet"]


def test_pandas_reads_features_scores_and_costs_without_this_project(tmp_path: Path) -> None:
    table = small_table()
    write_pairs(table, tmp_path / "pairs.parquet")
    frame = pd.read_parquet(tmp_path / "pairs.parquet")
    features = frame.filter(regex=r"^x\.")
    assert list(features.columns) == [f"x.{name}" for name in table.encoding.columns]
    assert np.allclose(features, table.features, rtol=1e-6)
    assert np.array_equal(frame["score"], table.scores)
    for pair, (_, row) in zip(table.pairs, frame.iterrows(), strict=True):
        assert table.cost(pair.architecture)["flops"] == row.flops
        assert row.digest == pair.architecture.digest


def test_pairs_of_different_settings_do_not_mix() -> None:
    one, other = small_table(10), small_table(10, seed=1)
    one.check_alike(other)
    with pytest.raises(InputError, match="seed is 0 and 1"):
        one.check_alike(small_table(10, setting=1))
    assert len({one.digest, other.digest, small_table(10, setting=1).digest}) == 3
    assert one.digest == small_table(10).digest


def test_an_architecture_stands_once(tmp_path: Path) -> None:
    table = small_table(5)
    twice = replace(table, pairs=(*table.pairs, table.pairs[0]))
    with pytest.raises(ValueError, match="twice"):
        write_pairs(twice, tmp_path / "pairs.parquet")


def test_sizes_among_the_pairs_are_told_from_others() -> None:
    table = small_table(60)
    sizes = table.kept()
    middle = table.widths[np.argsort(sizes)[30]]
    assert table.among_pairs(middle)
    small = tuple(pair for pair, size in zip(table.pairs, sizes, strict=True) if size < 0.4)
    few = replace(table, pairs=small)
    whole = np.tile([2, 2, 4], (3, 1))
    assert not few.among_pairs(whole)


def broken(table: PairTable, path: Path, **changes: object) -> Path:
    """The table with some of its metadata changed."""
    write_pairs(table, path)
    content = pq.read_table(path)
    about = {**json.loads(content.schema.metadata[METADATA]), **changes}
    pq.write_table(content.replace_schema_metadata({METADATA: json.dumps(about)}), path)
    return path


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"format": 99}, "format is 99"),
        ({"shape": {}}, "damaged"),
        ({"knobs": {"0.kv_groups": [1]}}, "knobs"),
        ({"reference": "much"}, "damaged"),
        ({"reference": float("nan")}, "not finite"),
        ({"mlp_error": [[0, 99, 0.5]]}, "outside"),
        ({"attention_error": [[1, 2]]}, "damaged"),
        ({"centres": None}, "damaged"),
        ({"influence": [1.0]}, "damaged"),
    ],
)
def test_damage_is_one_sentence(tmp_path: Path, changes: dict[str, object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        read_pairs(broken(small_table(5), tmp_path / "pairs.parquet", **changes))


def test_a_pair_outside_the_space_is_refused(tmp_path: Path) -> None:
    table = small_table(5)
    knobs = {name: [choices[-1]] for name, choices in table.space.knobs.items()}
    with pytest.raises(InputError, match="outside the space"):
        read_pairs(broken(table, tmp_path / "pairs.parquet", knobs=knobs))


def test_other_files_are_named(tmp_path: Path) -> None:
    pd.DataFrame({"a": [1]}).to_parquet(tmp_path / "other.parquet")
    with pytest.raises(InputError, match="no pair table"):
        read_pairs(tmp_path / "other.parquet")
    (tmp_path / "text.parquet").write_text("hello")
    with pytest.raises(InputError, match="cannot be read"):
        read_pairs(tmp_path / "text.parquet")
