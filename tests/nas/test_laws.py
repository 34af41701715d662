"""Every law holds for every family, and a fault planted for each law is found by it."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from transformers import AutoConfig, PreTrainedConfig

from data.errors import InputError
from nas import export, ranking, residual, subnet
from nas.families import FAMILIES, Family, check_supported, family_of, unknown
from nas.laws import LAWS, broken, check_family, saving
from nas.laws.case import Case
from nas.laws.shrink import tiny_config
from nas.repair import bank, sequential
from tests.nas.tiny_models import PARENTS, case_of, config_of

Patch = pytest.MonkeyPatch


@pytest.mark.parametrize("name", PARENTS)
def test_a_family_keeps_every_law(name: str) -> None:
    case = case_of(name)
    wrong = {law: sentence for law in LAWS if (sentence := broken(law, case))}
    assert not wrong
    # With static caches it is wrong, or impossible, for the whole parents of these, too.
    with torch.no_grad():
        assert case.takes_static_cache == (name not in ("gpt_neo", "falcon-alibi"))


def test_every_family_is_tried() -> None:
    assert {name.split("-")[0] for name in PARENTS} == set(FAMILIES)


def entry(kind: str, name: str, **other: object) -> Callable[[Patch], None]:
    """The family's entry in the table with other words in it: of its layout, or of itself."""

    def plant(patch: Patch) -> None:
        right = family_of(config_of(name))
        layout = {key: value for key, value in other.items() if key in right.layout._fields}
        own = {key: value for key, value in other.items() if key not in layout}
        settings = {**vars(right), **own, "layout": right.layout._replace(**layout)}
        patch.setitem(FAMILIES, kind, Family(**settings))

    return plant


def instead(
    module: object, name: str, make: Callable[[Callable[..., object]], object]
) -> Callable[[Patch], None]:
    """A function made of the right one, in its place."""
    return lambda patch: patch.setattr(module, name, make(getattr(module, name)))


def code(old: str, new: str) -> Callable[[Patch], None]:
    """Another line in the code that checkpoints carry."""

    def make(right: Callable[..., str]) -> Callable[..., str]:
        def wrong(*args: object) -> str:
            text = right(*args)
            assert old in text
            return text.replace(old, new)

        return wrong

    return instead(export, "_code_for", make)


def noisy(right: Callable[..., torch.nn.Linear]) -> Callable[..., torch.nn.Linear]:
    def wrong(linear: torch.nn.Linear, *args: object) -> torch.nn.Linear:
        new = right(linear, *args)
        new.weight = torch.nn.Parameter(new.weight * 1.00001, requires_grad=False)
        return new

    return wrong


def writing(right: Callable[..., torch.nn.Linear]) -> Callable[..., torch.nn.Linear]:
    def wrong(linear: torch.nn.Linear, *args: object) -> torch.nn.Linear:
        linear.weight.data.mul_(1.001)
        return right(linear, *args)

    return wrong


def copying(right: Callable[..., torch.nn.Linear]) -> Callable[..., torch.nn.Linear]:
    def wrong(*args: object) -> torch.nn.Linear:
        new = right(*args)
        new.weight = torch.nn.Parameter(new.weight.clone(), requires_grad=False)
        return new

    return wrong


def without_gain(right: Callable[..., torch.nn.Module]) -> Callable[..., torch.nn.Module]:
    def wrong(norm: torch.nn.Module, config: PreTrainedConfig) -> torch.nn.Module:
        new = right(norm, config)
        new.weight = torch.nn.Parameter(norm.weight[: config.hidden_size], requires_grad=False)
        return new

    return wrong


SHARDLESS = """def save_pretrained(self, folder, **more):
        more.pop("max_shard_size")
        super().save_pretrained(folder, **more)

    def _get_static_cache_init_shape"""

# The fault -> the law that finds it, a parent, how it is planted.
FAULTS: dict[str, tuple[str, str, Callable[[Patch], None]]] = {
    "a norm is not named": ("layout", "glm4", entry("glm4", "glm4", mlp_post="")),
    "a norm's name is wrong": ("layout", "llama", entry("llama", "llama", mlp_pre="ffn_norm")),
    "norms are exchanged": (
        "stream replayed", "gemma2",
        entry("gemma2", "gemma2", mlp_pre="post_feedforward_layernorm", mlp_post="pre_feedforward_layernorm"),
    ),
    "a grouped matrix is taken for stacked ones": (
        "permutation", "gpt_neox", entry("gpt_neox", "gpt_neox", grouped=False),
    ),
    "a stacked matrix is taken for a grouped one": (
        "permutation", "phi3", entry("phi3", "phi3", grouped=True),
    ),
    "transposed matrices are taken for upright ones": (
        "plain projections", "gpt2", entry("gpt2", "gpt2", transposed=False),
    ),
    "position biases are forgotten": ("permutation", "bloom", entry("bloom", "bloom", alibi=False)),
    "a parallel MLP is taken for a serial one": (
        "stream replayed", "gpt_neox", entry("gpt_neox", "gpt_neox", parallel=False),
    ),
    "norms over all heads are taken for those of each": (
        "permutation", "olmo2", entry("olmo2", "olmo2", whole_attention=False),
    ),
    "a cache of query heads is counted as one of groups": (
        "costs", "falcon-groups", entry("falcon", "falcon-groups", caches_queries=False),
    ),
    "a width outside of the blocks is forgotten": (
        "narrower is masked", "gemma", entry("gemma", "gemma", fixed_hidden=""),
    ),
    "heads read in the configuration are forgotten": (
        "cut is masked", "phi3", entry("phi3", "phi3", heads_in_config=False),
    ),
    "channels are reordered on one side": (
        "permutation", "llama",
        instead(
            ranking, "reorder_channels", lambda _: lambda layer, order: ranking._reorder(layer.up_proj, order)
        ),
    ),
    "weights are rounded": ("keep everything", "llama", instead(subnet, "sliced", noisy)),
    "the parent is written to": ("parent untouched", "llama", instead(subnet, "sliced", writing)),
    "views are copies": ("views", "llama", instead(subnet, "sliced", copying)),
    "repaired matrices are copied": ("repaired views", "llama", instead(subnet, "writer", copying)),
    "cache slots are block numbers": (
        "cache", "llama", instead(subnet, "cache_slots", lambda _: lambda kinds, _: [*range(len(kinds))]),
    ),
    "cache slots are block numbers once loaded": ("saved is cut", "llama", code("slots[index])", "index)")),
    "gains are not narrowed": ("narrower is masked", "llama", instead(subnet, "cut_norm", without_gain)),
    "loading changes the configuration": (
        "saved twice", "llama",
        code("self.post_init()\n", "self.post_init(); config.times = [config.name_or_path]\n"),
    ),
    "a checkpoint is one file always": (
        "saved in shards", "llama", code("def _get_static_cache_init_shape", SHARDLESS),
    ),
    "ties are lost": (
        "ties", "llama",
        instead(
            export, "_settings",
            lambda right: lambda *args: {**right(*args), "tie_word_embeddings": False},
        ),
    ),
    "halves are saved as singles": (
        "half precision", "llama",
        instead(saving, "save_checkpoint", lambda right: partial(right, dtype=torch.float32)),
    ),
    "a type of its own is not given": ("needs its code", "llama", code('f"secateur_{FAMILY}"', "FAMILY")),
    "norms behind modules keep their order": (
        "stream moved", "glm4", instead(residual, "_norms_behind", lambda _: lambda _: []),
    ),
    "the epsilon of a narrower stream is lost": (
        "narrower is saved", "llama",
        instead(
            export, "width_settings",
            lambda right: lambda *args: {k: v for k, v in right(*args).items() if k != "rms_norm_eps"},
        ),
    ),
    "the least active channels come first": (
        "unused channels", "llama",
        lambda patch: patch.setattr(
            residual.StreamStatistics, "order", property(lambda self: self.activation.argsort())
        ),
    ),
    "repair keeps the columns as they are": (
        "one-pass repair", "llama",
        instead(
            bank, "_prefixes",
            lambda right: lambda weight, gram, widths: (
                {k: weight[:, :k] for k in widths}, right(weight, gram, widths)[1]
            ),
        ),
    ),
    "repair forgets what it pulls towards": (
        "front-to-back repair", "llama",
        instead(sequential, "ridge", lambda right: lambda g, c, towards, d: right(g, c, towards, d) * 0.9),
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    law, name, plant = FAULTS[fault]
    plant(monkeypatch)
    assert broken(law, Case(config_of(name)))


def test_every_law_finds_a_fault() -> None:
    assert {law for law, _, _ in FAULTS.values()} == set(LAWS)


def test_the_first_broken_law_is_named_with_its_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[str] = []
    FAULTS["weights are rounded"][2](monkeypatch)
    with pytest.raises(
        AssertionError, match="llama breaks the law 'keep everything': logits .* off by up to"
    ):
        check_family(AutoConfig.for_model("llama"), kept.append)
    assert kept == [*LAWS][: [*LAWS].index("keep everything")]


REAL: dict[str, dict[str, object]] = {
    "llama": dict(
        hidden_size=4096, num_attention_heads=32, num_key_value_heads=8, eos_token_id=[128001, 128008],
        rope_parameters=dict(
            rope_type="llama3", rope_theta=5e5, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
            original_max_position_embeddings=8192,
        ),
    ),
    "phi": dict(hidden_size=2560, num_attention_heads=32, partial_rotary_factor=0.4),
    "phi3": dict(
        hidden_size=3072, num_attention_heads=32, max_position_embeddings=131072,
        rope_parameters=dict(
            rope_type="longrope", rope_theta=1e4, short_factor=[1.0] * 48, long_factor=[2.0] * 48,
            original_max_position_embeddings=4096,
        ),
    ),
    "falcon": dict(hidden_size=8192, num_attention_heads=128, num_kv_heads=8, new_decoder_architecture=True),
    "granite": dict(attention_multiplier=0.0078125, embedding_multiplier=12.0, residual_multiplier=0.22),
    "gemma3_text": dict(num_hidden_layers=34),
}  # fmt: skip


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_real_model_is_made_tiny_with_its_switches_as_they_are(kind: str) -> None:
    config = AutoConfig.for_model(kind, **REAL.get(kind, {}))
    before = config.to_dict()
    tiny, changes = tiny_config(config)
    assert config.to_dict() == before
    assert changes[config.attribute_map.get("hidden_size", "hidden_size")] == (config.hidden_size, 32)
    assert tiny.num_hidden_layers == 3 and type(tiny) is type(config)
    assert vars(family_of(tiny)) == vars(family_of(config))
    switches = {name: value for name, value in before.items() if isinstance(value, bool | str)}
    after = tiny.to_dict()
    assert {name: after[name] for name in switches} == switches
    kinds = getattr(config, "layer_types", None) or []
    assert set(getattr(tiny, "layer_types", None) or []) == set(kinds)
    for law in ("layout", "cut is masked", *(("saved is cut",) if kind in REAL else ())):
        assert broken(law, Case(tiny)) is None


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (
            "persimmon",
            "'persimmon' is not supported: its blocks have no module 'self_attn.q_proj' .nor 6",
        ),
        ("gpt_bigcode", "it has no list of blocks at 'model.layers'.*add-a-model-family.md says how"),
        ("apertus", "its blocks have no module 'mlp.gate_proj'"),
        ("t5", "transformers builds no causal language model of it"),
        ("mpt", "its attention biases are built inside"),
    ],
)
def test_an_unknown_family_says_what_it_lacks(kind: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        check_supported(AutoConfig.for_model(kind))


def test_an_unknown_family_like_llama_may_take_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(FAMILIES, "helium")
    with pytest.raises(InputError, match="one line in nas/families/table.py may .*check_family helium tries"):
        check_supported(AutoConfig.for_model("helium"))


def test_what_is_no_linear_map_is_named() -> None:
    block = torch.nn.Module()
    found = unknown._missing(block)
    assert len(found) == len(unknown.LLAMA)
    for path in unknown.LLAMA:
        parts = path.split(".")
        if len(parts) > 1 and not hasattr(block, parts[0]):
            block.add_module(parts[0], torch.nn.Module())
        block.set_submodule(path, torch.nn.Linear(2, 2))
    assert unknown._missing(block) == []
    block.self_attn.o_proj = torch.nn.Conv1d(2, 2, 1)
    assert unknown._missing(block) == ["'self_attn.o_proj' of its blocks is a Conv1d and no plain linear map"]
