"""What llama.cpp computes from an exported file is what transformers computes from the checkpoint."""

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from transformers import PreTrainedModel

from data.errors import InputError
from nas.architecture import Architecture
from nas.engines import ENGINES
from nas.engines.checkpoint import open_checkpoint
from nas.engines.engine import Choices
from nas.engines.llama_cpp import LlamaCpp
from nas.export import save_checkpoint
from nas.families import shape_of
from nas.subnet import cut
from tests.nas.small_tokenizers import HARD, TEXT, small_tokenizer
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


def of_real_text(name: str, tmp_path: Path, dtype: str, kind: str = "narrow") -> tuple[PreTrainedModel, Path]:
    """A subnet on tokens of a real text, of widths that Q8_0 packs."""
    parent = tiny_parent(
        name, vocab_size=600, head_dim=16, intermediate_size=64, max_position_embeddings=256, hidden_size=64
    )
    architecture = architecture_of_cut(kind, shape_of(parent))
    return exported(parent, architecture, tmp_path, dtype)[:2]


@pytest.mark.parametrize("dtype, tolerance", [("f32", 1e-5), ("f16", 0.005), ("bf16", 0.05), ("q8_0", 0.1)])
@pytest.mark.parametrize("exact", [True, False])
def test_logits_of_real_text_in_every_dtype(
    dtype: str, tolerance: float, exact: bool, tmp_path: Path
) -> None:
    subnet, path = of_real_text("mistral", tmp_path, dtype)
    ids = torch.tensor([small_tokenizer("gpt-2").encode(TEXT)[:200]])
    expected = subnet(ids).logits
    off = LlamaCpp(path, 256, exact=exact)(ids).logits - expected
    assert off.std() <= (tolerance if exact else max(tolerance, 0.005)) * expected.std()


def test_it_writes_the_same_text_token_by_token(tmp_path: Path) -> None:
    subnet, path = of_real_text("mistral", tmp_path, "f32", "no first attention")
    prompt = small_tokenizer("gpt-2").encode("The result loads like any other")
    written = subnet.generate(
        torch.tensor([prompt]), max_new_tokens=40, do_sample=False, eos_token_id=None, pad_token_id=0
    )[0].tolist()
    model, own = LlamaCpp(path, 256, exact=True), list(prompt)
    for _ in range(40):
        steps = (len(prompt), *[1] * (len(own) - len(prompt)))
        own.append(int(model.logits(own, steps[:-1])[-1].argmax()))
    assert own == written


def test_biases_of_some_output_matrices(tmp_path: Path) -> None:
    """As --repair mean_bias adds them."""
    parent = tiny_parent("llama")
    shape = shape_of(parent)
    for kind in ("narrow", "uniform"):
        architecture = architecture_of_cut(kind, shape)
        subnet = cut(parent, shape, architecture, own=True)
        subnet.model.layers[0].self_attn.o_proj.bias = torch.nn.Parameter(torch.randn(32))
        subnet.model.layers[2].mlp.down_proj.bias = torch.nn.Parameter(torch.randn(32))
        folder = save_checkpoint(subnet, parent.config, shape, architecture, tmp_path / kind)
        path = tmp_path / f"{kind}.gguf"
        ENGINES["gguf"].write(open_checkpoint(folder), path, Choices(dtype="f32", tokenizer=False))
        found = LlamaCpp(path, 32, exact=True)(tokens(12)).logits
        torch.testing.assert_close(found, subnet(tokens(12)).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("begins", [False, True])
@pytest.mark.parametrize("kind", ["gpt-2", "smollm", "llama-bpe", "qwen2", "tekken", "llama"])
def test_it_reads_text_as_the_tokenizer_does(kind: str, begins: bool, tmp_path: Path) -> None:
    tokenizer = small_tokenizer(kind, begins=begins)
    parent = tiny_parent("llama", vocab_size=640, bos_token_id=None, eos_token_id=None)
    shape = shape_of(parent)
    architecture = architecture_of_cut("uniform", shape)
    subnet = cut(parent, shape, architecture, own=True)
    folder = save_checkpoint(
        subnet, parent.config, shape, architecture, tmp_path / "checkpoint", tokenizer=tokenizer
    )
    ENGINES["gguf"].write(open_checkpoint(folder), tmp_path / "model.gguf", Choices())
    model = LlamaCpp(tmp_path / "model.gguf", 32)
    backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
    for text in (HARD, TEXT, "a", " a", "  two  "):
        assert model.encode(text) == backend.encode(text).ids, text[:40]


def test_what_it_cannot_load_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "half.gguf").write_bytes(b"GGUF")
    with pytest.raises(InputError, match="llama.cpp cannot load"):
        LlamaCpp(tmp_path / "half.gguf", 32)
    _, path, _ = exported(tiny_parent("llama"), shape_of(tiny_parent("llama")).parent, tmp_path)
    with pytest.raises(InputError, match="33 tokens do not fit into 32"):
        LlamaCpp(path, 32).logits([3] * 33)
