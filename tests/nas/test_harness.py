"""The built-in scorer and lm-evaluation-harness, on the same questions: the same numbers."""

import importlib
import sys
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch

from data.errors import InputError
from data.tasks import TASKS, Task, read_task
from data.tasks.prompts import hellaswag_fields
from nas.families import shape_of
from nas.harness import harness_names, harness_task, harness_version
from nas.ranking import permute
from nas.subnet import cut
from nas.tasks import TaskScores, accuracy, log_likelihoods
from tests.data.tiny_tasks import expect_tiny, write_tasks
from tests.nas.byte_tokenizer import SIZE, byte_tokenizer
from tests.nas.tiny_models import architecture_of_cut, random_ranking, tiny_parent

installed = pytest.mark.skipif(
    find_spec("lm_eval") is None, reason="lm-evaluation-harness is not installed: pip install -e '.[eval]'"
)
# What third parties warn of is theirs.
lenient = pytest.mark.filterwarnings("ignore")
# The harness adds in float32, in batches of other shapes: a few dozen log-likelihoods up to 20 each.
ROUNDING = 2e-4


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    expect_tiny(monkeypatch)
    return write_tasks(tmp_path)


def built_in(model: torch.nn.Module, tokenizer: object, task: Task) -> tuple[TaskScores, np.ndarray]:
    pairs = [pair for item in task.items for pair in zip(item.contexts, item.continuations, strict=True)]
    found = log_likelihoods(model, tokenizer, pairs, batch_size=4)  # type: ignore[arg-type]
    return accuracy(task.items, found), found


@installed
@lenient
@pytest.mark.parametrize("begins", [False, True])
@pytest.mark.parametrize("name", TASKS)
def test_both_find_every_choice_equally_likely(name: str, begins: bool, folder: Path) -> None:
    # MMLU's five shots are longer than the model has positions, so that both must cut them.
    model = tiny_parent("llama", vocab_size=SIZE, max_position_embeddings=256)
    tokenizer = byte_tokenizer(begins=begins)
    task = read_task(name, folder)
    scores, found = built_in(model, tokenizer, task)
    theirs, likelihoods = harness_task(model, tokenizer, task, batch_size=3)
    np.testing.assert_allclose(found, likelihoods, atol=ROUNDING)
    assert scores == theirs
    assert len(found) == sum(len(item.continuations) for item in task.items)


@installed
@lenient
def test_all_shots_stand_in_a_context_that_is_long_enough(folder: Path) -> None:
    model = tiny_parent("llama", vocab_size=SIZE, max_position_embeddings=2048)
    task = read_task("mmlu", folder, limit=2)
    assert min(len(item.contexts[0]) for item in task.items) > 256
    found = built_in(model, byte_tokenizer(), task)[1]
    np.testing.assert_allclose(found, harness_task(model, byte_tokenizer(), task)[1], atol=ROUNDING)


@installed
@lenient
@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_subnets_are_scored_and_their_parent_stays_as_it_is(name: str, folder: Path) -> None:
    parent = tiny_parent(name, vocab_size=SIZE, max_position_embeddings=256)
    shape = shape_of(parent)
    parent = permute(parent, shape, random_ranking(shape))
    before = {key: weight.clone() for key, weight in parent.state_dict().items()}
    subnet = cut(parent, shape, architecture_of_cut("no first attention", shape))
    tokenizer, task = byte_tokenizer(), read_task("boolq", folder)
    found = built_in(subnet, tokenizer, task)[1]
    np.testing.assert_allclose(found, harness_task(subnet, tokenizer, task)[1], atol=ROUNDING)
    assert all(torch.equal(weight, before[key]) for key, weight in parent.state_dict().items())


@installed
@lenient
def test_released_hellaswag_is_cleaned_as_the_harness_cleans_it() -> None:
    texts = ["[header] How to bake [title] Mix  it. [step] now", "a [b] c", "the Cook", "", "x  [title] y "]
    rows = [
        {"activity_label": a, "ctx_a": b, "ctx_b": c, "endings": [a, b, c], "label": "1"}
        for a in texts
        for b in texts
        for c in texts
    ]
    theirs = importlib.import_module("lm_eval.tasks.hellaswag.utils").process_docs(
        datasets.Dataset.from_list(rows)
    )
    for row, cleaned in zip(rows, theirs, strict=True):
        ours = hellaswag_fields(row)
        assert (ours["query"], ours["choices"]) == (cleaned["query"], cleaned["choices"])
        assert ours["label"] == cleaned["gold"]


@installed
@lenient
def test_tasks_by_name_are_the_harness_s_own_affair(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    import lm_eval.tasks

    # Of the sixteen thousand files that define tasks, those of one folder; data sets as the tests have them.
    where = Path(lm_eval.tasks.__file__).parent / "piqa"
    manager = partial(lm_eval.tasks.TaskManager, include_path=str(where), include_defaults=False)
    monkeypatch.setattr(lm_eval.tasks, "TaskManager", manager)
    model, tokenizer = tiny_parent("llama", vocab_size=SIZE, max_position_embeddings=256), byte_tokenizer()
    with pytest.raises(InputError, match="has no task 'piqua'"):
        harness_names(model, tokenizer, ["piqua"])
    with pytest.raises(InputError, match="piqa cannot be read from the Hub"):
        harness_names(model, tokenizer, ["piqa"])
    task = read_task("piqa", folder, limit=2)
    rows = datasets.Dataset.from_list([dict(row) for row in read_task("piqa", folder).rows])
    splits = datasets.DatasetDict(dict.fromkeys(("train", "validation"), rows))
    monkeypatch.setattr(datasets, "load_dataset", lambda path, name: splits)
    found = harness_names(model, tokenizer, ["piqa"], limit=2)
    assert found == {"piqa": built_in(model, tokenizer, task)[0]}


@installed
@lenient
def test_a_tokenizer_without_a_beginning_is_the_built_in_scorer_s_alone(folder: Path) -> None:
    model = tiny_parent("llama", vocab_size=SIZE, max_position_embeddings=256)
    with pytest.raises(InputError, match="wants a tokenizer with a beginning or an end of text"):
        harness_task(model, byte_tokenizer(named=False), read_task("copa", folder))


def test_without_the_harness_a_sentence_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(InputError, match=r"pip install 'secateur\[eval\]'"):
        harness_version()
