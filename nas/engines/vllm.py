"""vLLM, in one of two forms; what follows its rules as its code reads was not run on vLLM itself.

`block_configs`: as DeciLM, which vLLM has natively. LLaMA's blocks, of which each may have its own KV heads
and FFN width, or lack a part; query heads are as many in all. Access goes by attribute, so the configuration
comes with code (`configuration_decilm.py`).

`per_layer_config`: vLLM's Transformers backend builds the model from the checkpoint's own modelling file, of
any family, and asks it for a model without head (`nas.engines.backbone`). The backend gives every block as
many query heads, and before vLLM's pull request 49797 as many KV heads, as the configuration says globally.

Both need attention in the first block. A subnet with one width for all blocks is a plain checkpoint, which
vLLM runs by its model type.
"""

from __future__ import annotations

import inspect
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data.errors import InputError
from nas.engines import backbone, configuration_decilm
from nas.engines.checkpoint import Checkpoint, number_of, read_json
from nas.engines.engine import Choices, Engine
from nas.engines.hf import DTYPES, copy_others, save_weights, tell, write_config
from nas.export import CODE
from nas.space import SearchSpace
from nas.whole import whole

DECILM = ("llama", "mistral", "qwen2")
"""Families that DeciLM computes: LLaMA with or without biases."""
SUPPORTED = (
    *DECILM, "ministral", "qwen3", "smollm3", "granite", "helium", "gemma", "gemma2", "gemma3_text",
)  # fmt: skip
"""Families whose subnets are written for it: those that name their projections as LLaMA does."""
DECILM_CODE = "configuration_decilm.py"
_SAME = (
    "attention_bias", "mlp_bias", "bos_token_id", "eos_token_id", "pad_token_id", "head_dim", "hidden_act",
    "hidden_size", "initializer_range", "max_position_embeddings", "num_attention_heads",
    "num_hidden_layers", "rms_norm_eps", "rope_parameters", "tie_word_embeddings", "vocab_size", "dtype",
)  # fmt: skip


def restrict(space: SearchSpace, config: Mapping[str, Any], added_biases: bool) -> SearchSpace:
    """All heads or none in each block, all in the first: every block's query heads are the parent's then, and
    its KV heads too, whatever vLLM's version; FFN widths as they are."""
    if added_biases:
        raise InputError(
            "vLLM has no place for the biases that --repair mean_bias adds to some blocks; give another"
        )
    _check_family(str(config["model_type"]))
    shape = space.shape
    kept: dict[str, tuple[int, ...]] = {}
    for name, choices in space.knobs.items():
        block, kind = name.split(".")
        whole = {"kv_groups": shape.kv_groups, "queries_per_group": shape.queries_per_group}.get(kind)
        if whole is not None:
            none = {0} & set(choices) if kind == "kv_groups" and block != "0" else set()
            kept[name] = tuple(sorted({whole, *none}))
    return space.restrict(kept)


def write(checkpoint: Checkpoint, out: Path, choices: Choices) -> list[str]:
    """A folder, in the form that suits."""
    own = checkpoint.has_own_type
    form = choices.form
    if form == "auto":
        form = "plain" if not own else "per_layer_config" if _not_decilm(checkpoint) else "block_configs"
    if form != "plain":
        _check_family(checkpoint.family)
    config = {
        "plain": _plain, "block_configs": block_configs, "per_layer_config": _per_layer
    }[form](checkpoint)  # fmt: skip
    with whole(out) as partial:
        partial.mkdir()
        copy_others(checkpoint, partial)
        if form == "block_configs":
            (partial / CODE).unlink(missing_ok=True)
            shutil.copy(configuration_decilm.__file__, partial / DECILM_CODE)
        if form == "per_layer_config":
            with (partial / CODE).open("a", encoding="utf-8") as code:
                code.write("\n\n" + inspect.getsource(backbone.SubnetModel))
        dtype = save_weights(checkpoint, partial, choices)
        write_config(config, dtype, partial)
        if form != "plain" or dtype is not None:
            weights = "" if dtype is None else f" Its weights are in {dtype}."
            tell(partial, f"This checkpoint was written for vLLM: {WORDS[form]}.{weights} {LOADING[form]}")
    return [
        f"written for vLLM: {WORDS[form]}",
        "not run on vLLM: its code was read, and this follows its rules",
    ]


WORDS = {
    "plain": "a plain checkpoint, which it runs by its model type",
    "block_configs": "as DeciLM; start it with --trust-remote-code",
    "per_layer_config": "for its Transformers backend; start it with --model-impl transformers "
    "--trust-remote-code",
}
LOADING = {
    "plain": "It loads as above.",
    "block_configs": "Transformers does not load it, whatever is said above.",
    "per_layer_config": "In transformers it loads as above.",
}
"""How transformers loads each form, for the model card."""


def _check_family(family: str) -> None:
    """Raise `InputError` for a family whose blocks may not differ."""
    if family not in SUPPORTED:
        raise InputError(
            f"subnets of the family {family!r} cannot be exported to vllm; {', '.join(SUPPORTED)} can, and "
            "any to hf"
        )


def _not_decilm(checkpoint: Checkpoint) -> str | None:
    """Why DeciLM does not compute what a model does, if it does not."""
    config = checkpoint.config
    if checkpoint.family not in DECILM:
        return f"DeciLM is LLaMA, and {checkpoint.family!r} is not"
    if config.get("hidden_act", "silu") != "silu":
        return f"DeciLM's activation is silu, and this one's {config['hidden_act']!r}"
    window, longest = config.get("sliding_window"), number_of(config, "max_position_embeddings")
    in_use = checkpoint.family == "mistral" or config.get("use_sliding_window")
    if in_use and window is not None and window < longest:
        return f"attention sees a window of {window} of {longest} positions, and DeciLM's has none"
    return None


def _plain(checkpoint: Checkpoint) -> dict[str, Any]:
    """The configuration as it is."""
    if checkpoint.has_own_type:
        raise InputError("the blocks differ in width, which a plain checkpoint cannot say; give --form auto")
    return _stored(checkpoint)


def _stored(checkpoint: Checkpoint) -> dict[str, Any]:
    return read_json(checkpoint.folder / "config.json")


def _check_heads(checkpoint: Checkpoint) -> int:
    """The query heads that all blocks with attention have; `InputError` where these differ, or the first has
    none."""
    blocks = checkpoint.blocks
    if not blocks[0].heads:
        raise InputError(
            "the first block has no attention, which vLLM cannot run; search with --target vllm, or export "
            "to gguf or hf"
        )
    counts = sorted({block.heads for block in blocks if block.heads})
    if len(counts) > 1:
        raise InputError(
            f"the blocks have {', '.join(map(str, counts))} query heads, and vLLM runs one number for all; "
            "search with --target vllm, or export to gguf or hf"
        )
    return counts[0]


def _check_output_biases(checkpoint: Checkpoint) -> None:
    """Raise `InputError` for biases of some blocks' output matrices alone (see `nas.repair.steps`)."""
    for setting, name in (("attention_bias", "o_proj.bias"), ("mlp_bias", "down_proj.bias")):
        found = [each for each in checkpoint.places if each.endswith(name)]
        if found and not checkpoint.config.get(setting):
            raise InputError(f"{found[0]} is a bias that vLLM has no place for; repair without biases")


def block_configs(checkpoint: Checkpoint) -> dict[str, Any]:
    """The configuration of DeciLM for a checkpoint; `InputError` for what it cannot say."""
    config = checkpoint.config
    why = _not_decilm(checkpoint)
    if why is not None:
        raise InputError(f"{why}; give --form per_layer_config")
    heads = _check_heads(checkpoint)
    _check_output_biases(checkpoint)
    settings = {name: config[name] for name in _SAME if name in config}
    if checkpoint.family == "qwen2":  # biases of queries, keys and values alone
        settings |= {"attention_bias": False, "qkv_bias": True}
    return settings | {
        "model_type": "nemotron-nas",
        "architectures": ["DeciLMForCausalLM"],
        "auto_map": {"AutoConfig": "configuration_decilm.DeciLMConfig"},
        "head_dim": checkpoint.head_dim,
        "num_attention_heads": heads,
        "num_key_value_heads": max(block.kv_heads for block in checkpoint.blocks),
        "intermediate_size": max(block.ffn for block in checkpoint.blocks),
        "block_configs": [
            {
                "attention": {
                    "n_heads_in_group": block.heads // block.kv_heads if block.heads else None,
                    "no_op": not block.heads,
                    "replace_with_linear": False,
                },
                "ffn": {
                    "intermediate_size": block.ffn or None,
                    "hidden_act": config.get("hidden_act", "silu"),
                    "no_op": not block.ffn,
                    "replace_with_linear": False,
                },
            }
            for block in checkpoint.blocks
        ],
    }


def _per_layer(checkpoint: Checkpoint) -> dict[str, Any]:
    """The subnet's own configuration, that also says where its model without head is, and the heads that all
    blocks have; a block without attention says nothing of heads."""
    if not (checkpoint.folder / CODE).is_file():
        raise InputError(f"{checkpoint.folder} has no {CODE}, and is plain: give --form auto")
    heads, config = _check_heads(checkpoint), _stored(checkpoint)
    kv_heads = sorted({block.kv_heads for block in checkpoint.blocks if block.heads})
    config["num_attention_heads"] = heads
    config["num_key_value_heads"] = max(kv_heads)
    layers: dict[str, dict[str, Any]] = {}
    for index, block in enumerate(checkpoint.blocks):
        own = dict(_layer(config, index))
        for name in ("num_attention_heads", "num_key_value_heads"):
            own.pop(name, None)
        if block.heads and block.kv_heads != config["num_key_value_heads"]:
            own["num_key_value_heads"] = block.kv_heads
        if own:
            layers[str(index)] = own
    config["per_layer_config"] = layers
    config["auto_map"]["AutoModel"] = f"{Path(CODE).stem}.SubnetModel"
    return config


def _layer(config: Mapping[str, Any], index: int) -> Mapping[str, Any]:
    """What `per_layer_config` says of a block; its keys may have zeros before the number."""
    found = [own for key, own in config.get("per_layer_config", {}).items() if int(key) == index]
    return found[0] if found else {}


ENGINE = Engine(
    "vLLM", ("auto", *DTYPES), restrict, write, forms=("auto", "block_configs", "per_layer_config")
)
