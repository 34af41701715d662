"""Everything that a cut can do to a parent of three blocks."""

from __future__ import annotations

from nas.architecture import Architecture, Block
from nas.shape import Shape

CUTS = (
    "narrow",
    "uniform",
    "shallow",
    "one block",
    "no first attention",
    "other kind first",
    "no middle attention",
    "no mlp",
    "only skips",
    "all at once",
)


def architecture_of_cut(cut: str, shape: Shape) -> Architecture:
    """One of the things (`CUTS`) that a cut can do to a parent of three blocks."""
    g, q, f = shape.kv_groups, shape.queries_per_group, shape.ffn
    one, few = max(1, g // 2), max(1, q - 1)
    if shape.whole_attention:
        one, few = g, q
    less, some, odd, little = (f - 8, 16, 7, 8) if not shape.experts_per_token else (f - 2, 3, 2, 3)

    def of(*blocks: tuple[int, int, int, int]) -> Architecture:
        return Architecture(shape.hidden, tuple(Block(*block) for block in blocks))

    return {
        "narrow": of((0, one, q, less), (1, g, few, f), (2, g, q, odd)),
        "uniform": of((0, one, q, some), (1, one, q, some), (2, one, q, some)),
        "shallow": of((1, g, q, f), (2, g, q, f)),
        "one block": of((1, g, few, little)),
        "no first attention": of((0, 0, 0, f), (1, g, q, f), (2, one, q, f)),
        "other kind first": of((0, 0, 0, f), (1, g, few, f)),
        "no middle attention": of((0, g, q, f), (1, 0, 0, little), (2, g, q, f)),
        "no mlp": of((0, g, q, 0), (1, g, q, f), (2, g, few, 0)),
        "only skips": of((0, 0, 0, f), (1, g, q, 0), (2, g, q, f)),
        "all at once": of((0, 0, 0, odd + 2), (2, one, few, 0)),
    }[cut]
