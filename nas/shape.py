"""The parent's shape, and what fits into it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from data.errors import InputError
from nas.architecture import Architecture, Block

Widths = NDArray[np.int64]
"""(..., blocks, 3): KV groups, queries per group and FFN channels of each of the parent's blocks, 0 where
skipped; the form in which many architectures are handled at once."""

HeadWidths = NDArray[np.int64]
"""(..., blocks): channels kept of each head in each of the parent's blocks; any number where skipped."""


@dataclass(frozen=True)
class Shape:
    """The parent's shape: all that closed-form costs and legality need to know of a model.

    Parameter counts come in the pieces that a cut removes: `per_group` for a KV group's key and value rows,
    `per_query` for a query head's rows and its columns of the output matrix, `per_channel` for an FFN
    channel, and the fixed remainder of an attention or an MLP that goes only with the whole module (its
    norms, its output bias). `outside` counts embeddings, final norm and head (once, if tied). `head_norms` is
    the part of `attention_fixed` that no hidden channel has a share in: the q/k norms; `shared_norms` are
    those that attention and MLP have in common, which go only with the whole block. `lines` vectors over the
    hidden channels belong to an FFN channel.

    In a mixture of experts the units of the MLP are its experts, of which a token visits
    `experts_per_token` (0: no mixture): `ffn` is their number, and everything said of a channel holds for an
    expert. With `whole_attention` an attention is kept as it is or skipped; with `caches_queries` the KV
    cache holds a key and a value for each query head.
    """

    family: str
    hidden: int
    blocks: int
    kv_groups: int
    queries_per_group: int
    head_dim: int
    ffn: int
    vocab: int
    per_group: int
    per_query: int
    attention_fixed: int
    per_channel: int
    mlp_fixed: int
    outside: int
    head_norms: int = 0
    shared_norms: int = 0
    lines: int = 3
    experts_per_token: int = 0
    whole_attention: bool = False
    caches_queries: bool = False

    @property
    def parent(self) -> Architecture:
        """The keep-everything architecture."""
        full = (self.kv_groups, self.queries_per_group, self.ffn)
        return Architecture(self.hidden, tuple(Block(i, *full) for i in range(self.blocks)))

    @property
    def whole(self) -> Widths:
        """The parent's widths, (blocks, 3)."""
        return np.tile([self.kv_groups, self.queries_per_group, self.ffn], (self.blocks, 1))

    @property
    def mlp_units(self) -> str:
        """What `ffn` counts, in words."""
        return "experts" if self.experts_per_token else "FFN channels"

    def narrowed(self, hidden: int) -> Shape:
        """The shape of the same parent with `hidden` of its hidden channels: a parent like any other.

        Every matrix loses a row or column with each channel, everything else in a block but biases and q/k
        norms is a vector over the channels, and so is all outside of blocks, row by row.
        """
        less = self.hidden - hidden

        def share(count: int) -> int:
            return count * hidden // self.hidden

        return replace(
            self,
            hidden=hidden,
            per_group=self.per_group - 2 * self.head_dim * less,
            per_query=self.per_query - 2 * self.head_dim * less,
            attention_fixed=self.head_norms + share(self.attention_fixed - self.head_norms),
            per_channel=self.per_channel - self.lines * less,
            mlp_fixed=share(self.mlp_fixed),
            shared_norms=share(self.shared_norms),
            outside=share(self.outside),
        )


def widths_of(architecture: Architecture, shape: Shape) -> Widths:
    """(blocks, 3) widths of one architecture; see `head_widths_of` for what is kept inside heads."""
    widths = np.zeros((shape.blocks, 3), dtype=np.int64)
    for block in architecture.blocks:
        widths[block.source] = block.kv_groups, block.queries_per_group, block.ffn
    return widths


def head_widths_of(architecture: Architecture, shape: Shape) -> HeadWidths:
    """(blocks,) head widths of one architecture."""
    widths = np.full(shape.blocks, shape.head_dim, dtype=np.int64)
    for block in architecture.blocks:
        widths[block.source] = block.head_width or shape.head_dim
    return widths


def architecture_of(widths: Widths, shape: Shape, head_widths: HeadWidths | None = None) -> Architecture:
    """The inverse of `widths_of` and `head_widths_of`, of one (blocks, 3) array and one (blocks,), which are
    whole heads by default; at the shape's hidden width (see `Shape.narrowed`)."""
    heads = np.full(shape.blocks, shape.head_dim) if head_widths is None else head_widths
    blocks = (
        Block(source, groups, queries, ffn, head if groups and head < shape.head_dim else None)
        for source, ((groups, queries, ffn), head) in enumerate(
            zip(widths.tolist(), heads.tolist(), strict=True)
        )
        if groups or queries or ffn
    )
    return Architecture(shape.hidden, tuple(blocks))


def check_fits(architecture: Architecture, shape: Shape) -> None:
    """Raise `InputError` unless the architecture can be cut out of a parent of this shape."""
    if architecture.hidden > shape.hidden:
        raise InputError(f"hidden width {architecture.hidden} exceeds the parent's {shape.hidden}")
    if not architecture.blocks:
        raise InputError("an architecture needs at least one block")
    if not any(block.kv_groups for block in architecture.blocks):
        raise InputError("an architecture needs attention in at least one block; all of them skip it")
    for block in architecture.blocks:
        limits = (shape.blocks - 1, shape.kv_groups, shape.queries_per_group, shape.ffn)
        kept = (block.source, block.kv_groups, block.queries_per_group, block.ffn)
        words = ("layer index", "KV groups", "queries per group", shape.mlp_units)
        for word, have, limit in zip(words, kept, limits, strict=True):
            if have > limit:
                raise InputError(f"block {block.source}: {word} {have} exceeds the parent's {limit}")
        if 0 < block.ffn < shape.experts_per_token:
            raise InputError(
                f"block {block.source}: {block.ffn} experts are fewer than the "
                f"{shape.experts_per_token} that every token visits; keep as many, or skip the MLP"
            )
        whole = (shape.kv_groups, shape.queries_per_group)
        if shape.whole_attention and block.kv_groups and (block.kv_groups, block.queries_per_group) != whole:
            raise InputError(
                f"block {block.source}: {block.kv_groups} KV groups of {block.queries_per_group} queries; "
                f"norms of {shape.family} run over all heads, so keep all {whole[0]} x {whole[1]} or none"
            )
        if block.head_width is not None and block.head_width >= shape.head_dim:
            raise InputError(
                f"block {block.source}: head width {block.head_width} is not below the parent's "
                f"{shape.head_dim}; leave it out to keep whole heads"
            )
