"""What is in an exported GGUF file: fields, tensors, vocabulary; without llama.cpp."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGUFReader
from gguf.quants import dequantize
from transformers import LlamaConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from data.errors import InputError
from nas.architecture import Architecture
from nas.engines import ENGINES
from nas.engines.checkpoint import open_checkpoint
from nas.engines.engine import Choices
from nas.engines.gguf_rope import Rope, interleaved, rope_of
from nas.export import save_checkpoint
from nas.families import shape_of
from nas.subnet import cut
from tests.nas.small_tokenizers import small_tokenizer
from tests.nas.test_export import word_tokenizer
from tests.nas.tiny_models import architecture_of_cut, tiny_parent


def exported(
    parent: PreTrainedModel,
    architecture: Architecture,
    folder: Path,
    tokenizer: PreTrainedTokenizerBase | None = None,
    **choices: Any,
) -> tuple[PreTrainedModel, GGUFReader, list[str]]:
    """A subnet, its file as it is read back, and what the export said."""
    shape = shape_of(parent)
    with torch.no_grad():
        subnet = cut(parent, shape, architecture, own=True)
    save_checkpoint(subnet, parent.config, shape, architecture, folder / "checkpoint", tokenizer=tokenizer)
    given = Choices(**{"tokenizer": tokenizer is not None, **choices})
    notes = ENGINES["gguf"].write(open_checkpoint(folder / "checkpoint"), folder / "model.gguf", given)
    return subnet, GGUFReader(folder / "model.gguf"), notes


def field(reader: GGUFReader, name: str) -> Any:
    return reader.fields[name].contents()


def tensors(reader: GGUFReader) -> dict[str, np.ndarray]:
    return {each.name: dequantize(each.data, each.tensor_type) for each in reader.tensors}


def kinds(reader: GGUFReader) -> dict[str, str]:
    return {each.name: each.tensor_type.name for each in reader.tensors}


def test_deci_has_every_blocks_own_widths(tmp_path: Path) -> None:
    parent = tiny_parent("llama")
    architecture = architecture_of_cut("narrow", shape_of(parent))
    _, reader, notes = exported(parent, architecture, tmp_path, dtype="f32")
    assert field(reader, "general.architecture") == "deci"
    assert field(reader, "deci.attention.head_count") == [2, 2, 4]
    assert field(reader, "deci.attention.head_count_kv") == [1, 2, 2]
    assert field(reader, "deci.feed_forward_length") == [16, 24, 7]
    assert field(reader, "deci.attention.key_length") == field(reader, "deci.rope.dimension_count") == 8
    assert field(reader, "deci.block_count") == 3 and field(reader, "deci.context_length") == 64
    assert field(reader, "deci.vocab_size") == 61 and field(reader, "tokenizer.ggml.model") == "none"
    assert field(reader, "deci.attention.layer_norm_rms_epsilon") == pytest.approx(1e-6)
    assert Architecture.from_json(field(reader, "secateur.architecture")) == architecture
    assert notes == ["written as llama.cpp's deci, matrices in f32", "without a tokenizer: feed it token ids"]


def test_what_deci_cannot_leave_out_is_zero(tmp_path: Path) -> None:
    parent = tiny_parent("llama")
    _, reader, notes = exported(
        parent, architecture_of_cut("all at once", shape_of(parent)), tmp_path, dtype="f32"
    )  # no attention in the first block, no MLP in the second
    stored = tensors(reader)
    assert field(reader, "deci.attention.head_count") == [1, 1]
    assert field(reader, "deci.feed_forward_length") == [9, 32]
    for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
        assert not stored[f"blk.0.{name}.weight"].any()
    for name in ("ffn_gate", "ffn_up", "ffn_down"):
        assert not stored[f"blk.1.{name}.weight"].any()
    assert (stored["blk.0.attn_norm.weight"] == 1).all()
    assert "4,096 zeros fill up blocks 0, 1, and change nothing" in notes


def test_an_attention_in_the_middle_is_left_out(tmp_path: Path) -> None:
    parent = tiny_parent("llama")
    _, reader, _ = exported(parent, architecture_of_cut("no middle attention", shape_of(parent)), tmp_path)
    assert field(reader, "deci.attention.head_count") == [4, 0, 4]
    assert not [name for name in kinds(reader) if name.startswith("blk.1.attn")]


@pytest.mark.parametrize(
    "name, settings, kind, expected",
    [
        ("llama", {}, "uniform", "llama"),
        ("mistral", {}, "uniform", "llama"),
        ("qwen2", {}, "shallow", "qwen2"),
        ("qwen2", {}, "uniform", "llama"),  # its heads are not as wide together as the stream
        ("qwen2", {}, "narrow", "deci"),
        ("qwen3", dict(attention_bias=False), "uniform", "qwen3"),
        ("qwen3", dict(attention_bias=False, tie_word_embeddings=True), "narrow", "openelm"),
    ],
)
def test_the_simplest_architecture_is_taken(
    name: str, settings: dict[str, object], kind: str, expected: str, tmp_path: Path
) -> None:
    parent = tiny_parent(name, **settings)
    _, reader, _ = exported(parent, architecture_of_cut(kind, shape_of(parent)), tmp_path)
    assert field(reader, "general.architecture") == expected


def test_rows_of_heads_are_turned_and_all_else_is_as_it_was(tmp_path: Path) -> None:
    parent = tiny_parent("llama-biased")
    subnet, reader, _ = exported(
        parent, architecture_of_cut("narrow", shape_of(parent)), tmp_path, dtype="f32"
    )
    stored, state = tensors(reader), {name: w.numpy() for name, w in subnet.state_dict().items()}
    assert (
        "output.weight" not in stored
        and (stored["token_embd.weight"] == state["model.embed_tokens.weight"]).all()
    )
    before, after = "model.layers.1.self_attn.", "blk.1.attn_"
    for kind in ("weight", "bias"):
        assert (stored[f"{after}v.{kind}"] == state[f"{before}v_proj.{kind}"]).all()
        assert (stored[f"{after}output.{kind}"] == state[f"{before}o_proj.{kind}"]).all()
        query = state[f"{before}q_proj.{kind}"]
        assert (stored[f"{after}q.{kind}"][0] == query[0]).all()
        assert (stored[f"{after}q.{kind}"][1] == query[4]).all()  # the other half of the first pair
        assert (stored[f"{after}k.{kind}"] == interleaved(state[f"{before}k_proj.{kind}"], 2)).all()
    assert (stored["blk.2.ffn_down.bias"] == state["model.layers.2.mlp.down_proj.bias"]).all()


def test_q8_0_fills_up_channels_and_leaves_vectors(tmp_path: Path) -> None:
    parent = tiny_parent("llama", head_dim=12)
    subnet, reader, notes = exported(
        parent, architecture_of_cut("narrow", shape_of(parent)), tmp_path, dtype="q8_0"
    )
    found, stored = kinds(reader), tensors(reader)
    assert field(reader, "deci.feed_forward_length") == [32, 32, 32]
    assert found["blk.2.ffn_down.weight"] == found["token_embd.weight"] == "Q8_0"
    assert found["blk.0.attn_output.weight"] == "F16"  # rows of 2 heads of 12
    assert found["blk.0.attn_norm.weight"] == "F32"
    down = stored["blk.2.ffn_down.weight"]
    assert not down[:, 7:].any()
    scale = np.abs(down).max() / 127
    weight = subnet.model.layers[2].mlp.down_proj.weight.detach().numpy()
    assert np.abs(down[:, :7] - weight).max() <= scale
    assert notes[1].endswith("fill up blocks 0, 1, 2, and change nothing")
    assert notes[2] == "3 matrices whose rows are no multiples of 32 are in f16"


@pytest.mark.parametrize("dtype", ["f16", "bf16", "f32"])
def test_dtypes(dtype: str, tmp_path: Path) -> None:
    parent = tiny_parent("llama")
    subnet, reader, _ = exported(
        parent, architecture_of_cut("narrow", shape_of(parent)), tmp_path, dtype=dtype
    )
    assert {kind for name, kind in kinds(reader).items() if "norm" not in name} == {dtype.upper()}
    exact = {"f16": torch.float16, "bf16": torch.bfloat16, "f32": torch.float32}[dtype]
    expected = subnet.model.embed_tokens.weight.to(exact).float().detach().numpy()
    assert (tensors(reader)["token_embd.weight"] == expected).all()


def test_frequencies_are_read_in_the_words_of_both_transformers() -> None:
    assert (
        rope_of({"rope_theta": 5e5}, 8) == rope_of({"rope_parameters": {"rope_theta": 5e5}}, 8) == Rope(5e5)
    )
    linear = {"rope_theta": 1e4, "rope_scaling": {"type": "linear", "factor": 2}}
    assert rope_of(linear, 8) == Rope(1e4, linear=2.0)
    scaled = dict(
        rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
        original_max_position_embeddings=8192,
    )  # fmt: skip
    rope = rope_of({"rope_theta": 5e5, "rope_scaling": scaled}, 128)
    config = LlamaConfig(head_dim=128, rope_parameters={"rope_theta": 5e5, **scaled})
    expected, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    plain = 5e5 ** -(np.arange(0, 128, 2) / 128)
    assert rope.factors is not None
    np.testing.assert_allclose(plain / rope.factors, expected.numpy(), rtol=1e-5)
    for config, sentence in (
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "scaled by 'dynamic'"),
        ({"partial_rotary_factor": 0.5}, "only a part of each head turns"),
    ):
        with pytest.raises(InputError, match=sentence):
            rope_of(config, 8)


VOCABULARIES = ("gpt-2", "smollm", "llama-bpe", "qwen2", "tekken", "llama")


@pytest.mark.parametrize("begins", [False, True])
@pytest.mark.parametrize("kind", VOCABULARIES)
def test_the_vocabulary_is_the_tokenizers(kind: str, begins: bool, tmp_path: Path) -> None:
    tokenizer = small_tokenizer(kind, begins=begins)
    tokenizer.chat_template = "{{ messages[0].content }}"
    parent = tiny_parent("llama", vocab_size=640, bos_token_id=None, eos_token_id=None)
    _, reader, _ = exported(
        parent, architecture_of_cut("uniform", shape_of(parent)), tmp_path, tokenizer=tokenizer
    )
    model = "llama" if kind == "llama" else "gpt2"
    assert field(reader, "tokenizer.ggml.model") == model
    assert field(reader, "tokenizer.ggml.pre") == ("default" if kind == "llama" else kind)
    tokens, types = field(reader, "tokenizer.ggml.tokens"), field(reader, "tokenizer.ggml.token_type")
    assert len(tokens) == len(types) == 640
    assert tokens[: len(tokenizer)] == tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    assert tokens[-1] == "[unused639]" and types[-1] == 5
    for role, token in (("bos", "<s>"), ("eos", "</s>")):
        assert field(reader, f"tokenizer.ggml.{role}_token_id") == tokenizer.convert_tokens_to_ids(token)
        assert types[tokenizer.convert_tokens_to_ids(token)] == 3
    assert field(reader, "tokenizer.ggml.add_bos_token") == begins
    assert field(reader, "tokenizer.ggml.add_eos_token") is False
    assert field(reader, "tokenizer.chat_template") == "{{ messages[0].content }}"
    if kind == "llama":
        assert field(reader, "tokenizer.ggml.add_space_prefix") is True
        assert types.count(6) == 256
    else:
        stored = json.loads((tmp_path / "checkpoint" / "tokenizer.json").read_text())
        merges = [" ".join(pair) for pair in stored["model"]["merges"]]
        assert field(reader, "tokenizer.ggml.merges") == merges


def test_tokenizers_that_llama_cpp_has_not_are_refused(tmp_path: Path) -> None:
    parent = tiny_parent("llama", vocab_size=640)
    architecture = architecture_of_cut("uniform", shape_of(parent))
    with pytest.raises(InputError, match=r"is a WordLevel; give --no-tokenizer"):
        exported(parent, architecture, tmp_path / "words", tokenizer=word_tokenizer())
    folder = tmp_path / "words" / "checkpoint"
    stored = json.loads((folder / "tokenizer.json").read_text())
    odd = json.loads(small_tokenizer("gpt-2").backend_tokenizer.to_str())
    odd["pre_tokenizer"] = {"type": "Whitespace"}
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    large = {**odd, "added_tokens": [{"id": 640, "content": "one too many", "special": True, **flags}]}
    for content, sentence in (
        (odd, r"in a way \(Whitespace\) that has no name in llama\.cpp"),
        (large, "has the id 640, its model 640 in all"),
        ({**stored, "model": {"type": "Unigram", "vocab": []}}, "is a Unigram"),
        (None, r"has no tokenizer\.json"),
    ):
        (folder / "tokenizer.json").unlink()
        if content is not None:
            (folder / "tokenizer.json").write_text(json.dumps(content))
        with pytest.raises(InputError, match=sentence):
            ENGINES["gguf"].write(open_checkpoint(folder), tmp_path / "model.gguf", Choices())
        assert not (tmp_path / "model.gguf").exists()


LOWER, COMPOSED = {"type": "Lowercase"}, {"type": "NFC"}


@pytest.mark.parametrize(
    "normalizer, sentence",
    [
        (LOWER, r"changes text by Lowercase before it splits it.*; give --no-tokenizer"),
        ({"type": "Sequence", "normalizers": [COMPOSED, LOWER]}, "changes text by NFC, Lowercase before"),
        (COMPOSED, None),
        ({"type": "Sequence", "normalizers": [COMPOSED]}, None),
        ({"type": "Sequence", "normalizers": []}, ""),
    ],
)
def test_what_changes_text_before_a_byte_level_tokenizer_is_refused_or_told(
    normalizer: dict[str, Any], sentence: str | None, tmp_path: Path
) -> None:
    parent = tiny_parent("llama", vocab_size=640)
    architecture = architecture_of_cut("uniform", shape_of(parent))
    exported(parent, architecture, tmp_path, tokenizer=small_tokenizer("gpt-2"))
    path = tmp_path / "checkpoint" / "tokenizer.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "normalizer": normalizer}))
    checkpoint, out = open_checkpoint(tmp_path / "checkpoint"), tmp_path / "again.gguf"
    if sentence:
        with pytest.raises(InputError, match=sentence):
            ENGINES["gguf"].write(checkpoint, out, Choices())
        assert not out.exists()
        assert ENGINES["gguf"].write(checkpoint, out, Choices(tokenizer=False))
        return
    notes = ENGINES["gguf"].write(checkpoint, out, Choices())
    assert [note for note in notes if "NFC" in note] == notes[1:] and len(notes[1:]) == (sentence is None)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "architecture.json"])
def test_files_that_were_cut_off_are_refused(name: str, tmp_path: Path) -> None:
    parent = tiny_parent("llama", vocab_size=640)
    architecture = architecture_of_cut("uniform", shape_of(parent))
    exported(parent, architecture, tmp_path, tokenizer=small_tokenizer("gpt-2"))
    path = tmp_path / "checkpoint" / name
    path.write_text(path.read_text()[:-9])
    with pytest.raises(InputError, match=rf"{re.escape(str(path))} is no JSON; fetch the checkpoint again"):
        ENGINES["gguf"].write(open_checkpoint(tmp_path / "checkpoint"), tmp_path / "again.gguf", Choices())
    assert not list(tmp_path.glob("*again*"))
