"""What there is to know of a model family: where it keeps its parts, and what may be cut of them."""

from __future__ import annotations

from dataclasses import dataclass

from data.errors import InputError
from nas.modeling_subnet import Layout


@dataclass(frozen=True)
class Family:
    """A family's `layout`, and what its models allow.

    The hidden width can be cut unless `fixed_hidden` says, in a sentence, why not. Heads can be cut unless
    they are `whole_attention`, which is then kept or skipped; channels inside heads where there are
    `narrow_heads`: where the attention is LLaMA's, as `nas.modeling_subnet` has it. The patterns of an
    attention that calls its function `by_interface`, transformers' own, can be asked for, which refitting
    values needs. The KV cache holds a key for every query head where it `caches_queries`.
    """

    layout: Layout = Layout()
    fixed_hidden: str = ""
    whole_attention: bool = False
    narrow_heads: bool = False
    by_interface: bool = True
    caches_queries: bool = False

    def check_narrowable(self) -> None:
        """Raise `InputError` unless the hidden width can be cut."""
        if self.fixed_hidden:
            raise InputError(f"{self.fixed_hidden}; keep all hidden channels")
