"""A parent on a text, ranked and repaired: all that measuring its subnets takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from data.corpus import TEXTS
from experiments.command_line import option
from experiments.results import usable
from experiments.stages import Stages
from experiments.text import Text, calibrated_on, read_text
from nas.building import SubnetMeter
from nas.cost import CostModel
from nas.encoding import Encoding
from nas.engines import ENGINES
from nas.evaluate import evaluate
from nas.families import shape_of
from nas.importance import CRITERIA
from nas.pair_table import PairTable
from nas.pairs import Pair, Setting
from nas.parent import DTYPES, check_seq_len, choose_device, choose_dtype, digest_of, load_parent
from nas.placement import PLACES, Placement
from nas.prepare import FORMAT, Prepared, prepare
from nas.sampling import Hints
from nas.shape import Shape
from nas.space import SearchSpace, default_space


@dataclass(frozen=True)
class OfSubject:
    """Settings that name a parent, its text and how its subnets are measured; as in the main job."""

    parent: str = option("demo", "model to cut: a Hub id, a local folder or demo", group="input")
    corpus: str = option(
        "demo", f"text to calibrate on (train) and to measure on (validation): {TEXTS}", group="input"
    )
    seq_len: int = option(256, "tokens in a window", group="input", least=2)
    calibration_windows: int = option(
        128, "training windows that ranking and repair see", group="input", least=1
    )
    pair_windows: int = option(32, "validation windows that each pair is measured on", group="input", least=1)
    target: str = option(
        "hf", "engine that subnets shall run in: its rules restrict the space", group="input", choices=ENGINES
    )
    ranking: str = option(
        "elimination", "importance criterion that orders the units", group="input", choices=CRITERIA
    )
    device: str = option("auto", "auto, cpu, cuda or cuda:N", group="run")
    dtype: str = option(
        "auto", "what is computed in; auto is bfloat16 on CUDA, else float32", group="run", choices=DTYPES
    )
    parent_on: str = option(
        "device",
        "where the parent's weights are; from the cpu or the disk they come to the device block by block",
        group="run", choices=PLACES,
    )  # fmt: skip
    batch_size: int = option(8, "windows in a forward pass", group="run", least=1)
    seed: int = option(0, "of everything that is drawn", group="run", least=0)
    cache: Path = option(
        Path("runs/cache"), "folder of tokens, orders and repairs that runs share", group="run"
    )


@dataclass(frozen=True)
class Opened:
    """A parent on its text, before anything was computed; read only. `calibrated` is all that statistics on
    the calibration windows depend on."""

    parent: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    digest: str
    device: torch.device
    dtype: torch.dtype
    shape: Shape
    space: SearchSpace
    text: Text
    calibrated: Mapping[str, Any]


@dataclass(frozen=True)
class Subject:
    """What measures subnets; read only. `digest` is the parent's, `reference` its score on the windows that
    pairs are measured on, `final` are other validation windows."""

    shape: Shape
    space: SearchSpace
    cost: CostModel
    hints: Hints
    meter: SubnetMeter
    digest: str
    final: Tensor
    reference: float
    setting: Setting

    @property
    def encoding(self) -> Encoding:
        """What predictors see of its subnets."""
        return Encoding(self.cost, self.hints.attention_error, self.hints.mlp_error)

    def table(self, pairs: Sequence[Pair], centres: tuple[float, ...]) -> PairTable:
        """These pairs, at about such fractions of the block parameters, with all that encodes others."""
        return PairTable(
            self.space, self.cost, self.hints, self.setting, self.reference, centres, tuple(pairs)
        )


def open_parent(
    settings: OfSubject,
    rng: np.random.Generator,
    *,
    final: int = 1,
    test: int = 1,
    training: int = 0,
    added_biases: bool = False,
) -> Opened:
    """Load what the settings name, with as many windows of the further kinds (`read_text`).

    `added_biases` says that a repair will add biases behind output matrices. Raises `InputError` for whatever
    cannot be.
    """
    device = choose_device(settings.device)
    dtype = choose_dtype(settings.dtype, device)
    placement = placement_for(settings.parent_on, device, settings.cache)
    parent, tokenizer = load_parent(settings.parent, device, dtype, placement=placement)
    check_seq_len(parent, settings.seq_len)
    shape, digest = shape_of(parent), digest_of(parent)
    space = ENGINES[settings.target].restrict(default_space(shape), parent.config.to_dict(), added_biases)
    text = read_text(
        settings.corpus, tokenizer, shape.vocab, settings.seq_len, rng, settings.cache,
        calibration=settings.calibration_windows, pairs=settings.pair_windows, final=final, test=test,
        training=training,
    )  # fmt: skip
    calibrated = calibrated_on(text, digest, settings.seed, dtype)
    return Opened(parent, tokenizer, digest, device, dtype, shape, space, text, calibrated)


def placement_for(parent_on: str, device: torch.device, cache: Path) -> Placement | None:
    """What `--parent-on` says."""
    return None if parent_on == "device" else Placement(device, cache, keep_weights=parent_on == "disk")


def prepared_of(opened: Opened, settings: OfSubject) -> Prepared:
    """Calibrate, rank, permute and repair, or find that in the cache."""
    return prepare(
        opened.parent, opened.shape, opened.space, opened.text.calibration, settings.ranking, settings.cache,
        opened.calibrated, batch_size=settings.batch_size, seed=settings.seed,
    )  # fmt: skip


def open_subject(settings: OfSubject, stages: Stages, *, final: int = 1) -> Subject:
    """All that measuring subnets takes, with `final` other validation windows. Raises `InputError` for
    whatever cannot be."""
    usable(settings.cache)
    with stages("load"):
        opened = open_parent(settings, np.random.default_rng(settings.seed), final=final)
        on_pairs, shape = opened.text.pairs, opened.shape
        reference = evaluate(opened.parent, on_pairs, batch_size=settings.batch_size).score
    with stages("rank and repair"):
        prepared = prepared_of(opened, settings)
    return Subject(
        shape=shape,
        space=opened.space,
        cost=CostModel(shape, settings.seq_len, opened.dtype.itemsize),
        hints=prepared.hints,
        meter=SubnetMeter(prepared.parent, shape, prepared.bank, on_pairs, settings.batch_size),
        digest=opened.digest,
        final=opened.text.final,
        reference=reference,
        setting=pair_setting(opened, settings),
    )


def pair_setting(opened: Opened, settings: OfSubject, **more: Any) -> Setting:
    """Everything that the scores of pairs depend on besides their architectures."""
    target = {"repair": FORMAT, "corpus": opened.text.name, "ranking": settings.ranking}
    return Setting({**opened.calibrated, **target, "pair_windows": len(opened.text.pairs), **more})
