"""Score the rotary pairs inside heads, so that a narrower head keeps the best of them.

Rotary embeddings turn channels i and i + D / 2 of a head together, and queries meet the keys of their group
channel by channel: what can go is a pair, from all heads of a KV group at once.
"""

from torch import Tensor

from nas.shape import Shape


def rotary_scores(shape: Shape, query: Tensor, key: Tensor) -> Tensor:
    """Summed importance of the rotary pairs of each KV group, (kv_groups, head_dim / 2).

    `query` (heads * head_dim,) scores the channels of q_proj's rows and o_proj's columns, `key`
    (kv_groups * head_dim,) those of k_proj's and v_proj's rows, both larger for more important.
    """
    half = shape.head_dim // 2
    queries = query.view(shape.kv_groups, shape.queries_per_group, 2, half).sum((1, 2))
    return queries + key.view(shape.kv_groups, 2, half).sum(1)
