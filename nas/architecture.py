"""The architecture: how much of each unit each kept block keeps, as one frozen value."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

from data.errors import InputError


@dataclass(frozen=True, order=True)
class Block:
    """One kept decoder layer.

    `source` is its index in the parent; `kv_groups` key/value groups, each with `queries_per_group`
    query heads, are kept (both 0: the attention is skipped), and `ffn` channels of the MLP (0: skipped).
    `head_width` is how many channels of each head are kept, in rotary pairs; None keeps whole heads.
    """

    source: int
    kv_groups: int
    queries_per_group: int
    ffn: int
    head_width: int | None = None

    def __post_init__(self) -> None:
        for name in ("source", "kv_groups", "queries_per_group", "ffn"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise InputError(f"block {self.source}: {name} is {value!r}; give an integer of 0 or more")
        if (self.kv_groups == 0) != (self.queries_per_group == 0):
            raise InputError(
                f"block {self.source}: {self.kv_groups} KV groups with {self.queries_per_group} queries "
                "each; an attention is either skipped (both 0) or has at least one of each"
            )
        if self.kv_groups == 0 and self.ffn == 0:
            raise InputError(
                f"block {self.source} keeps neither attention nor MLP; leave it out of the list of blocks"
            )

        width = self.head_width
        if width is not None:
            if isinstance(width, bool) or not isinstance(width, int) or width < 2 or width % 2:
                raise InputError(
                    f"block {self.source}: head_width is {width!r}; give an even integer of 2 or more "
                    "(channels go in rotary pairs), or None for whole heads"
                )
            if self.kv_groups == 0:
                raise InputError(f"block {self.source} has head_width {width}, and skips its attention")

    @property
    def heads(self) -> int:
        """Query heads kept."""
        return self.kv_groups * self.queries_per_group


@dataclass(frozen=True)
class Architecture:
    """A subnet's shape: the hidden width and the kept blocks in the parent's order.

    Two architectures are equal exactly when they describe the same subnet: a block that keeps nothing is
    not listed, so no subnet has two spellings.
    """

    hidden: int
    blocks: tuple[Block, ...]

    def __post_init__(self) -> None:
        if isinstance(self.hidden, bool) or not isinstance(self.hidden, int) or self.hidden < 1:
            raise InputError(f"hidden width is {self.hidden!r}; give a positive integer")
        sources = [block.source for block in self.blocks]
        if sources != sorted(set(sources)):
            raise InputError(
                f"blocks come from layers {sources}; each may be used once, in the parent's order"
            )

    @cached_property
    def _hash(self) -> int:
        """Of whole numbers alone, so that it is the same in another process that it is sent to."""
        blocks = ((b.source, b.kv_groups, b.queries_per_group, b.ffn, b.head_width or 0) for b in self.blocks)
        return hash((self.hidden, *blocks))

    def __hash__(self) -> int:
        """Computed once: queues of thousands are looked up for every pair."""
        return self._hash

    @property
    def digest(self) -> str:
        """Sixteen hexadecimal digits, equal for equal architectures in every process."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()[:16]

    @property
    def is_uniform(self) -> bool:
        """Whether all kept blocks have the same widths, so that a plain configuration can describe them."""
        return len({replace(block, source=0) for block in self.blocks}) <= 1

    def to_json(self) -> str:
        """Canonical JSON: the same text for equal architectures."""
        record = asdict(self)
        for block in record["blocks"]:
            if block["head_width"] is None:
                del block["head_width"]
        return json.dumps(record, sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Architecture:
        """Read what `to_json` wrote; anything else raises `InputError`."""
        try:
            record: Any = json.loads(text)
            names = {"source", "kv_groups", "queries_per_group", "ffn"}
            alike = (names, names | {"head_width"})
            if set(record) != {"hidden", "blocks"} or any(set(b) not in alike for b in record["blocks"]):
                raise InputError(
                    f"an architecture has the fields hidden and blocks of {', '.join(sorted(names))} and, "
                    "where heads are cut, head_width"
                )
            return cls(record["hidden"], tuple(Block(**block) for block in record["blocks"]))
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"not an architecture in JSON: {text[:80]!r}") from error
