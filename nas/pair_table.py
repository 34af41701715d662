"""Pair tables: pairs as a Parquet file that needs no model, for predictors, searches and notebooks.

A row is a pair: its architecture as JSON, digest, score, accuracy, origin, its costs, and the features that a
predictor sees (`nas.encoding`). What holds for the whole table (the space, the parent's shape and score, the
local error of every choice, the setting) is JSON in the file's own metadata under `METADATA`, so that any
other architecture of the space can be encoded and priced from the table alone.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from data.errors import InputError, first_line
from data.json_text import from_json
from nas.architecture import Architecture
from nas.cost import COUNTED, CostModel
from nas.damage import DamagePredictor
from nas.encoding import Encoding
from nas.pairs import Pair, Setting
from nas.sampling import Hints
from nas.shape import Shape, Widths, check_fits, widths_of
from nas.space import SearchSpace
from predictors.protocol import Predictor

METADATA = b"secateur"
FORMAT = 1
"""Raised whenever the columns or the metadata change their meaning."""
FEW = 3
"""Pairs about a size that make predictions of it more than an extrapolation."""


@dataclass(frozen=True, eq=False)  # arrays inside: a table is itself alone
class PairTable:
    """Pairs of one setting with all that encodes and prices architectures of their space.

    `reference` is the parent's score under the same protocol as the pairs', `hints` is what is known of its
    blocks before any pair, `centres` are the fractions of its block parameters about which the pairs lie.
    """

    space: SearchSpace
    cost: CostModel
    hints: Hints
    setting: Setting
    reference: float
    centres: tuple[float, ...]
    pairs: tuple[Pair, ...]

    @cached_property
    def encoding(self) -> Encoding:
        """What predictors see of architectures of this space."""
        return Encoding(self.cost, self.hints.attention_error, self.hints.mlp_error)

    @cached_property
    def widths(self) -> Widths:
        """(n, blocks, 3) of the pairs, in order."""
        shape = self.space.shape
        rows = [widths_of(pair.architecture, shape) for pair in self.pairs]
        return np.stack(rows) if rows else np.zeros((0, shape.blocks, 3), dtype=np.int64)

    @cached_property
    def scores(self) -> NDArray[np.float64]:
        """(n,) of the pairs, in order."""
        return np.array([pair.score for pair in self.pairs])

    @cached_property
    def features(self) -> NDArray[np.float64]:
        """(n, columns) of the pairs, in order."""
        return self.encoding(self.widths)

    @cached_property
    def digest(self) -> str:
        """Sixteen hexadecimal digits of the setting and of every pair, in order."""
        rows = [[pair.architecture.digest, pair.score] for pair in self.pairs]
        return hashlib.sha256(json.dumps([self.setting.digest, rows]).encode()).hexdigest()[:16]

    def correcting(self, predictor: Predictor) -> DamagePredictor:
        """The predictor as the main job uses it on this table's features: to correct an additive line."""
        return DamagePredictor(predictor, self.reference, self.encoding.errors)

    def kept(self, widths: Widths | None = None) -> NDArray[np.float64]:
        """Fractions of the parent's block parameters that these (n, blocks, 3) keep, by default the pairs."""
        rows = self.widths if widths is None else widths
        whole = self.cost(self.space.shape.parent)["block_parameters"]
        return self.cost.of_widths(rows, ["block_parameters"])["block_parameters"] / whole

    def among_pairs(self, widths: Widths) -> bool:
        """Whether a few pairs of the size of an architecture (blocks, 3) were measured, within a twentieth:
        predictions of other sizes are extrapolations."""
        own = float(self.kept(widths[None])[0])
        return int((np.abs(self.kept() - own) <= 0.05 * own).sum()) >= FEW

    def check_alike(self, other: PairTable) -> None:
        """Raise `InputError` unless the pairs of both tables may be used together."""
        if other.setting.digest != self.setting.digest:
            raise InputError(
                "pairs of different settings do not mix: "
                f"{_difference(self.setting.fields, other.setting.fields)}; give tables that were built alike"
            )

    def frame(self) -> pd.DataFrame:
        """The table as it is stored, one row a pair."""
        own = pd.DataFrame(
            {
                "architecture": [pair.architecture.to_json() for pair in self.pairs],
                "digest": [pair.architecture.digest for pair in self.pairs],
                "score": self.scores,
                "accuracy": [pair.measured.get("accuracy", float("nan")) for pair in self.pairs],
                "origin": [pair.origin for pair in self.pairs],
            }
        )
        costs = pd.DataFrame(self.cost.of_widths(self.widths, COUNTED))
        features = pd.DataFrame(self.features, columns=[f"x.{name}" for name in self.encoding.columns])
        return pd.concat([own, costs, features.astype("float32")], axis=1)


def write_pairs(table: PairTable, path: Path) -> None:
    """Store the table as Parquet; written beside and renamed, so that a file that is there is complete.

    Raises `ValueError` where an architecture stands twice.
    """
    if len({pair.architecture for pair in table.pairs}) < len(table.pairs):
        raise ValueError("an architecture stands in the table twice")
    space, cost = table.space, table.cost
    about = {
        "format": FORMAT,
        "setting": table.setting.fields,
        "reference": table.reference,
        "centres": list(table.centres),
        "shape": asdict(space.shape),
        "knobs": {name: list(choices) for name, choices in space.knobs.items()},
        "seq_len": cost.seq_len,
        "bytes_per_element": cost.bytes_per_element,
        "influence": table.hints.influence.tolist(),
        "attention_error": _listed(table.hints.attention_error),
        "mlp_error": _listed(table.hints.mlp_error),
    }
    content = pa.Table.from_pandas(table.frame(), preserve_index=False)
    content = content.replace_schema_metadata({METADATA: json.dumps(about, default=str).encode()})
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(f".{uuid.uuid4().hex[:12]}.part")
    pq.write_table(content, beside, compression="zstd", compression_level=19)
    beside.replace(path)


def read_pairs(path: Path) -> PairTable:
    """The table in a Parquet file that `write_pairs` made.

    Raises `InputError` for any other file, and for rows that are no architectures of the table's space.
    """
    try:
        content = pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise InputError(
            f"the pair table {path} cannot be read ({first_line(error)}); build it again"
        ) from error
    stored = (content.schema.metadata or {}).get(METADATA)
    if stored is None:
        raise InputError(
            f"{path} is Parquet, but no pair table of this project; make one with experiments.build_pairs"
        )
    try:
        about = from_json(stored)
        if about["format"] != FORMAT:
            raise ValueError(f"its format is {about['format']}, and this version reads {FORMAT}")
        shape = Shape(**about["shape"])
        space = SearchSpace(shape, {name: tuple(choices) for name, choices in about["knobs"].items()})
        cost = CostModel(shape, int(about["seq_len"]), int(about["bytes_per_element"]))
        heads = (shape.blocks, shape.kv_groups + 1, shape.queries_per_group + 1)
        hints = Hints(
            np.array(about["influence"], dtype=np.float64).reshape(shape.blocks),
            _dense(about["attention_error"], heads),
            _dense(about["mlp_error"], (shape.blocks, shape.ffn + 1)),
        )
        frame = content.select(["architecture", "score", "accuracy", "origin"]).to_pandas()
        pairs = tuple(_pair(row, space) for row in frame.itertuples(index=False))
        reference = float(about["reference"])
        if not (np.isfinite(reference) and all(np.isfinite(pair.score) for pair in pairs)):
            raise ValueError("some scores are not finite")
        centres = tuple(float(centre) for centre in about["centres"])
    except (
        InputError, KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError, MemoryError,
    ) as error:  # fmt: skip
        raise InputError(f"the pair table {path} is damaged ({first_line(error)}); build it again") from error
    return PairTable(space, cost, hints, Setting(about["setting"]), reference, centres, pairs)


def _pair(row: Any, space: SearchSpace) -> Pair:
    architecture = Architecture.from_json(row.architecture)
    check_fits(architecture, space.shape)
    if not space.contains(widths_of(architecture, space.shape)):
        raise ValueError(f"architecture {architecture.digest} uses choices outside the space")
    measured = {} if np.isnan(row.accuracy) else {"accuracy": float(row.accuracy)}
    return Pair(architecture, float(row.score), str(row.origin), measured)


def _listed(errors: NDArray[np.float64]) -> list[list[float]]:
    """The entries that are no NaN as [index ..., value]: most choices of a fine axis are not in the space."""
    return [[*map(int, at), float(errors[tuple(at)])] for at in np.argwhere(~np.isnan(errors))]


def _dense(entries: Sequence[Sequence[float]], shape: tuple[int, ...]) -> NDArray[np.float64]:
    errors = np.full(shape, np.nan)
    for *at, value in entries:
        if any(not 0 <= index < size for index, size in zip(at, shape, strict=True)):
            raise ValueError(f"a local error lies at {at}, outside {shape}")
        errors[tuple(map(int, at))] = value
    return errors


def _difference(one: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    names = sorted(name for name in {*one, *other} if one.get(name) != other.get(name))
    return ", ".join(f"{name} is {one.get(name)} and {other.get(name)}" for name in names[:3])
