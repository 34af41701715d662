"""GGUF, the format of llama.cpp: one file with the weights, what they are and the tokenizer.

What a subnet needs of llama.cpp's architectures is in `nas.engines.gguf_layout`. Everything written here was
run with llama.cpp (`nas.engines.llama_cpp`), at the version in constraints.txt; older ones refuse biases of
cut heads in `deci` when they load a file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from data.errors import InputError
from nas.engines.checkpoint import Checkpoint, Widths, factor_of, number_of, read_json
from nas.engines.engine import Choices, Engine, every_multiple
from nas.engines.gguf_layout import BLOCK, Entry, Layout, check_model, check_uneven, entries, plan
from nas.engines.gguf_rope import rope_of
from nas.engines.gguf_tokenizer import Vocabulary, read_vocabulary
from nas.export import RECORD
from nas.space import SearchSpace
from nas.whole import whole

DTYPES = {"f16": 1, "bf16": 32, "f32": 0, "q8_0": 7}
"""Types of matrices and llama.cpp's numbers for files of them; vectors are 32-bit floats in all."""
LARGEST = 65504.0
"""What a 16-bit float can hold."""


def restrict(space: SearchSpace, config: Mapping[str, Any], added_biases: bool) -> SearchSpace:
    """Whatever widths a block has, of FFN channels such as Q8_0 packs without filling up."""
    check_model(config)
    check_uneven(config)
    if added_biases and config["model_type"] == "qwen3":
        raise InputError(
            "llama.cpp's Qwen 3 has no place for the biases that --repair mean_bias adds; give another"
        )
    return space.restrict(every_multiple(space, BLOCK))


def write(checkpoint: Checkpoint, out: Path, choices: Choices) -> list[str]:
    """One GGUF file."""
    try:
        import gguf
    except ImportError as error:
        raise InputError(
            "the package gguf is not installed; run python -m pip install -e '.[export]'"
        ) from error
    words, rows = (
        number_of(checkpoint.config, "vocab_size"),
        checkpoint.shape("model.embed_tokens.weight")[0],
    )
    if words != rows:
        raise InputError(f"{checkpoint.folder} has embeddings of {rows} tokens, and config.json says {words}")
    dtype = "f16" if choices.dtype == "auto" else choices.dtype
    layout = plan(checkpoint, padded=dtype == "q8_0")
    vocabulary = read_vocabulary(checkpoint.folder, checkpoint.config) if choices.tokenizer else None
    kinds = {entry.name: _kind(entry, dtype) for entry in entries(checkpoint, layout)}
    with whole(out) as partial:
        writer = gguf.GGUFWriter(partial, layout.architecture)
        try:
            _describe(writer, checkpoint, layout, dtype)
            _tokenize(writer, vocabulary)
            _fill(writer, checkpoint, layout, kinds)
        finally:
            writer.close()
    return _notes(checkpoint, layout, dtype, kinds, vocabulary)


def _fill(writer: Any, checkpoint: Checkpoint, layout: Layout, kinds: Mapping[str, str]) -> None:
    """The tensors, of which one is in memory at a time."""
    from gguf import GGMLQuantizationType
    from gguf.quants import quant_shape_to_byte_shape, quantize

    kind = {name: GGMLQuantizationType[each.upper()] for name, each in kinds.items()}
    for entry in entries(checkpoint, layout):
        shape = quant_shape_to_byte_shape(entry.shape, kind[entry.name])
        size = int(np.prod(shape))
        writer.add_tensor_info(entry.name, shape, np.dtype(np.uint8), size, kind[entry.name])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for entry in entries(checkpoint, layout):
        writer.write_tensor_data(quantize(_checked(entry, kinds[entry.name]), kind[entry.name]))


def _kind(entry: Entry, dtype: str) -> str:
    if len(entry.shape) == 1:
        return "f32"
    return "f16" if dtype == "q8_0" and entry.shape[-1] % BLOCK else dtype


def _checked(entry: Entry, kind: str) -> np.ndarray:
    array = entry.make()
    if array.shape != entry.shape:
        raise InputError(
            f"the tensor {entry.name} is {array.shape}, and config.json makes it {entry.shape}: the "
            "checkpoint is broken"
        )
    largest = float(np.abs(array).max(initial=0))
    if not np.isfinite(largest):
        raise InputError(f"the tensor {entry.name} holds NaN or infinity: the checkpoint is broken")
    if kind == "f16" and largest > LARGEST:
        raise InputError(f"{entry.name} reaches {largest:.3g}, too large for f16; give --dtype bf16 or f32")
    return array


def _describe(writer: Any, checkpoint: Checkpoint, layout: Layout, dtype: str) -> None:
    """What kind of model it is."""
    config, blocks = checkpoint.config, layout.blocks
    writer.add_type("model")
    writer.add_name(checkpoint.folder.resolve().name)
    writer.add_file_type(DTYPES[dtype])
    writer.add_quantization_version(2)
    writer.add_vocab_size(number_of(config, "vocab_size"))
    writer.add_context_length(number_of(config, "max_position_embeddings"))
    writer.add_embedding_length(number_of(config, "hidden_size"))
    writer.add_block_count(len(blocks))
    heads, kv_heads, ffn = (
        getattr(blocks[0], name) if layout.is_uniform else [getattr(block, name) for block in blocks]
        for name in ("heads", "kv_heads", "ffn")
    )
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_feed_forward_length(ffn)
    writer.add_key_length(checkpoint.head_dim)
    writer.add_value_length(checkpoint.head_dim)
    writer.add_rope_dimension_count(checkpoint.head_dim)
    writer.add_layer_norm_rms_eps(factor_of(config, "rms_norm_eps"))
    rope = rope_of(config, checkpoint.head_dim)
    writer.add_rope_freq_base(rope.base)
    if rope.linear is not None:
        writer.add_string(f"{layout.architecture}.rope.scaling.type", "linear")
        writer.add_rope_scaling_factor(rope.linear)
    record = checkpoint.folder / RECORD
    if record.is_file():
        found = read_json(record)
        if "architecture" not in found:
            raise InputError(f"{record} says nothing of an architecture; fetch the checkpoint again")
        writer.add_string("secateur.architecture", json.dumps(found["architecture"]))


def _tokenize(writer: Any, vocabulary: Vocabulary | None) -> None:
    if vocabulary is None:
        writer.add_tokenizer_model("none")
        return
    writer.add_tokenizer_model(vocabulary.model)
    writer.add_tokenizer_pre(vocabulary.pre or "default")
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.types)
    if vocabulary.model == "llama":
        writer.add_token_scores(vocabulary.scores)
        writer.add_add_space_prefix(bool(vocabulary.space_first))
    else:
        writer.add_token_merges(vocabulary.merges)
    for word, index in vocabulary.ids.items():
        writer.add_uint32(f"tokenizer.ggml.{word}_token_id", index)
    writer.add_add_bos_token(vocabulary.begins)
    writer.add_add_eos_token(vocabulary.ends)
    if vocabulary.chat_template is not None:
        writer.add_chat_template(vocabulary.chat_template)


def _notes(
    checkpoint: Checkpoint,
    layout: Layout,
    dtype: str,
    kinds: Mapping[str, str],
    vocabulary: Vocabulary | None,
) -> list[str]:
    """What differs from what was asked for."""
    notes = [f"written as llama.cpp's {layout.architecture}, matrices in {dtype}"]
    added = [
        index for index, (own, written) in enumerate(zip(checkpoint.blocks, layout.blocks, strict=True))
        if own != written
    ]  # fmt: skip
    if added:
        more = sum(
            _weights(checkpoint, layout.blocks[i]) - _weights(checkpoint, checkpoint.blocks[i]) for i in added
        )
        notes.append(f"{more:,} zeros fill up blocks {', '.join(map(str, added))}, and change nothing")
    wider = sum(kind == "f16" for kind in kinds.values())
    if dtype == "q8_0" and wider:
        notes.append(f"{wider} matrices whose rows are no multiples of {BLOCK} are in f16")
    if vocabulary is None:
        notes.append("without a tokenizer: feed it token ids")
    elif vocabulary.composes:
        notes.append(
            "llama.cpp does not bring text into the form NFC as the tokenizer does: give it such text"
        )
    return notes


def _weights(checkpoint: Checkpoint, block: Widths) -> int:
    hidden = number_of(checkpoint.config, "hidden_size")
    return hidden * (2 * (block.heads + block.kv_heads) * checkpoint.head_dim + 3 * block.ffn)


ENGINE = Engine("llama.cpp", ("auto", *DTYPES), restrict, write, shards=False)
