"""A decoder whose blocks differ in width, some of which have no attention, no MLP, or parts of heads only.

Secateur (Apache-2.0) puts this file beside the weights of a subnet that one width for all blocks cannot
describe. `config.json` keeps each block's widths in `per_layer_config`, which transformers (5.14 or newer)
stores without building from it; the classes below build from it. They need nothing but torch and
transformers: `AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)`.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama import modeling_llama as llama
from transformers.models.llama.configuration_llama import LlamaConfig as FamilyConfig
from transformers.models.llama.modeling_llama import LlamaDecoderLayer as FamilyBlock
from transformers.models.llama.modeling_llama import LlamaForCausalLM as FamilyForCausalLM

FAMILY = "llama"
ATTENTION_NORMS: tuple[str, ...] = ("input_layernorm",)
MLP_NORMS: tuple[str, ...] = ("post_attention_layernorm",)


class Absent(nn.Module):
    """Stands where a module was skipped: adds nothing to the residual stream.

    The common base keeps transformers, which reads this file for classes like `…Attention(nn.Module)`, from
    finding an attention here that does not go through its interface.
    """


class NoAttention(Absent):
    """In place of an attention."""

    def forward(self, hidden_states: Tensor, **_: Any) -> tuple[Tensor, None]:
        """A zero that broadcasts."""
        return hidden_states.new_zeros(()), None


class NoMlp(Absent):
    """In place of an MLP."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        """A zero that broadcasts."""
        return hidden_states.new_zeros(())


class NarrowAttention(nn.Module):
    """LLaMA's attention (and Mistral's, and Qwen2's) with some of the rotary pairs of each head.

    `rotary` (groups, width / 2) holds the places among the frequencies of the pairs that the heads of each KV
    group kept: channels i and i + width / 2 of a head turn by frequency `rotary[group, i]`. Scores are
    divided by the root of the whole head's width. See `narrow`.
    """

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        attention_mask: Tensor | None = None,
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """As the family's own, with the cosines and sines of the pairs that each group kept."""
        before = hidden_states.shape[:-1]
        query, key, value = (
            project(hidden_states).view(*before, -1, self.head_dim).transpose(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        # (batch, length, whole head), both halves alike, -> (batch, groups, length, width)
        cos, sin = (part[..., self.rotary].transpose(1, 2).repeat(1, 1, 1, 2) for part in position_embeddings)
        key = key * cos + llama.rotate_half(key) * sin
        cos, sin = (part.repeat_interleave(self.num_key_value_groups, dim=1) for part in (cos, sin))
        query = query * cos + llama.rotate_half(query) * sin
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, llama.eager_attention_forward
        )
        output, weights = attend(
            self,
            query,
            key,
            value,
            attention_mask,
            dropout=self.attention_dropout if self.training else 0.0,
            scaling=self.scaling,
            sliding_window=getattr(self, "sliding_window", getattr(self.config, "sliding_window", None)),
            **kwargs,
        )
        return self.o_proj(output.reshape(*before, -1).contiguous()), weights


def narrow(attention: nn.Module, rotary: Tensor) -> nn.Module:
    """An attention of the family, whose projections have these pairs only, told so in place.

    It stays one of its family's class, which is where transformers looks for attention maps.
    """
    attention.head_dim = 2 * rotary.shape[1]
    attention.register_buffer("rotary", rotary)
    attention.__class__ = _narrow_class(attention.__class__)
    return attention


@cache
def _narrow_class(family: type) -> type:
    return type(f"Narrow{family.__name__}", (NarrowAttention, family), {})


def cache_slots(kinds: Sequence[str | None], attends: Sequence[bool]) -> list[int]:
    """The layer of the KV cache that each block writes to, for blocks of these layer types.

    Transformers reads how much was seen, and each mask's size, from the first cache layer of a type. A block
    therefore uses the layer of its own number, except that the first block of a type that has attention takes
    the type's first one, which would stay empty otherwise and make every later position wrong.
    """
    slots, seen = list(range(len(kinds))), set()
    for index, (kind, attention) in enumerate(zip(kinds, attends, strict=True)):
        if attention and kind not in seen:
            slots[index] = list(kinds).index(kind)
            seen.add(kind)
    return slots


class SubnetConfig(FamilyConfig):
    """The family's configuration under a name of its own, so that nothing takes it for a uniform model's."""

    model_type = f"secateur_{FAMILY}"
    # Set here, and so never written to config.json: without it the family's own classes refuse to be built.
    allow_global_per_layer_attribute_access = True

    def validate(self) -> None:
        """The family's checks of the global widths, for once without a warning that these vary by block."""
        varying = self.__dict__.pop("_heterogeneity_spec", None)
        try:
            super().validate()
        finally:
            if varying is not None:
                self._heterogeneity_spec = varying


class SubnetForCausalLM(FamilyForCausalLM):
    """The family's model with every block built from its own entry in `per_layer_config`."""

    config_class = SubnetConfig

    def __init__(self, config: SubnetConfig) -> None:
        if not hasattr(config, "is_heterogeneous"):
            raise ImportError("this checkpoint needs transformers 5.14 or newer")
        depth = config.num_hidden_layers
        config.num_hidden_layers = 0  # the family's blocks would all be built at the full width
        super().__init__(config)
        config.num_hidden_layers = depth
        widths = [config.per_layer_config[index] for index in range(depth)]
        kinds = getattr(config, "layer_types", None) or [None] * depth
        slots = cache_slots(kinds, ["attention" not in own.skip for own in widths])
        for index, own in enumerate(widths):
            self.model.layers.append(build_block(config, own, index, slots[index]))
        self.post_init()

    def _get_static_cache_init_shape(self) -> None:
        """None in advance: a cache layer takes the shape of the first keys it gets (see `cache_slots`)."""


def build_block(config: SubnetConfig, own: SubnetConfig, index: int, slot: int) -> nn.Module:
    """One block of the widths in `own`, whose keys and values go to layer `slot` of the cache."""
    if "attention" in own.skip:
        own.num_attention_heads = own.num_key_value_heads = 1  # said to be 0; built, and thrown away below
    if "mlp" in own.skip:
        own.intermediate_size = 1
    whole = config.head_dim
    own.head_dim = getattr(own, "head_width", whole)
    block = FamilyBlock(own, index)
    for module in block.modules():
        if hasattr(module, "config"):
            module.config = config  # a later set_attn_implementation changes this one only
    attention = block.self_attn
    attention.layer_idx = slot
    inner = own.num_attention_heads * attention.head_dim
    if attention.o_proj.in_features != inner:  # helium builds it square
        attention.o_proj = nn.Linear(inner, config.hidden_size, bias=attention.o_proj.bias is not None)
    for part, name in (("attention", "self_attn.o_proj"), ("mlp", "mlp.down_proj")):
        output = block.get_submodule(name)
        if part in getattr(own, "output_bias", ()) and output.bias is None:
            output.bias = nn.Parameter(torch.zeros(output.out_features))
    if own.head_dim < whole:
        attention.scaling = whole**-0.5
        rotary = torch.zeros(own.num_key_value_heads, own.head_dim // 2, dtype=torch.long)
        narrow(attention, rotary)
    if "attention" in own.skip:
        block.self_attn = NoAttention()
        for name in ATTENTION_NORMS:
            setattr(block, name, nn.Identity())
    if "mlp" in own.skip:
        block.mlp = NoMlp()
        for name in MLP_NORMS:
            setattr(block, name, nn.Identity())
    return block
