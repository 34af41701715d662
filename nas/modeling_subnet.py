"""A decoder whose blocks differ in width, some of which have no attention, no MLP, or parts of heads only.

Secateur (Apache-2.0) puts this file beside the weights of a subnet that one width for all blocks cannot
describe. `config.json` keeps each block's widths in `per_layer_config`, which transformers (5.14 or newer)
stores without building from it; the classes below build from it. They need nothing but torch and
transformers: `AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)`.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers.cache_utils import Cache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama import modeling_llama as llama
from transformers.models.llama.configuration_llama import LlamaConfig as FamilyConfig
from transformers.models.llama.modeling_llama import LlamaDecoderLayer as FamilyBlock
from transformers.models.llama.modeling_llama import LlamaForCausalLM as FamilyForCausalLM
from transformers.pytorch_utils import Conv1D


class Layout(NamedTuple):
    """Where a family's model keeps its blocks, and a block its parts; LLaMA's places by default.

    Paths: of the blocks in the model (`layers`), of `attention` and `mlp` in a block ("": in the block
    itself), of everything else in those two. `qkv` and `gate_up`, where given, are one matrix in place of
    q_proj, k_proj and v_proj, and of gate_proj and up_proj: their rows one below the other, but for a
    `grouped` qkv, KV group by KV group. `transposed` ones are Conv1D. A norm is "" where there is none.
    `slot` numbers the KV cache's layers; a `parallel` MLP reads the stream in front of the attention; with
    `heads_in_config` an attention asks the configuration for its heads when it runs; `experts` are a router
    `mlp.gate` over `mlp.experts`; with `alibi` attentions get biases that hang on the heads' numbers;
    `width` is what the configuration calls the width of the MLP, or the number of experts.
    """

    layers: str = "model.layers"
    attention: str = "self_attn"
    slot: str = "layer_idx"
    qkv: str = ""
    grouped: bool = False
    output: str = "o_proj"
    mlp: str = "mlp"
    gate_up: str = ""
    gated: bool = True
    up: str = "up_proj"
    down: str = "down_proj"
    activation: str = "act_fn"
    transposed: bool = False
    attention_pre: str = "input_layernorm"
    attention_post: str = ""
    mlp_pre: str = "post_attention_layernorm"
    mlp_post: str = ""
    parallel: bool = False
    heads_in_config: bool = False
    experts: bool = False
    alibi: bool = False
    width: str = "intermediate_size"

    @property
    def attention_norms(self) -> tuple[str, ...]:
        """Norms that go with the attention: those that it does not share with the MLP."""
        shared = ("", self.mlp_pre, self.mlp_post)
        return tuple(name for name in (self.attention_pre, self.attention_post) if name not in shared)

    @property
    def mlp_norms(self) -> tuple[str, ...]:
        """Norms that go with the MLP."""
        shared = ("", self.attention_pre, self.attention_post)
        return tuple(name for name in (self.mlp_pre, self.mlp_post) if name not in shared)

    def within(self, part: str, name: str) -> str:
        """The path in a block of what is called `name` in its "attention" or "mlp"."""
        whole = self.attention if part == "attention" else self.mlp
        return f"{whole}.{name}" if whole else name


FAMILY = "llama"
LAYOUT = Layout()


class Absent(nn.Module):
    """Stands where a module was skipped. Transformers reads this file for classes like
    `…Attention(nn.Module)`, and would find one that does not go through its interface without this base."""


class NoAttention(Absent):
    """In place of an attention; where that would add the residual stream itself (bloom), it passes it on."""

    def forward(self, hidden_states: Tensor, residual: Tensor | None = None, **_: Any) -> tuple[Tensor, None]:
        """A zero that broadcasts."""
        return hidden_states.new_zeros(()) if residual is None else residual, None


class NoMlp(Absent):
    """In place of an MLP; see `NoAttention`."""

    def forward(self, hidden_states: Tensor, residual: Tensor | None = None) -> Tensor:
        """Zeros: some families add to them in place."""
        return torch.zeros_like(hidden_states) if residual is None else residual


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
            self, query, key, value, attention_mask, scaling=self.scaling,
            dropout=self.attention_dropout if self.training else 0.0,
            sliding_window=getattr(self, "sliding_window", getattr(self.config, "sliding_window", None)),
            **kwargs,
        )  # fmt: skip
        return self.o_proj(output.reshape(*before, -1).contiguous()), weights


def narrow(attention: nn.Module, rotary: Tensor) -> nn.Module:
    """An attention of the family, whose projections have these pairs only, told so in place.

    It stays one of its family's class, which is where transformers looks for attention maps.
    """
    attention.head_dim = 2 * rotary.shape[1]
    attention.register_buffer("rotary", rotary)
    attention.__class__ = _with(NarrowAttention, attention.__class__)
    return attention


@cache
def _with(mixin: type, family: type) -> type:
    """The family's class with the forward of this one in front of its own."""
    name = mixin.__name__.removesuffix("Attention") + family.__name__
    return family if issubclass(family, mixin) else type(name, (mixin, family), {})


class AlibiAttention(nn.Module):
    """An attention that takes of the model's position biases, one a head of the parent, those of its heads.

    `heads` (heads,) are the numbers that its heads have in the parent. See `keep_biases`.
    """

    heads: Tensor
    parent_heads: int

    def forward(
        self,
        hidden_states: Tensor,
        *args: Any,
        alibi: Tensor | None,
        attention_mask: Tensor | None,
        **kwargs: Any,
    ) -> Any:
        """As the family's own, with the biases of its own heads."""
        if alibi is not None:  # (batch * parent's heads, 1, length); falcon's has both apart
            each = alibi if alibi.dim() == 4 else alibi.view(-1, self.parent_heads, *alibi.shape[1:])
            each = each[:, self.heads]
            alibi = each if alibi.dim() == 4 else each.flatten(0, 1)
            if attention_mask is not None and attention_mask.shape[1] == self.parent_heads > 1:
                attention_mask = attention_mask[:, self.heads]  # falcon folds the biases into its masks
        return super().forward(hidden_states, *args, alibi=alibi, attention_mask=attention_mask, **kwargs)


def keep_biases(attention: nn.Module, heads: Tensor, parent_heads: int) -> nn.Module:
    """An attention with ALiBi biases, told in place which heads of the parent it has."""
    attention.parent_heads = parent_heads
    attention.register_buffer("heads", heads)
    attention.__class__ = _with(AlibiAttention, attention.__class__)
    return attention


class OwnHeads:
    """The model's configuration but for a block's own number of query heads."""

    def __init__(self, config: Any, heads: int) -> None:
        self.__dict__.update(shared=config, num_attention_heads=heads)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # what copying looks for before there is anything here
            raise AttributeError(name)
        return getattr(self.shared, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.shared, name, value)


def head_dim_of(attention: nn.Module) -> int:
    """The width of its heads."""
    return int(attention.head_dim if hasattr(attention, "head_dim") else attention.head_size)


def set_heads(attention: nn.Module, groups: int, queries: int, head_dim: int) -> None:
    """Tell an attention that it has so many KV groups of so many queries, by the names that it knows."""
    heads = groups * queries
    known = dict(num_heads=heads, num_attention_heads=heads, split_size=heads * head_dim)
    known |= dict(num_key_value_heads=groups, num_kv_heads=groups, num_key_value_groups=queries)
    for name in filter(lambda name: hasattr(attention, name), known):
        setattr(attention, name, known[name])


def set_config(block: nn.Module, config: Any, layout: Layout, heads: int) -> None:
    """Give the modules of a block this configuration, so that a later change of it is theirs, too."""
    for name, module in block.named_modules():
        if "config" in module.__dict__:
            own = layout.heads_in_config and name == layout.attention
            module.config = OwnHeads(config, heads) if own else config


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
        with as_uniform(self):
            super().validate()


@contextmanager
def as_uniform(config: PreTrainedConfig) -> Iterator[None]:
    """A configuration that for a while has the global widths only, and does not warn of those that vary."""
    varying = config.__dict__.pop("_heterogeneity_spec", None)
    try:
        yield
    finally:
        if varying is not None:
            config._heterogeneity_spec = varying


def _head_dim(config: SubnetConfig) -> int:
    with as_uniform(config):
        return super(SubnetConfig, config).head_dim


if isinstance(getattr(FamilyConfig, "head_dim", None), property):  # falcon's divides by its global heads
    SubnetConfig.head_dim = property(_head_dim)


class SubnetForCausalLM(FamilyForCausalLM):
    """The family's model with every block built from its own entry in `per_layer_config`."""

    config_class = SubnetConfig

    def __init__(self, config: SubnetConfig) -> None:
        if not hasattr(config, "is_heterogeneous"):
            raise ImportError("this checkpoint needs transformers 5.14 or newer")
        depth = config.num_hidden_layers
        widths = [config.per_layer_config[index] for index in range(depth)]
        with as_uniform(config):
            config.num_hidden_layers = 0  # the family's blocks would all be built at the full width
            super().__init__(config)
            config.num_hidden_layers = depth
            for name, module in self.named_modules():
                if name.endswith("rotary_emb"):  # asks for the global widths at every long text
                    module.config = copy(config)
        kinds = getattr(config, "layer_types", None) or [None] * depth
        slots = cache_slots(kinds, ["attention" not in own.skip for own in widths])
        layers = self.get_submodule(LAYOUT.layers)
        for index, own in enumerate(widths):
            layers.append(build_block(config, own, index, slots[index]))
        self.post_init()

    def _get_static_cache_init_shape(self) -> None:
        """None in advance: a cache layer takes the shape of the first keys it gets (see `cache_slots`)."""


def build_block(config: SubnetConfig, own: SubnetConfig, index: int, slot: int) -> nn.Module:
    """One block of the widths in `own`, whose keys and values go to layer `slot` of the cache."""
    with as_uniform(config):
        block = FamilyBlock(config, index)
    set_config(block, config, LAYOUT, own.num_attention_heads)
    if "attention" in own.skip:
        skip_attention(block, LAYOUT)
    else:
        build_attention(block, own, slot)
    if "mlp" in own.skip:
        skip_mlp(block, LAYOUT)
    else:
        build_mlp(block, own)
    return block


def build_attention(block: nn.Module, own: SubnetConfig, slot: int) -> None:
    """Change the attention of a block as its family builds it to the widths in `own`."""
    attention = block.get_submodule(LAYOUT.attention)
    setattr(attention, LAYOUT.slot, slot)
    heads, groups = own.num_attention_heads, own.num_key_value_heads
    whole = head_dim_of(attention)
    width = getattr(own, "head_width", whole)
    if LAYOUT.alibi:
        keep_biases(attention, torch.zeros(heads, dtype=torch.long), attention.num_heads)
    set_heads(attention, groups, heads // groups, width)
    rows = {"q_proj": heads * width, "k_proj": groups * width, "v_proj": groups * width}
    if LAYOUT.qkv:
        rows = {LAYOUT.qkv: sum(rows.values())}
    for name, count in rows.items():
        resize(block, LAYOUT.within("attention", name), rows=count)
    output = LAYOUT.within("attention", LAYOUT.output)
    resize(block, output, columns=heads * width, bias="attention" in getattr(own, "output_bias", ()))
    if width < whole:
        attention.scaling = whole**-0.5
        narrow(attention, torch.zeros(groups, width // 2, dtype=torch.long))


def build_mlp(block: nn.Module, own: SubnetConfig) -> None:
    """Change the MLP of a block as its family builds it to the widths in `own`."""
    width = getattr(own, LAYOUT.width)
    if LAYOUT.experts:
        keep_experts(block.get_submodule(LAYOUT.mlp), width)
        return
    inputs = [LAYOUT.gate_up] if LAYOUT.gate_up else ["gate_proj", LAYOUT.up] if LAYOUT.gated else [LAYOUT.up]
    for name in inputs:
        resize(block, LAYOUT.within("mlp", name), rows=width * (1 + bool(LAYOUT.gate_up)))
    down = LAYOUT.within("mlp", LAYOUT.down)
    resize(block, down, columns=width, bias="mlp" in getattr(own, "output_bias", ()))


def keep_experts(mlp: nn.Module, count: int) -> None:
    """Leave a mixture of experts its first ones, and views of their weights."""
    for module, names in ((mlp.gate, ("weight",)), (mlp.experts, ("gate_up_proj", "down_proj"))):
        module.num_experts = count
        for name in names:
            setattr(module, name, nn.Parameter(getattr(module, name)[:count]))


def skip_attention(block: nn.Module, layout: Layout) -> None:
    """Put an absent attention, and absent norms, into a block."""
    block.set_submodule(layout.attention, NoAttention())
    for name in layout.attention_norms:
        setattr(block, name, nn.Identity())


def skip_mlp(block: nn.Module, layout: Layout) -> None:
    """Put an absent MLP, and absent norms, into a block."""
    if layout.mlp:
        block.set_submodule(layout.mlp, NoMlp())
    else:  # the block itself holds the matrices (opt)
        block.set_submodule(layout.up, nn.Identity())
        block.set_submodule(layout.down, NoMlp())
    for name in layout.mlp_norms:
        setattr(block, name, nn.Identity())


def resize(
    block: nn.Module, path: str, rows: int | None = None, columns: int | None = None, bias: bool = False
) -> None:
    """Put a projection of this size, with a `bias` if wanted, in the place of a block's own."""
    old = block.get_submodule(path)
    transposed = isinstance(old, Conv1D)
    out, within = old.weight.shape[::-1] if transposed else old.weight.shape
    rows, columns = rows or out, columns or within
    bias = bias or old.bias is not None
    new = Conv1D(rows, columns) if transposed else type(old)(columns, rows, bias=bias)
    block.set_submodule(path, new)
