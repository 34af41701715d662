"""Recovery: a copy is trained, the same way every time, and comes back as a plain model."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel, dynamic_module_utils

from data.errors import InputError
from nas.building import RecoveredMeter, SubnetMeter
from nas.evaluate import evaluate
from nas.export import save_checkpoint
from nas.recovery import METHODS, Recipe
from nas.recovery.teacher import LiveTeacher, stored_teacher
from nas.recovery.training import Recovered, recover
from nas.shape import widths_of
from nas.subnet import cut
from tests.nas.tiny_models import CUTS, PARENTS, architecture_of_cut, permuted_parent, tokens

WINDOWS = tokens(length=12, batch=10, seed=5)
RECIPE = Recipe(batch_size=4, validate_every=2, save_every=2)
STEPS = 5


def needs_peft(method: str) -> str:
    if method == "lora":
        pytest.importorskip("peft", reason="LoRA needs the optional extra secateur[lora]")
    return method


@pytest.fixture(params=METHODS)
def method(request: pytest.FixtureRequest) -> str:
    return needs_peft(request.param)


def subnet_of(name: str = "llama", kind: str = "narrow") -> PreTrainedModel:
    """Views of a parent that all tests share."""
    parent, shape = permuted_parent(name)
    return cut(parent, shape, architecture_of_cut(kind, shape))


def weights(model: PreTrainedModel) -> dict[str, Tensor]:
    return {name: each.detach().clone() for name, each in model.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(each, other[name]) for name, each in one.items())


def bits(model: PreTrainedModel) -> dict[str, bytes]:
    return {
        name: each.detach().contiguous().view(torch.uint8).numpy().tobytes()
        for name, each in model.state_dict().items()
    }


@pytest.mark.parametrize("kind", CUTS)
def test_the_given_model_and_its_parent_stay_as_they_are(method: str, kind: str) -> None:
    parent, subnet = permuted_parent("llama")[0], subnet_of(kind=kind)
    before, of_parent = weights(subnet), weights(parent)
    recovered = recover(subnet, WINDOWS, method=method, steps=2, recipe=RECIPE)
    assert same(weights(subnet), before)
    assert same(weights(parent), of_parent)
    assert not any(each.requires_grad for each in (*subnet.parameters(), *recovered.model.parameters()))
    assert not subnet.training
    assert not recovered.model.training
    assert not same(weights(recovered.model), before)
    assert {name: each.shape for name, each in weights(recovered.model).items()} == {
        name: each.shape for name, each in before.items()
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_steps_change_no_bit(method: str, dtype: torch.dtype) -> None:
    subnet = cut_in(dtype)
    assert bits(recover(subnet, WINDOWS, method=method, steps=0).model) == bits(subnet)


def cut_in(dtype: torch.dtype) -> PreTrainedModel:
    parent, shape = permuted_parent("llama")
    return cut(parent, shape, architecture_of_cut("narrow", shape), own=True).to(dtype)


def test_the_result_has_the_models_dtypes(method: str) -> None:
    subnet = cut_in(torch.bfloat16)
    recovered = recover(subnet, WINDOWS, method=method, steps=2, recipe=RECIPE)
    assert {each.dtype for each in recovered.model.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("name", PARENTS)
def test_every_family_learns(name: str, method: str) -> None:
    """The training loss on the same windows falls, whatever norms and biases a family has."""
    subnet = subnet_of(name, "all at once")
    recipe = Recipe(batch_size=10, learning_rate=3e-3, dropout=0.0)
    history = recover(subnet, WINDOWS, method=method, steps=8, recipe=recipe).history
    assert history[-1].loss < history[1].loss


def test_distillation_brings_a_subnet_nearer_to_its_parent(method: str) -> None:
    parent, _ = permuted_parent("llama")
    subnet = subnet_of()
    recipe = Recipe(batch_size=10, learning_rate=5e-3)
    recovered = recover(subnet, WINDOWS, method=method, steps=20, recipe=recipe, teacher=LiveTeacher(parent))
    before, after = (evaluate(each, WINDOWS, parent=parent).kl for each in (subnet, recovered.model))
    assert after < 0.8 * before


def test_full_recovery_leaves_embeddings_and_head_alone_unless_asked() -> None:
    for embeddings in (False, True):
        before = weights(subnet_of())
        recipe = Recipe(batch_size=4, embeddings=embeddings)
        after = weights(recover(subnet_of(), WINDOWS, steps=2, recipe=recipe).model)
        changed = {name for name in after if not torch.equal(after[name], before[name])}
        inside = {name for name in after if name.startswith("model.layers.")}
        assert changed == (set(after) if embeddings else inside)


def test_a_parent_alone_has_nothing_to_learn_from_itself() -> None:
    parent, _ = permuted_parent("llama")
    recipe = Recipe(batch_size=4, weight_decay=0.0)
    history = recover(parent, WINDOWS, steps=1, recipe=recipe, teacher=LiveTeacher(parent)).history
    assert abs(history[1].loss) < 1e-6


def test_the_same_seed_trains_the_same_and_another_does_not(method: str) -> None:
    def run(seed: int) -> dict[str, Tensor]:
        torch.rand(seed + 3)  # the global generator does not matter
        recipe = Recipe(batch_size=4, seed=seed)
        return weights(recover(subnet_of(), WINDOWS, method=method, steps=3, recipe=recipe).model)

    first = run(0)
    assert same(run(0), first)
    assert not same(run(1), first)


def test_the_global_generator_is_left_as_it_is(method: str) -> None:
    before = torch.get_rng_state()
    recover(subnet_of(), WINDOWS, method=method, steps=2, recipe=RECIPE)
    assert torch.equal(torch.get_rng_state(), before)


def test_small_forward_passes_make_the_same_step() -> None:
    whole, parts = (
        weights(recover(subnet_of(), WINDOWS, steps=1, recipe=Recipe(batch_size=4, micro_batch=each)).model)
        for each in (None, 3)
    )
    for name, each in whole.items():
        # Adam's first step is the gradient's sign times the rate, so rounding matters near gradients of 0.
        torch.testing.assert_close(parts[name], each, rtol=0, atol=1e-5)


class Stop(Exception):
    """In place of a power cut."""


@pytest.mark.parametrize("after", [1, 3, 4])
@pytest.mark.parametrize("validate", [False, True])
def test_an_interrupted_training_goes_on_to_the_same_result(
    method: str, after: int, validate: bool, tmp_path: Path
) -> None:
    parent, _ = permuted_parent("llama")
    more = {"teacher": stored_teacher(parent, WINDOWS, 5, tmp_path / "cache")}
    more |= {"validation": tokens(seed=9)} if validate else {}

    def train(path: Path | None, progress: Callable[[int], object]) -> Recovered:
        return recover(
            subnet_of(),
            WINDOWS,
            method=method,
            steps=STEPS,
            recipe=RECIPE,
            state=path,
            progress=progress,
            **more,
        )

    done: list[int] = []

    def stop(steps: int) -> None:
        done.append(steps)
        if sum(done) == after:
            raise Stop

    path = tmp_path / "state.safetensors"
    with pytest.raises(Stop):
        train(path, stop)
    resumed: list[int] = []
    found, whole = train(path, resumed.append), train(None, lambda _: None)
    assert sum(resumed) == STEPS
    assert len(resumed) == STEPS - after // 2 * 2 + (after >= 2)  # what was saved comes at once
    assert same(weights(found.model), weights(whole.model))
    assert found.history == whole.history
    assert found.kept_step == whole.kept_step


def test_a_state_of_another_training_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    recover(subnet_of(), WINDOWS, steps=2, recipe=RECIPE, state=path)
    before = path.read_bytes()
    for subnet, windows, steps, recipe in (
        (subnet_of(kind="no mlp"), WINDOWS, 2, RECIPE),
        (subnet_of(), WINDOWS[:9], 2, RECIPE),
        (subnet_of(), WINDOWS, 3, RECIPE),
        (subnet_of(), WINDOWS, 2, Recipe(batch_size=4, seed=1)),
    ):
        with pytest.raises(InputError, match="another training"):
            recover(subnet, windows, steps=steps, recipe=recipe, state=path)
    assert path.read_bytes() == before
    path.write_bytes(before[:100])
    with pytest.raises(InputError, match="cannot be read"):
        recover(subnet_of(), WINDOWS, steps=2, recipe=RECIPE, state=path)


def test_the_best_weights_by_validation_are_kept() -> None:
    """Far too fast a training only harms: the weights before it are the best there are."""
    validation = tokens(seed=9)
    recipe = Recipe(batch_size=4, learning_rate=0.5, validate_every=1)
    recovered = recover(subnet_of(), WINDOWS, steps=3, recipe=recipe, validation=validation)
    seen = {step.number: step.validation for step in recovered.history}
    assert recovered.kept_step == min(seen, key=lambda step: seen[step])
    assert evaluate(recovered.model, validation).nll == pytest.approx(seen[recovered.kept_step], rel=1e-6)
    assert list(seen) == [0, 1, 2, 3]


def test_rates_rise_to_the_highest_and_fall_to_nearly_nothing() -> None:
    rates = [Recipe(warmup=0.2).rate(step, 50) for step in range(50)]
    assert rates[:10] == sorted(rates[:10])
    assert rates[9] == max(rates) == 1
    assert rates[9:] == sorted(rates[9:], reverse=True)
    assert 0 < rates[-1] < 0.01
    assert Recipe().rate(0, 1) == 1


def test_every_window_is_seen_once_before_any_is_seen_twice() -> None:
    recipe = Recipe(batch_size=4)
    seen = torch.cat([recipe.rows(step, 10) for step in range(5)])
    assert sorted(seen[:10].tolist()) == sorted(seen[10:].tolist()) == list(range(10))
    assert not torch.equal(seen[:10], seen[10:])
    assert len(Recipe(batch_size=25).rows(0, 10)) == 25


@pytest.mark.parametrize("kind", CUTS)
@pytest.mark.parametrize("name", ["llama-biased", "gemma2", "helium"])
def test_merged_adapters_give_the_adapted_logits(name: str, kind: str) -> None:
    needs_peft("lora")
    lora = METHODS["lora"]
    subnet = cut_own(name, kind)
    plain = {key: type(each) for key, each in subnet.named_modules()}
    adapted = lora.attach(subnet, Recipe())
    trained = [each for key, each in adapted.named_parameters() if each.requires_grad]
    with torch.no_grad():
        for each in trained:
            each.normal_(std=0.2)
    with torch.no_grad():
        expected = adapted.eval()(tokens()).logits
        merged = lora.detach(adapted)
        found = merged(tokens()).logits
        unadapted = cut_own(name, kind)(tokens()).logits
    scale = float(expected.abs().max())
    # The same sums in another order, through three blocks.
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=2e-5 * scale)
    assert float((unadapted - expected).abs().max()) > 1e-2 * scale
    assert {key: type(each) for key, each in merged.named_modules()} == plain


def cut_own(name: str, kind: str) -> PreTrainedModel:
    parent, shape = permuted_parent(name)
    return cut(parent, shape, architecture_of_cut(kind, shape), own=True)


def test_every_projection_of_every_block_is_adapted() -> None:
    needs_peft("lora")
    adapted = METHODS["lora"].attach(cut_own("llama", "all at once"), Recipe(rank=3))
    shapes = {
        name.split("model.layers.")[1].split(".lora")[0]: tuple(each.shape)
        for name, each in adapted.named_parameters()
        if each.requires_grad and "lora_B" in name
    }
    # Block 0 has no attention, block 1 no MLP; the second keeps one head of 8 of the 32 hidden.
    assert shapes == {
        "0.mlp.gate_proj": (9, 3), "0.mlp.up_proj": (9, 3), "0.mlp.down_proj": (32, 3),
        "1.self_attn.q_proj": (8, 3), "1.self_attn.k_proj": (8, 3), "1.self_attn.v_proj": (8, 3),
        "1.self_attn.o_proj": (32, 3),
    }  # fmt: skip


def test_a_recovered_subnet_is_saved_and_loaded_like_any(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    parent, shape = permuted_parent("llama")
    architecture = architecture_of_cut("all at once", shape)
    recovered = recover(subnet_of(kind="all at once"), WINDOWS, method=method, steps=2, recipe=RECIPE).model
    save_checkpoint(recovered, parent.config, shape, architecture, tmp_path / "saved")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "saved", trust_remote_code=True)
    with torch.no_grad():
        assert torch.equal(loaded(tokens()).logits, recovered(tokens()).logits)


def test_the_meter_scores_what_recovery_ends_with() -> None:
    parent, shape = permuted_parent("llama")
    architecture = architecture_of_cut("narrow", shape)
    meter = SubnetMeter(parent, shape, None, tokens(seed=9), batch_size=2)
    teacher = LiveTeacher(parent)
    widths = widths_of(architecture, shape)
    measured = RecoveredMeter(meter, WINDOWS, 3, recipe=RECIPE, teacher=teacher)(widths)
    recovered = recover(subnet_of(), WINDOWS, steps=3, recipe=RECIPE, teacher=teacher)
    assert measured == evaluate(recovered.model, tokens(seed=9), batch_size=2)
    assert measured != meter(widths)
    assert RecoveredMeter(meter, WINDOWS, 0)(widths) == meter(widths)


def test_numbers_that_cannot_mean_anything_are_refused() -> None:
    for settings, words in (
        ({"steps": -1}, "-1 recovery steps"),
        ({"steps": 1, "method": "prayer"}, "give full or lora"),
        ({"steps": 1, "windows": WINDOWS[:0]}, "windows"),
        ({"steps": 1, "windows": WINDOWS[:, :1]}, "2 tokens"),
        ({"steps": 1, "validation": WINDOWS[0]}, "validation windows"),
        ({"steps": 3, "recipe": Recipe(learning_rate=1e30)}, "learning rate below"),
    ):
        with pytest.raises(InputError, match=words):
            recover(subnet_of(), settings.pop("windows", WINDOWS), **settings)
    for name, value in (
        ("batch_size", 0), ("micro_batch", 0), ("learning_rate", -1.0), ("learning_rate", float("nan")),
        ("warmup", 1.5), ("alpha", -0.1), ("seed", -1), ("clip", 0.0), ("dropout", 2.0),
    ):  # fmt: skip
        with pytest.raises(InputError, match=name):
            Recipe(**{name: value})


def test_lora_trains_no_embeddings() -> None:
    with pytest.raises(InputError, match="full only"):
        recover(subnet_of(), WINDOWS, method="lora", steps=1, recipe=Recipe(embeddings=True))


def test_without_peft_lora_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(InputError, match=r"pip install 'secateur\[lora\]'"):
        recover(subnet_of(), WINDOWS, method="lora", steps=1)
