"""A decoder whose blocks differ in width, and some of which have no attention or no MLP.

Secateur (Apache-2.0) puts this file beside the weights of a subnet that one width for all blocks cannot
describe. `config.json` keeps each block's widths in `per_layer_config`, which transformers (5.14 or newer)
stores without building from it; the classes below build from it. They need nothing but torch and
transformers: `AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)`.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
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
    block = FamilyBlock(own, index)
    for module in block.modules():
        if hasattr(module, "config"):
            module.config = config  # a later set_attn_implementation changes this one only
    attention = block.self_attn
    attention.layer_idx = slot
    inner = own.num_attention_heads * attention.head_dim
    if attention.o_proj.in_features != inner:  # helium builds it square
        attention.o_proj = nn.Linear(inner, config.hidden_size, bias=attention.o_proj.bias is not None)
    if "attention" in own.skip:
        block.self_attn = NoAttention()
        for name in ATTENTION_NORMS:
            setattr(block, name, nn.Identity())
    if "mlp" in own.skip:
        block.mlp = NoMlp()
        for name in MLP_NORMS:
            setattr(block, name, nn.Identity())
    return block
