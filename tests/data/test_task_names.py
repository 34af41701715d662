"""Old ids of tasks and abbreviations find the task or say which to give; its data set is the harness's."""

import re
from pathlib import Path

import pytest

from data.errors import InputError
from data.tasks import TASKS, canonical, read_task
from data.tasks.names import OF_THE_HARNESS, OTHER_NAMES, SEVERAL, task_called


@pytest.mark.parametrize(
    ("name", "task"),
    [
        ("piqa", "piqa"),
        ("ybisk/piqa", "piqa"),
        ("baber/piqa", "piqa"),
        ("Rowan/hellaswag", "hellaswag"),
        ("MMLU", "mmlu"),
        ("hendrycks_test", "mmlu"),
        ("ARC-e", "arc_easy"),
        ("allenai/ai2_arc:ARC-Challenge", "arc_challenge"),
        ("obqa", "openbookqa"),
        ("sciq", "sciq"),
        ("nothing of the kind", "nothing of the kind"),
    ],
)
def test_what_people_call_a_task(name: str, task: str) -> None:
    assert canonical(name) == task


def test_every_task_is_found_by_its_own_id_and_no_name_is_of_two() -> None:
    assert set(OTHER_NAMES) == set(TASKS)
    assert {canonical(form.hub) for form in TASKS.values()} == set(TASKS)
    names = [name for names in OTHER_NAMES.values() for name in names] + [*SEVERAL, *OF_THE_HARNESS, *TASKS]
    assert sorted(names) == sorted({name.lower() for name in names})


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("arc", "there is no task 'arc': give arc_easy,arc_challenge$"),
        ("super_glue", "there is no task 'super_glue': give boolq,copa$"),
        ("lambada", "there is no task 'lambada': give lambada_openai --engine harness$"),
        ("tau/commonsense_qa", "give commonsense_qa --engine harness$"),
        ("helaswag", "there is no task 'helaswag': give hellaswag$"),
    ],
)
def test_a_name_that_is_no_task_says_what_to_give(name: str, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        read_task(name)
    assert task_called("nothing of the kind") == ""


def test_data_sets_are_those_of_the_harness() -> None:
    lm_eval = pytest.importorskip("lm_eval.tasks")
    folder = Path(lm_eval.__file__).parent
    places = {
        "arc_easy": "arc/arc_easy.yaml", "arc_challenge": "arc/arc_easy.yaml",
        "boolq": "super_glue/boolq/default.yaml", "copa": "super_glue/copa/default.yaml",
        "hellaswag": "hellaswag/hellaswag.yaml",
        "mmlu": "mmlu/default/_default_template_yaml", "openbookqa": "openbookqa/openbookqa.yaml",
        "piqa": "piqa/piqa.yaml", "winogrande": "winogrande/default.yaml",
    }  # fmt: skip
    assert set(places) == set(TASKS)
    for name, place in places.items():
        found = re.search(r"^dataset_path: (\S+)", (folder / place).read_text(encoding="utf-8"), re.MULTILINE)
        assert found and found[1] == TASKS[name].hub.partition(":")[0]
