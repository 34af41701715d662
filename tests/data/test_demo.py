"""The embedded parent loads, knows its language, round-trips text; its training survives being killed."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from data.corpus import load_corpus
from data.errors import InputError
from data.windows import encode, spread, windows
from experiments.train_demo_parent import Run, Settings, halve, mean_loss

DEMO = Path(__file__).resolve().parents[2] / "data" / "demo"


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return AutoTokenizer.from_pretrained(DEMO)


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(DEMO, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def few(tokenizer: PreTrainedTokenizerFast) -> torch.Tensor:
    return spread(windows(encode(tokenizer, load_corpus("demo").validation), 256), 12)


def test_it_is_small_and_of_the_shape_that_is_documented(model: torch.nn.Module) -> None:
    assert sum(file.stat().st_size for file in DEMO.iterdir()) <= 8_000_000
    config = json.loads((DEMO / "config.json").read_text())
    shape = ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim")
    assert [config[name] for name in shape] == [192, 6, 6, 3, 32]
    assert (config["intermediate_size"], config["vocab_size"], config["tie_word_embeddings"]) == (
        512,
        4096,
        True,
    )
    summary = json.loads((DEMO / "training.json").read_text())
    assert summary["parameters"] == sum(parameter.numel() for parameter in model.parameters())


def test_it_beats_a_uniform_guess_by_far(model: torch.nn.Module, few: torch.Tensor) -> None:
    loss = mean_loss(model, few)
    summary = json.loads((DEMO / "training.json").read_text())
    assert loss < math.log(4096) / 2
    assert loss == pytest.approx(math.log(summary["perplexity"]["validation"]), abs=0.5)


def test_half_of_every_block_at_random_is_too_little(model: torch.nn.Module, few: torch.Tensor) -> None:
    loss = mean_loss(model, few)
    assert mean_loss(halve(model, np.random.default_rng(0)), few) > loss + math.log(3)
    assert mean_loss(model, few) == loss


@given(text=st.text())
def test_any_text_comes_back(tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    assert tokenizer.decode(encode(tokenizer, text)) == text


def test_code_comes_back_in_few_tokens(tokenizer: PreTrainedTokenizerFast) -> None:
    text = load_corpus("demo").test[:50_000]
    ids = encode(tokenizer, text)
    assert tokenizer.decode(ids) == text
    assert len(ids) < len(text) / 2.5
    assert len(tokenizer) == 4096


SMALL = Settings(
    minutes=math.inf, steps=6, batch=2, window=16, precision="float32", warmup_steps=2,
    vocab=64, hidden=16, layers=1, heads=2, kv_heads=1, head_dim=8, ffn=24, positions=32,
)  # fmt: skip


def test_a_killed_training_goes_on_as_if_never_killed(tmp_path: Path) -> None:
    tokens = np.random.default_rng(0).integers(0, 64, 500).astype(np.int32)
    whole, killed, resumed = (Run(SMALL, tokens) for _ in range(3))
    losses = [whole.advance() for _ in range(6)]
    first = [killed.advance() for _ in range(3)]
    killed.save(tmp_path / "run.safetensors")
    resumed.load(tmp_path / "run.safetensors")
    assert first + [resumed.advance() for _ in range(3)] == losses
    assert whole.done() == resumed.done() == 1.0
    for one, other in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_run_of_other_settings_is_not_resumed(tmp_path: Path) -> None:
    tokens = np.zeros(100, dtype=np.int32)
    Run(SMALL, tokens).save(tmp_path / "run.safetensors")
    with pytest.raises(InputError, match="run with another batch, ffn: delete it"):
        Run(replace(SMALL, batch=3, ffn=32), tokens).load(tmp_path / "run.safetensors")
