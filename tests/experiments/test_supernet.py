"""LLM Compression with NAS on a toy: one super-network for all fractions, and plain models out of it."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from data.errors import InputError
from experiments.command_line import parse, run
from experiments.published import super_network, supernet
from experiments.published.case import open_case
from experiments.published.outcome import read_results
from nas.architecture import Architecture
from nas.families import count, shape_of
from nas.subnet import cut
from tests.experiments.test_published import given
from tests.experiments.toy_job import WORDS, everything_in, make_toy
from tests.nas.tiny_models import permuted_parent, tokens

TINY = (
    "--bins", "4", "--draws", "2", "--grid-windows", "2", "--steps", "3", "--measurements", "6",
    "--finalists", "2", "--train-batch", "2", "--keep", "0.8", "0.6",
)  # fmt: skip


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_toy(tmp_path_factory.mktemp("toy"), blocks=4)


def pruned(toy: Path, out: Path, *more: str) -> list[dict[str, Any]]:
    assert run(supernet.Settings, supernet.main, given(toy, out, *TINY, *more)) == 0
    return [each for each in read_results(out) if each["system"] == "supernet"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "more",
    [
        ("--hidden-order", "activation"),
        ("--hidden-order", "rotation", "--rank", "2", "--searcher", "grid"),
        ("--fixed-hidden", "--objective", "latency"),
    ],
    ids=lambda more: " ".join(more),
)
def test_every_way_ends_in_a_plain_checkpoint_within_the_budget(
    toy: Path, tmp_path: Path, more: tuple[str, ...]
) -> None:
    results = pruned(toy, tmp_path, *more)
    assert [result["keep"] for result in results] == [0.6, 0.8]
    for result in results:
        assert result["kept"] <= result["keep"]
        assert 1.0 < result["perplexity"] < 10 * WORDS
        front = result["details"]["front"]
        assert [point["perplexity"] for point in front] == sorted(
            (point["perplexity"] for point in front), reverse=True
        )
        assert all(point["kept"] <= result["keep"] for point in front)
        model = AutoModelForCausalLM.from_pretrained(result["checkpoint"])  # no code of its own
        architecture = Architecture.from_json(json.dumps(result["architecture"]))
        assert model.config.num_hidden_layers == len(architecture.blocks)
        parent = AutoModelForCausalLM.from_pretrained(toy / "parent")
        assert count([model]) / count([parent]) == pytest.approx(result["parameters_kept"])
    trained = {result["details"]["super_network"] for result in results}
    assert len(trained) == 1, "one super-network for all fractions"


@pytest.mark.slow
def test_the_checkpoint_is_the_subnet_of_the_super_network_that_is_kept(toy: Path, tmp_path: Path) -> None:
    result = pruned(toy, tmp_path, "--hidden-order", "rotation")[0]
    settings = parse(supernet.Settings, given(toy, tmp_path, *TINY, "--hidden-order", "rotation"))
    case = open_case(settings)
    whole = supernet.super_network(case, settings)
    assert str(whole.folder / supernet.MODEL) == result["details"]["super_network"]
    taken = AutoModelForCausalLM.from_pretrained(result["checkpoint"])
    architecture = Architecture.from_json(json.dumps(result["architecture"]))
    again = cut(whole.model, whole.shape, architecture)
    windows = torch.randint(0, WORDS, (2, 24), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(taken(windows).logits, again(windows).logits)


@pytest.mark.slow
def test_a_super_network_is_trained_once(
    toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = pruned(toy, tmp_path / "one")
    assert len(re.findall("3 training steps", capsys.readouterr().err)) <= 1
    kept = everything_in(toy / "cache")
    again = pruned(toy, tmp_path / "two")
    assert "training steps" not in capsys.readouterr().err
    assert everything_in(toy / "cache") == kept, "no pair was measured again"
    for one, two in zip(first, again, strict=True):
        assert one["architecture"] == two["architecture"] and one["perplexity"] == two["perplexity"]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"bins": 0}, "--bins is 0"),
        ({"front_from": 2.0}, "--front-from is 2.0"),
        ({"floor": 0.9}, "the smallest subnet keeps .* more than --keep 0.6; give a --floor below 0.9"),
        ({"front_from": 1.0}, "no subnet keeps 1 to 1 times the budget"),
    ],
)
def test_bad_settings_are_refused_in_a_sentence(
    toy: Path, tmp_path: Path, settings: dict[str, Any], words: str
) -> None:
    base = parse(supernet.Settings, given(toy, tmp_path, *TINY, "--steps", "0", "--grid", "diagonal"))
    changed = replace(base, **settings)
    with pytest.raises(InputError, match=words):
        supernet.prune(open_case(changed), 0.6, changed)


@pytest.mark.parametrize("name", ["llama-biased", "gpt2", "phi3", "bloom"])
def test_a_super_network_of_any_family_comes_back_from_the_cache(name: str, tmp_path: Path) -> None:
    parent, _ = permuted_parent(name)
    super_network._write(parent, tmp_path)
    again = super_network._read(tmp_path, parent)
    with torch.no_grad():
        assert torch.equal(again(tokens()).logits, parent(tokens()).logits)
    assert shape_of(again) == shape_of(parent)
