"""What llama.cpp computes from an exported file is what transformers computes from the checkpoint."""

from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from nas.architecture import Architecture
from nas.engines import ENGINES
from nas.engines.checkpoint import open_checkpoint
from nas.engines.engine import Choices
from nas.engines.llama_cpp import LlamaCpp
from nas.export import save_checkpoint
from nas.families import shape_of
from nas.subnet import cut
from tests.nas.tiny_models import CUTS, architecture_of_cut, tiny_parent, tokens

pytest.importorskip(
    "llama_cpp", reason="llama-cpp-python is not installed: it builds for minutes (the extra llama-cpp)"
)

QWEN3 = dict(attention_bias=False, tie_word_embeddings=True)
LLAMA3 = dict(
    rope_type="llama3", rope_theta=500.0, factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0,
    original_max_position_embeddings=32,
)  # fmt: skip
PARENTS: dict[str, tuple[str, dict[str, object]]] = {
    "llama": ("llama", {}),
    "biased and tied": ("llama-biased", {}),
    "mha": ("llama-mha", {}),
    "wide heads": ("llama", dict(head_dim=12)),
    "llama 3": ("llama", dict(rope_parameters=LLAMA3)),
    "linear": ("llama", dict(rope_parameters=dict(rope_type="linear", rope_theta=500.0, factor=2.0))),
    "mistral": ("mistral", {}),
    "qwen2": ("qwen2", {}),
    "qwen2, tied": ("qwen2", dict(tie_word_embeddings=True)),
    "qwen3": ("qwen3", QWEN3),
}


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.no_grad():
        yield


def exported(
    parent: PreTrainedModel, architecture: Architecture, folder: Path, dtype: str = "f32"
) -> tuple[PreTrainedModel, Path, list[str]]:
    """A subnet, its GGUF file, and what the export said."""
    shape = shape_of(parent)
    subnet = cut(parent, shape, architecture, own=True)
    save_checkpoint(subnet, parent.config, shape, architecture, folder / "checkpoint")
    out = folder / "model.gguf"
    choices = Choices(dtype=dtype, tokenizer=False)
    return subnet, out, ENGINES["gguf"].write(open_checkpoint(folder / "checkpoint"), out, choices)


def hidden_narrower(architecture: Architecture) -> Architecture:
    return Architecture(20, architecture.blocks)


@pytest.mark.parametrize("cut_name", (*CUTS, "parent", "narrower hidden"))
@pytest.mark.parametrize("name", PARENTS)
def test_logits_are_the_subnets(name: str, cut_name: str, tmp_path: Path) -> None:
    kind, settings = PARENTS[name]
    parent = tiny_parent(kind, **settings)
    shape = shape_of(parent)
    if cut_name == "parent":
        architecture = shape.parent
    elif cut_name == "narrower hidden":
        architecture = hidden_narrower(architecture_of_cut("narrow", shape))
    else:
        architecture = architecture_of_cut(cut_name, shape)
    subnet, path, _ = exported(parent, architecture, tmp_path)
    model, ids = LlamaCpp(path, 32, exact=True), tokens(24)
    assert model.config.vocab_size == subnet.config.vocab_size
    expected = subnet(ids).logits
    torch.testing.assert_close(model(ids).logits, expected, rtol=1e-4, atol=1e-4)
    # The cache: in pieces, token by token in the middle.
    row = ids[0].tolist()
    torch.testing.assert_close(model.logits(row, (7, 1, 1, 1, 5)), expected[0], rtol=1e-4, atol=1e-4)
