"""Which predictor should a search trust after so many pairs? Judged on stored pairs, without model or GPU.

Each predictor learns from more and more pairs of a table and is judged on pairs that it has not seen: order
over all sizes, order within 5 % of a budget, order among mutations of the best, and what a search that trusts
it would lose. The table goes to the terminal, every fit to `predictors.json`, the curves to `predictors.png`.

    python -m experiments.compare_predictors
    python -m experiments.compare_predictors --predictors xgboost ridge package.module:Mine --seeds 3
    python -m experiments.compare_predictors --pairs-from runs/compress --out runs/predictors-own

A pair table has its mutations beside it, under the name that ends in -mutated, and its single replacements,
-replaced; a finished run of experiments.compress has neither. Predictors are used as the main job uses them,
to correct an additive line of local errors; `--bare` gives them the scores instead.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

import predictors
from data.errors import InputError
from data.json_text import from_json
from experiments.command_line import check_least, option, run
from experiments.learning_plot import draw
from experiments.results import seeded, usable, versions
from experiments.stages import say
from experiments.tables import DEMO, open_table, sibling
from nas import damage, encoding
from nas.damage import no_correction
from nas.pair_table import PairTable
from nas.replacement import ReplacementPredictor, module_damage
from nas.report import write_json
from predictors import PREDICTORS
from predictors.learning import Rows, dealt, learning_curve
from predictors.protocol import Predictor

ADDITIVE, REPLACEMENT = "additive_line", "one_block_replacement"
"""What no predictor is needed for: the line that predictors correct, and summed single replacements."""
LEGEND = """
τ N          Kendall's τ among unseen pairs of about one size (± {band:.0%}) after N pairs
after {most} pairs, means over the draws:
τ all        the same over all sizes
τ mutated    the same among pairs near the optimum, which resemble what a search proposes
best {k}      share of the {k} predicted best that are among the {k} best of a size
regret       nats that a search loses by measuring only the {k} predicted best, near-optimal ones among them
in band      unseen pairs that τ N, best {k} and regret are taken from
fit s        seconds of a fit, s/{queries} of {queries} predictions"""
FORMAT = 1
"""Raised whenever rows are measured differently."""


@dataclass(frozen=True)
class Settings:
    """Predictors, tables, sizes."""

    predictors: tuple[str, ...] = option(
        (), f"of {', '.join([*PREDICTORS, ADDITIVE, REPLACEMENT])}, or import paths package.module:Class; "
        "all but these by default", group="predictors", metavar="NAME",
    )  # fmt: skip
    bare: bool = option(
        False, "learn scores as they are, not what the additive line misses", group="predictors"
    )
    pairs_from: Path = option(
        DEMO, "a pair table, or the folder of a finished run", group="pairs", metavar="PATH"
    )
    mutated: Path | None = option(
        None, "pairs near the optimum; by default those beside the table", group="pairs"
    )
    replaced: Path | None = option(
        None, "single replacements; by default those beside the table", group="pairs"
    )
    pairs: tuple[int, ...] = option(
        (25, 50, 100, 200, 300, 0), "numbers of pairs to learn from; 0 is all but the fresh ones",
        group="pairs",
    )  # fmt: skip
    fresh: float = option(0.4, "share of the pairs that predictors are judged on", group="pairs")
    around: tuple[float, ...] = option(
        (), "fractions of the block parameters that bands lie around; by default the table's own",
        group="pairs",
    )  # fmt: skip
    band: float = option(0.05, "half the width of a band, in parts of its centre", group="pairs")
    k: int = option(10, "rows that a search would measure", group="pairs", least=1)
    queries: int = option(10_000, "predictions to time", group="run", least=1)
    seeds: int = option(5, "draws of pairs and predictors", group="run", least=1)
    out: Path = option(Path("runs/predictors"), "folder of the results", group="run")


def main(settings: Settings) -> None:
    """Judge what is not yet judged, show all."""
    check(settings)
    table = open_table(settings.pairs_from)
    mutated = open_table(settings.mutated) if settings.mutated else sibling(settings.pairs_from, "mutated")
    replaced = (
        open_table(settings.replaced) if settings.replaced else sibling(settings.pairs_from, "replaced")
    )
    for other in (mutated, replaced):
        if other is not None:
            table.check_alike(other)
    usable(settings.out, "--out")
    sizes = sizes_of(settings.pairs, len(dealt(rows_of(table), 0, settings.fresh)[0]))
    contestants = contestants_of(settings, table, mutated, replaced)
    path = settings.out / "predictors.json"
    protocol = protocol_of(settings, table, mutated)
    origin = {
        "table": settings.pairs_from.name, "setting": table.setting.digest, "bare": settings.bare,
        "band": settings.band, "versions": versions(),
    }  # fmt: skip
    found = earlier(path, protocol, contestants)
    known = {(row["predictor"], row["pairs"], row["seed"]) for row in found}
    wanted = [(each, seed) for each in contestants for seed in range(settings.seeds)]
    for each, seed in tqdm(wanted, desc="predictors", unit="curve", leave=False):
        missing = [size for size in sizes if (each.name, size, seed) not in known]
        if not missing:
            continue
        curve = learning_curve(
            partial(each.make, seed), each.rows, missing, seed,
            centres=settings.around or table.centres, width=settings.band, fresh=settings.fresh,
            mutated=each.mutated, k=settings.k, queries=settings.queries,
        )  # fmt: skip
        found += [
            {"predictor": each.name, **asdict(judged), **origin, "protocol": protocol, "code": each.code}
            for judged in curve
        ]
        write_json(found, path)
    frame = pd.DataFrame(found)
    names = [each.name for each in contestants]
    frame = frame[frame.predictor.isin(names) & frame.pairs.isin(sizes) & (frame.seed < settings.seeds)]
    if not frame.rows_in_band.any():
        bands = " and ".join(f"{centre:g}" for centre in settings.around or table.centres)
        raise InputError(f"no fresh pair lies within {settings.band:.0%} of {bands}; give another --around")
    draw(frame, path.with_suffix(".png"), f"{settings.pairs_from.name}, {len(table.pairs)} pairs")
    print(in_words(frame))
    most = frame[frame.pairs == frame.pairs.max()].groupby("predictor").kendall_tau_in_band
    print(LEGEND.format(most=frame.pairs.max(), k=settings.k, queries=settings.queries, band=settings.band))
    print(f"spread of τ {frame.pairs.max()} over {settings.seeds} draws: {most.std().mean():.3f} on average")
    print(f"\nevery fit: {path}, curves: {path.with_suffix('.png')}")


def check(settings: Settings) -> None:
    """Refuse numbers that cannot mean anything, before any work."""
    check_least(settings)
    if not 0 < settings.fresh < 1:
        raise InputError(f"--fresh is {settings.fresh}; give a share between 0 and 1")
    if not settings.band > 0:
        raise InputError(f"--band is {settings.band}; give a width above 0")
    if not settings.pairs or min(settings.pairs) < 0 or 1 in settings.pairs:
        raise InputError(f"--pairs is {settings.pairs}; give numbers of 2 or more, or 0 for all")


def sizes_of(asked: Sequence[int], available: int) -> list[int]:
    """The numbers of pairs to learn from, ascending, those that there are not left out."""
    sizes = sorted({size or available for size in asked if size <= available})
    if not sizes or sizes[0] < 2:
        raise InputError(
            f"{available} pairs are there to learn from, and --pairs asks for {min(asked) or 'all'}; give a "
            "table of more pairs, or smaller numbers"
        )
    return sizes


@dataclass(frozen=True)
class Contestant:
    """A predictor by name with the tables as it reads them; `code` is the digest of what it is written in."""

    name: str
    make: Callable[[int], Predictor]
    rows: Rows
    mutated: Rows | None
    code: str


def contestants_of(
    settings: Settings, table: PairTable, mutated: PairTable | None, replaced: PairTable | None
) -> list[Contestant]:
    """All that are named; `InputError` for what is no predictor."""
    names = settings.predictors or (*PREDICTORS, ADDITIVE, *([REPLACEMENT] if replaced else []))
    encoded = rows_of(table), None if mutated is None else rows_of(mutated)
    # Everything that the project's own predictors are written in: they build on one another.
    files = [Path(each) for each in (damage.__file__, encoding.__file__)]
    files += sorted(Path(predictors.__path__[0]).glob("*.py"))
    house = "".join(file.read_text(encoding="utf-8") for file in files)

    def contestant(name: str) -> Contestant:
        if name == REPLACEMENT:
            if replaced is None:
                raise InputError(
                    f"{REPLACEMENT} needs single replacements; give --replaced, a table that "
                    "experiments.build_pairs --kind replaced made"
                )
            sums = ReplacementPredictor(
                module_damage(replaced.pairs, table.space.shape, table.reference), table.reference
            )
            plain = [None if each is None else rows_of(each, plain=True) for each in (table, mutated)]
            assert plain[0] is not None
            code = _digest(house + replaced.digest)
            return Contestant(name, lambda seed: sums, plain[0], plain[1], code)
        if name == ADDITIVE:
            return Contestant(name, lambda seed: table.correcting(no_correction()), *encoded, _digest(house))
        seeded(0)(name)  # here, so that a wrong name ends it before any work
        return Contestant(
            name,
            lambda seed: seeded(seed)(name) if settings.bare else table.correcting(seeded(seed)(name)),
            *encoded,
            _digest(house + repr(PREDICTORS.get(name)) + source_of(name.partition(":")[0])),
        )

    found = []
    for name in dict.fromkeys(names):
        try:
            found.append(contestant(name))
        except InputError as error:
            if name in settings.predictors:
                raise
            say(f"left out: {error}")  # an extra that is not installed, where all were asked for
    return found


def source_of(module: str) -> str:
    """What a plug-in's module is written in; nothing where that cannot be read, or it is the project's."""
    if not module or module.split(".")[0] == "predictors":
        return ""
    try:
        return inspect.getsource(importlib.import_module(module))
    except (OSError, TypeError, ImportError):
        return ""


def rows_of(table: PairTable, plain: bool = False) -> Rows:
    """The table as predictors read it; `plain` for widths instead of features."""
    X = table.widths.reshape(len(table.pairs), -1).astype(np.float64) if plain else table.features
    return Rows(X, table.scores, table.kept())


def protocol_of(settings: Settings, table: PairTable, mutated: PairTable | None) -> str:
    """The digest of all that a row depends on besides predictor, pairs and seed."""
    tables = [None if each is None else each.digest for each in (table, mutated)]
    asked = {name: getattr(settings, name) for name in ("bare", "fresh", "around", "band", "k", "queries")}
    return _digest(json.dumps([FORMAT, tables, asked]))


def earlier(path: Path, protocol: str, contestants: Sequence[Contestant]) -> list[dict[str, Any]]:
    """The rows that are there already, without those of predictors whose code has changed since.

    Raises `InputError` where they were judged in another way.
    """
    if not path.is_file():
        return []
    try:
        rows = from_json(path.read_text())
        others = {row["protocol"] for row in rows} - {protocol}
        codes = {each.name: each.code for each in contestants}
        kept = [row for row in rows if row["code"] == codes.get(row["predictor"], row["code"])]
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(f"{path} cannot be read ({error}); move it away, or give another --out") from error
    if others:
        raise InputError(
            f"{path} holds {len(rows)} fits that were judged on other pairs or otherwise; give another --out"
        )
    return kept


def in_words(frame: pd.DataFrame) -> str:
    """Means over seeds: tau in band by number of pairs, then the other measures at the most pairs."""
    curve = frame.groupby(["predictor", "pairs"]).kendall_tau_in_band.mean().unstack()
    curve.columns = [f"τ {pairs}" for pairs in curve.columns]
    last = frame[frame.pairs == frame.pairs.max()].groupby("predictor")
    queries = int(frame.queries.iloc[0])
    rest = pd.DataFrame(
        {
            "τ all": last.kendall_tau.mean(),
            "τ mutated": last.kendall_tau_mutated.mean(),
            f"best {int(frame.k.iloc[0])}": last.precision_at_k.mean(),
            "regret": last.regret.mean(),
            "in band": last.rows_in_band.mean(),
            "fit s": last.fit_seconds.median(),
            f"s/{queries}": last.predict_seconds.median(),
        }
    )
    shown = curve.join(rest).sort_values(curve.columns[-1], ascending=False)
    return shown.rename_axis(None).to_string(float_format=lambda value: f"{value:.3f}", na_rep="–")


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


if __name__ == "__main__":
    sys.exit(run(Settings, main))
