"""Which of llama.cpp's architectures a checkpoint is, and its tensors under their names and in their order.

`llama`, `qwen2` and `qwen3` have one width for all blocks. `deci` is LLaMA with widths of each block's own,
`openelm` is Qwen 3 with such, whose head is tied. Where these lack something, zeros stand in for it, which
change nothing (found by reading llama.cpp's graphs, proved by running them):

- `deci` without an FFN leaves a block before its attention joins the stream: an MLP of zeros;
- `deci` takes the width of heads from block 0: an attention of zeros where that has none;
- `openelm` has no way to skip a part: both.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from data.errors import InputError
from nas.engines.checkpoint import Checkpoint, Widths, head_dim_of, number_of
from nas.engines.gguf_rope import Array, interleaved, rope_of
from nas.families.table import family_name

LLAMA = ("llama", "mistral", "qwen2")
"""Families that are LLaMA, with or without biases."""
SUPPORTED = (*LLAMA, "qwen3")
"""Families that llama.cpp is given."""
BLOCK = 32
"""Weights that share a scale in Q8_0, and so what the rows it holds are multiples of."""
_KNOWN = re.compile(
    r"model\.(embed_tokens|norm)\.weight|lm_head\.weight|model\.layers\.\d+\."
    r"((self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)\.(weight|bias)|"
    r"(input_layernorm|post_attention_layernorm)\.weight|.*rotary_emb\.inv_freq)"
)
_HEAD_NORM = re.compile(r"model\.layers\.\d+\.self_attn\.[qk]_norm\.weight")
_OUTPUT_BIASES = ("self_attn.o_proj.bias", "mlp.gate_proj.bias", "mlp.up_proj.bias", "mlp.down_proj.bias")


@dataclass(frozen=True)
class Entry:
    """A tensor to be: its name, its shape, and what makes it."""

    name: str
    shape: tuple[int, ...]
    make: Callable[[], Array]


@dataclass(frozen=True)
class Layout:
    """llama.cpp's name of the architecture, and the widths of every block as they are written."""

    architecture: str
    blocks: tuple[Widths, ...]

    @property
    def is_uniform(self) -> bool:
        """Whether one width does for all blocks."""
        return self.architecture in ("llama", "qwen2", "qwen3")


def check_model(config: Mapping[str, Any]) -> None:
    """Raise `InputError` unless llama.cpp computes what a model of this configuration does."""
    family = family_name(str(config.get("model_type", "")))
    if family not in SUPPORTED:
        raise InputError(
            f"models of the family {family!r} cannot be exported to gguf; {', '.join(SUPPORTED)} can, and "
            "any to hf"
        )
    window, longest = config.get("sliding_window"), number_of(config, "max_position_embeddings")
    in_use = family == "mistral" or "sliding_attention" in (config.get("layer_types") or ())
    if config.get("use_sliding_window") or (in_use and window is not None and window < longest):
        raise InputError(
            f"attention sees a window of {window} of {longest} positions, which llama.cpp's {family} does "
            "not; export to hf"
        )
    if config.get("hidden_act", "silu") != "silu":
        raise InputError(f"the MLP has the activation {config['hidden_act']!r}, and llama.cpp's is silu")
    if family == "qwen3" and config.get("attention_bias"):
        raise InputError("Qwen 3 with biases in its attention cannot be exported to gguf; export to hf")
    rope = rope_of(config, head_dim_of(config))
    if family == "qwen3" and rope.factors is not None:
        raise InputError("llama.cpp's qwen3 has no frequencies scaled as Llama 3's; export to hf")


def check_uneven(config: Mapping[str, Any]) -> None:
    """Raise `InputError` unless blocks of different widths can be written."""
    if family_name(str(config.get("model_type", ""))) == "qwen3" and not config["tie_word_embeddings"]:
        raise InputError(
            "llama.cpp can run Qwen 3 with blocks of different widths only if its head is tied to its "
            "embedding, and this one's is not; export to hf, or cut all blocks alike"
        )


def plan(checkpoint: Checkpoint, padded: bool) -> Layout:
    """The layout of a checkpoint, with its FFN widths filled up to multiples of `BLOCK` if `padded`.

    Raises `InputError` for one that llama.cpp cannot run.
    """
    check_model(checkpoint.config)
    blocks, family = checkpoint.blocks, checkpoint.family
    for name in checkpoint.places:
        if not (_KNOWN.fullmatch(name) or (family == "qwen3" and _HEAD_NORM.fullmatch(name))):
            raise InputError(f"{checkpoint.folder} has the tensor {name}, for which llama.cpp has no place")
    output_bias = [name for name in checkpoint.places if name.endswith(_OUTPUT_BIASES)]
    if family == "qwen3" and output_bias:
        raise InputError(
            f"{checkpoint.folder} has the bias {output_bias[0]}, for which llama.cpp's Qwen 3 has no place; "
            "export to hf, or repair without biases"
        )
    if not checkpoint.is_uniform:
        check_uneven(checkpoint.config)
        name = "openelm" if family == "qwen3" else "deci"
        blocks = tuple(_standing_in(block, index, name) for index, block in enumerate(blocks))
    elif family == "qwen3":
        name = "qwen3"
    else:
        square = blocks[0].heads * checkpoint.head_dim == checkpoint.config["hidden_size"]
        plain = family == "qwen2" and square and not output_bias
        turned = rope_of(checkpoint.config, checkpoint.head_dim).factors is not None
        name = "qwen2" if plain and not turned else "llama"
    if padded:
        blocks = tuple(replace(block, ffn=-(-block.ffn // BLOCK) * BLOCK) for block in blocks)
    return Layout(name, blocks)


def _standing_in(block: Widths, index: int, architecture: str) -> Widths:
    """A block with the parts of zeros that the architecture cannot do without."""
    if not block.heads and (architecture == "openelm" or index == 0):
        block = replace(block, heads=1, kv_heads=1)
    return block if block.ffn else replace(block, ffn=BLOCK)


def entries(checkpoint: Checkpoint, layout: Layout) -> Iterator[Entry]:
    """All tensors of a checkpoint as the layout has them."""
    hidden, dim = number_of(checkpoint.config, "hidden_size"), checkpoint.head_dim

    def array(name: str) -> Array:
        return np.asarray(checkpoint.tensor(name).float().numpy(), dtype=np.float32)

    def as_is(name: str, source: str) -> Entry:
        return Entry(name, checkpoint.shape(source), lambda: array(source))

    yield as_is("token_embd.weight", "model.embed_tokens.weight")
    yield as_is("output_norm.weight", "model.norm.weight")
    if not checkpoint.tied:
        yield as_is("output.weight", "lm_head.weight")
    factors = rope_of(checkpoint.config, dim).factors
    if factors is not None:
        yield Entry("rope_freqs.weight", factors.shape, lambda: factors)
    for index, (own, written) in enumerate(zip(checkpoint.blocks, layout.blocks, strict=True)):
        block = _Block(checkpoint, array, index, own, written, hidden, dim)
        if written.heads:
            yield from (
                block.fused()
                if layout.architecture == "openelm"
                else block.attention(turned=layout.architecture in ("llama", "deci"))
            )
        yield from block.mlp()


@dataclass(frozen=True)
class _Block:
    """One block, as it is (`own`) and as it is `written`."""

    checkpoint: Checkpoint
    array: Callable[[str], Array]
    index: int
    own: Widths
    written: Widths
    hidden: int
    dim: int

    def attention(self, turned: bool) -> Iterator[Entry]:
        """Norm, projections and biases; rows of queries and keys `turned` to llama.cpp's order."""
        yield self.gains("attn_norm", "input_layernorm.weight", self.own.heads, self.hidden)
        for part, projection in (("q", "q_proj"), ("k", "k_proj"), ("v", "v_proj")):
            for kind in ("weight", "bias"):
                source = self.source(f"self_attn.{projection}.{kind}")
                if kind == "weight" or self.checkpoint.has(source):
                    yield self.rows(f"attn_{part}.{kind}", source, part, turned and part != "v")
        for kind in ("q", "k"):
            if self.checkpoint.has(self.source(f"self_attn.{kind}_norm.weight")):
                yield self.gains(
                    f"attn_{kind}_norm", f"self_attn.{kind}_norm.weight", self.own.heads, self.dim
                )
        yield from self.output()

    def fused(self) -> Iterator[Entry]:
        """The same with queries, keys and values in one matrix."""
        yield self.gains("attn_norm", "input_layernorm.weight", self.own.heads, self.hidden)
        parts = [
            self.rows("", self.source(f"self_attn.{part}_proj.weight"), part, False)
            for part in ("q", "k", "v")
        ]
        shape = (sum(part.shape[0] for part in parts), self.hidden)
        name = f"blk.{self.index}.attn_qkv.weight"
        yield Entry(name, shape, lambda: np.concatenate([part.make() for part in parts]))
        for kind in ("q", "k"):
            yield self.gains(f"attn_{kind}_norm", f"self_attn.{kind}_norm.weight", self.own.heads, self.dim)
        yield from self.output()

    def output(self) -> Iterator[Entry]:
        """The attention's output matrix, and its bias if it has one."""
        shape = (self.hidden, self.written.heads * self.dim)
        yield self.filled("attn_output.weight", "self_attn.o_proj.weight", shape, self.own.heads)
        if self.checkpoint.has(self.source("self_attn.o_proj.bias")):
            yield self.filled("attn_output.bias", "self_attn.o_proj.bias", (self.hidden,), 1)

    def mlp(self) -> Iterator[Entry]:
        """Norm and matrices of the MLP, with channels of zeros where it is written wider than it is."""
        width = self.written.ffn
        yield self.gains("ffn_norm", "post_attention_layernorm.weight", self.own.ffn, self.hidden)
        for name, projection, shape in (
            ("ffn_gate", "mlp.gate_proj", (width, self.hidden)),
            ("ffn_up", "mlp.up_proj", (width, self.hidden)),
            ("ffn_down", "mlp.down_proj", (self.hidden, width)),
        ):
            yield self.filled(f"{name}.weight", f"{projection}.weight", shape, self.own.ffn)
            if self.checkpoint.has(self.source(f"{projection}.bias")):
                yield self.filled(f"{name}.bias", f"{projection}.bias", shape[:1], 1)

    def source(self, name: str) -> str:
        return f"model.layers.{self.index}.{name}"

    def gains(self, name: str, source: str, there: int, width: int) -> Entry:
        """The gains of a norm, all 1 if its part is not `there`."""
        full = self.source(source)
        return Entry(
            f"blk.{self.index}.{name}.weight",
            (width,),
            lambda: self.array(full) if there else np.ones(width, dtype=np.float32),
        )

    def rows(self, name: str, source: str, part: str, turned: bool) -> Entry:
        """Rows of queries, keys or values."""
        heads = self.written.heads if part == "q" else self.written.kv_heads
        shape = (heads * self.dim, self.hidden)[: 1 if source.endswith("bias") else 2]

        def make() -> Array:
            if not self.own.heads:
                return np.zeros(shape, dtype=np.float32)
            return interleaved(self.array(source), heads) if turned else self.array(source)

        return Entry(f"blk.{self.index}.{name}", shape, make)

    def filled(self, name: str, source: str, shape: tuple[int, ...], there: int) -> Entry:
        """A tensor in the first places of one of zeros."""
        full = self.source(source)

        def make() -> Array:
            whole = np.zeros(shape, dtype=np.float32)
            if there:
                stored = self.array(full)
                if not all(size <= room for size, room in zip(stored.shape, shape, strict=True)):
                    return stored  # which is refused for its shape
                whole[tuple(slice(size) for size in stored.shape)] = stored
            return whole

        return Entry(f"blk.{self.index}.{name}", shape, make)
