"""Laws of checkpoints: a saved subnet is the subnet, wherever it is loaded, and loads as nothing else."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import AutoModelForCausalLM, Cache, PreTrainedModel, dynamic_module_utils
from transformers.integrations.heterogeneity import configuration_utils as heterogeneity
from transformers.utils import logging

from nas.export import CODE, needs_code, save_checkpoint
from nas.families import plain
from nas.laws.case import (
    NARROWED,
    Case,
    check_equal,
    check_same,
    decoded,
    dynamic_cache,
    logits_of,
    static_cache,
)
from nas.laws.tiny import random_model
from nas.subnet import cut

HALVES = {torch.bfloat16: (8, "narrow"), torch.float16: (11, "uniform")}
"""Bits of their significands, and the cut that is tried with each."""


def saved_is_cut(case: Case) -> None:
    """A saved and reloaded subnet has the subnet's logits, with every cache, and without missing tensors."""
    for kind in case.cuts:
        with saved(case, kind) as (subnet, folder):
            _check_loaded(case, subnet, load(folder), kind)


def saved_twice(case: Case) -> None:
    """Saving what was loaded writes the same files, byte for byte, and loads again."""
    for kind in ("uniform", "all at once"):
        with saved(case, kind) as (_, folder):
            again = folder.with_name("again")
            load(folder).save_pretrained(again)
            files = {path.name for path in again.iterdir()} - {"__pycache__"}
            first = {path.name for path in folder.iterdir()} - {"architecture.json"}
            assert files == first, f"saved again, the cut {kind!r} has the files {files}, not {first}"
            for file in files - {"generation_config.json"}:
                same = (folder / file).read_bytes() == (again / file).read_bytes()
                assert same, f"{file} of the cut {kind!r} changes when the checkpoint is saved again"
            check_equal(
                logits_of(load(again), case.ids), logits_of(load(folder), case.ids),
                f"logits of the cut {kind!r} loaded once and twice",
            )  # fmt: skip


def saved_in_shards(case: Case) -> None:
    """A checkpoint in several files, code of its own beside them, loads as the one in a single file."""
    with saved(case, "all at once") as (_, folder):
        model, shards = load(folder), folder.with_name("shards")
        model.save_pretrained(shards, max_shard_size="4KB")
        number = len([*shards.glob("*.safetensors")])
        assert number > 1, f"the checkpoint was saved in {number} file, not in shards"
        check_equal(
            logits_of(load(shards), case.ids), logits_of(model, case.ids),
            f"logits from {number} files and from one",
        )  # fmt: skip


def ties(case: Case) -> None:
    """A tied head stays tied, and is not written; one of its own stays one."""
    own = bool(case.config.tie_word_embeddings)
    for tied, kind in ((own, "narrow"), (not own, "uniform")):
        with saved(case.other(tie_word_embeddings=tied), kind) as (subnet, folder):
            model = load(folder)
            found = model.get_output_embeddings().weight is model.get_input_embeddings().weight
            assert found == tied, f"the cut {kind!r} of a parent with tied={tied} loads with tied={found}"
            with safe_open(folder / "model.safetensors", "pt") as file:
                written = [name for name in [*file.keys()] if name.endswith("lm_head.weight")]
            assert bool(written) != tied, f"with tied={tied} the heads written are {written}"
            check_same(logits_of(model, case.ids), logits_of(subnet, case.ids), f"logits with tied={tied}")


def half_precision(case: Case) -> None:
    """In bfloat16 and float16 a subnet keeps its dtype, and its logits up to that dtype's rounding."""
    for dtype, (bits, kind) in HALVES.items():
        parent = plain(random_model(case.config, dtype=dtype).to(case.device))
        try:
            logits_of(parent, case.ids)
        except RuntimeError:  # no kernel for this dtype here
            continue
        architecture = case.cuts[kind]
        subnet = cut(parent, case.shape, architecture, own=True)
        expected = logits_of(subnet, case.ids).float()
        with _room() as room:
            model = load(
                save_checkpoint(subnet, parent.config, case.shape, architecture, room / "checkpoint")
            )
        dtypes = {weight.dtype for weight in model.parameters()}
        assert dtypes == {dtype}, f"the cut {kind!r} in {dtype} loads in {dtypes}"
        off = float((logits_of(model, case.ids).float() - expected).square().mean().sqrt())
        spread, limit = float(expected.std()), 8 * 2.0**-bits
        assert off <= limit * spread, (
            f"logits of the cut {kind!r} in {dtype} are off by {off / spread:.3g} of their spread when "
            f"loaded; {limit:.3g} is allowed"
        )


def needs_its_code(case: Case) -> None:
    """A checkpoint that carries code does not load without it, nor as anything else."""
    for kind in ("only skips", "narrow"):
        assert needs_code(case.cut(kind), case.config, case.shape, case.cuts[kind]), (
            f"the cut {kind!r} is taken for one that a plain configuration describes"
        )
        with saved(case, kind) as (subnet, folder):
            error = _raised(AutoModelForCausalLM, folder)
            assert isinstance(error, ValueError) and "trust_remote_code=True" in str(error), (
                f"without its code the cut {kind!r} gives {error!r}, not a ValueError that asks for it"
            )
            error = _raised(type(subnet), folder)
            said = "per-layer attribute" in str(error) or "by zero" in str(error)
            assert error is not None and said, f"the family's own class takes the cut {kind!r}: {error!r}"


def narrower_is_saved(case: Case) -> None:
    """A subnet with fewer hidden channels is saved and loaded like any other."""
    if case.family.fixed_hidden:
        return
    for kind in ("uniform", "narrow", "all at once"):
        with saved(case, kind, NARROWED) as (subnet, folder):
            model = load(folder)
            width = model.config.hidden_size
            assert width == NARROWED, f"the cut {kind!r} to {NARROWED} hidden channels loads with {width}"
            _check_loaded(case, subnet, model, f"{kind}, narrower")


@contextmanager
def saved(case: Case, kind: str, hidden: int | None = None) -> Iterator[tuple[PreTrainedModel, Path]]:
    """A subnet and, for a while, the checkpoint written of it, with code of its own kept apart."""
    architecture = case.cuts[kind]
    if hidden is not None:
        architecture = type(architecture)(hidden, architecture.blocks)
    subnet = case.cut(kind, own=True, hidden=hidden)
    with _room() as room:
        config = case.permuted.config
        yield subnet, save_checkpoint(subnet, config, case.shape, architecture, room / "checkpoint")


def load(folder: Path) -> PreTrainedModel:
    """The checkpoint, as anybody loads it; AssertionError for missing or unexpected tensors."""
    model, report = AutoModelForCausalLM.from_pretrained(
        folder, trust_remote_code=True, dtype="auto", output_loading_info=True
    )
    wrong = {name: sorted(map(str, keys)) for name, keys in report.items() if keys}
    assert not wrong, f"the checkpoint loads with {json.dumps(wrong)}"
    own = type(model).__name__ == "SubnetForCausalLM"
    assert own == (folder / CODE).exists(), f"it loads as {type(model).__name__}, with {CODE}: {not own}"
    return model.eval()


@cache
def _modules() -> tempfile.TemporaryDirectory[str]:
    """Where the code that checkpoints carry is run from, in place of a folder in the user's home."""
    return tempfile.TemporaryDirectory()


@contextmanager
def _room() -> Iterator[Path]:
    """A temporary folder for checkpoints, while transformers is quiet; afterwards AssertionError if a width
    that varies by block was read as if it were one for all."""
    own, path, warn = dynamic_module_utils.HF_MODULES_CACHE, [*sys.path], heterogeneity.logger.warning_once
    bars, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    warned: list[str] = []
    dynamic_module_utils.HF_MODULES_CACHE = _modules().name
    heterogeneity.logger.warning_once = warned.append
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        with tempfile.TemporaryDirectory() as room:
            yield Path(room)
    finally:
        dynamic_module_utils.HF_MODULES_CACHE = own
        heterogeneity.logger.warning_once = warn
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
        sys.path[:] = path
    assert not warned, f"one width was read where blocks have their own: {warned[0]}"


def _check_loaded(case: Case, subnet: PreTrainedModel, model: PreTrainedModel, kind: str) -> None:
    found, expected = logits_of(model, case.ids), logits_of(subnet, case.ids)
    lay = case.family.layout
    if lay.qkv or lay.gate_up or lay.transposed or lay.experts:
        check_same(found, expected, f"logits of the saved and the cut {kind!r}")
    else:  # the same products of matrices
        check_equal(found, expected, f"logits of the saved and the cut {kind!r}")
    _check_cached(model, found, case.ids, dynamic_cache, kind)
    if case.takes_static_cache:
        _check_cached(model, found, case.ids, static_cache, kind)


def _check_cached(
    model: PreTrainedModel, logits: Tensor, ids: Tensor, make: Callable[[PreTrainedModel], Cache], kind: str
) -> None:
    store = make(model)
    check_same(
        decoded(model, ids, store),
        logits,
        f"logits of the saved cut {kind!r} with a {type(store).__name__} and without",
    )


def _raised(load_as: Any, folder: Path) -> Exception | None:
    try:
        load_as.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # which it is, is the law
        return error
    return None
