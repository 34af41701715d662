"""Tasks: what each format reads as, and files that are not what they are called."""

from pathlib import Path

import datasets
import pytest

from data import tasks
from data.errors import InputError
from data.tasks import TASKS, Item, read_task
from data.tasks.prompts import hellaswag_fields
from tests.data.tiny_tasks import (
    ARC,
    BOOLQ,
    LINES,
    PIQA,
    SUBJECTS,
    expect_tiny,
    write_lines,
    write_tasks,
)

every_task = pytest.mark.parametrize("name", TASKS)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    expect_tiny(monkeypatch)
    return write_tasks(tmp_path)


def first(name: str, folder: Path) -> Item:
    return read_task(name, folder).items[0]


def test_arc_takes_three_to_five_choices_and_keys_that_are_digits(folder: Path) -> None:
    items = read_task("arc_easy", folder).items
    assert items[0].contexts == ("Question: Which is a gas?\nAnswer:",) * 4
    assert items[0].continuations == (" ice", " steam", " rock", " sand")
    assert [item.gold for item in items] == [1, 2, 1, 4]
    assert [len(item.continuations) for item in items] == [4, 3, 4, 5]
    assert items[1].lengths == (9, 14, 4)  # characters, not bytes


def test_boolq_reads_the_words_true_and_false(folder: Path) -> None:
    items = read_task("boolq", folder).items
    assert [item.gold for item in items] == [1, 0, 0]
    assert items[0].contexts[0] == "Water -- It is wet.\nQuestion: is water wet?\nAnswer:"
    assert items[0].continuations == (" no", " yes")


def test_winogrande_scores_what_follows_after_each_option(folder: Path) -> None:
    item = first("winogrande", folder)
    assert item.contexts == ("Ann met Sue so Ann", "Ann met Sue so Sue")
    assert item.continuations == (" left early.", " left early.")
    assert item.gold == 1


def test_the_other_formats(folder: Path) -> None:
    assert first("copa", folder).contexts[0] == "It rained therefore"
    assert first("copa", folder).continuations == ("  he got wet.", "  i slept.")
    assert first("hellaswag", folder).contexts[0] == "Baking: A man. He"
    assert first("hellaswag", folder).gold == 2
    assert read_task("hellaswag", folder).source.endswith("(cleaned before, capitals restored approximately)")
    assert first("openbookqa", folder).contexts[0] == "A stove is used to "
    assert [item.gold for item in read_task("openbookqa", folder).items] == [0, 0, 2]
    assert first("piqa", folder).contexts[0] == "Question: To dry up\nAnswer:"
    assert [item.gold for item in read_task("piqa", folder).items] == [0, 0, 1]


def test_mmlu_has_five_examples_of_the_subject_first_and_keeps_its_text(folder: Path) -> None:
    task = read_task("mmlu", folder)
    assert task.shots == 5
    item = task.items[0]
    head, *shots, question = item.contexts[0].split("\n\n")
    assert head == "The following are multiple choice questions (with answers) about high school physics."
    assert len(shots) == 5
    assert shots[0] == "Which one?\nA. x\nB. y\nC. z\nD. w\nAnswer: A"
    assert question == "What is g?\nA. None\nB. 1.0\nC. 9.8\nD. nan\nAnswer:"
    assert item.continuations == (" A", " B", " C", " D")
    assert "about virology." in task.items[3].contexts[0]


def test_acc_norm_is_for_the_tasks_of_which_the_harness_reports_it(folder: Path) -> None:
    normalised = {name for name in TASKS if first(name, folder).lengths is not None}
    assert normalised == {"arc_easy", "arc_challenge", "hellaswag", "openbookqa", "piqa"}


@every_task
def test_a_limit_takes_the_first_and_the_source_tells(name: str, folder: Path) -> None:
    whole, part = read_task(name, folder), read_task(name, folder, limit=2)
    assert len(part.items) == 2
    assert set(part.items) <= set(whole.items)
    assert f", 2 of {len(whole.items)} items" in part.source
    assert str(folder) in part.source
    assert read_task(name, folder, limit=999) == whole
    assert part.digest != whole.digest
    if name != "mmlu":
        assert part.items == whole.items[:2]


def test_a_limit_of_mmlu_takes_every_subject(folder: Path) -> None:
    assert [row["subject"] for row in read_task("mmlu", folder, limit=2).rows] == list(SUBJECTS)
    assert [row["subject"] for row in read_task("mmlu", folder, limit=3).rows] == [
        SUBJECTS[0], SUBJECTS[0], SUBJECTS[1],
    ]  # fmt: skip


def test_guessing_is_right_one_time_in_the_number_of_choices(folder: Path) -> None:
    assert read_task("arc_easy", folder).chance == pytest.approx((1 / 4 + 1 / 3 + 1 / 4 + 1 / 5) / 4)


def test_there_is_a_split_to_choose_models_on(folder: Path) -> None:
    assert len(read_task("arc_easy", folder, split="validation").items) == 2
    assert len(read_task("mmlu", folder, split="validation").items) == 4
    assert read_task("piqa", folder, split="validation") == read_task("piqa", folder)
    with pytest.raises(InputError, match="'test' is no split to score on"):
        read_task("piqa", folder, split="test")


def test_released_hellaswag_reads_like_the_cleaned_one(folder: Path) -> None:
    released = {
        "activity_label": "Home", "ctx_a": "[header] How to bake [title] Mix it.", "ctx_b": "the Cook",
        "endings": ["[substeps] stirs.", "b", "c", "d [title] e"], "label": "3",
    }  # fmt: skip
    write_lines(folder / "hellaswag" / "validation.jsonl", [released] * 3)
    assert "cleaned" not in read_task("hellaswag", folder).source
    item = first("hellaswag", folder)
    assert item.contexts[0] == "Home: How to bake. Mix it. The cook"
    assert item.continuations == ("  stirs.", " b", " c", " d. e")
    assert item.gold == 3


# --- what is wrong with a file ----------------------------------------------------------------------------


@every_task
def test_a_file_that_is_cut_is_refused_with_both_counts(name: str, folder: Path) -> None:
    part = next(iter(TASKS[name].parts.values()))
    path = folder / part.file
    if name == "mmlu":
        (path / f"{SUBJECTS[0]}_test.csv").unlink()
        left = part.count // 2
    else:
        write_lines(path, LINES[part.file][1:])
        left = part.count - 1
    if name == "piqa":
        (folder / "piqa" / "dev-labels.lst").write_text("0\n1\n")
    with pytest.raises(
        InputError, match=f"holds {left} questions, and {name} was released with {part.count}"
    ):
        read_task(name, folder)


@every_task
def test_a_missing_file_is_named(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=str(tmp_path)):
        read_task(name, tmp_path)


def test_a_wrong_line_is_named(folder: Path) -> None:
    wrong: dict[str, tuple[str, list[dict[str, object]]]] = {
        "arc_easy": ("arc/ARC-Easy-Test.jsonl", [*ARC[:3], {"question": "one line", "answerKey": "A"}]),
        "boolq": ("boolq/val.jsonl", [*BOOLQ[:2], {**BOOLQ[0], "label": "maybe"}]),
        "piqa": ("piqa/dev.jsonl", [*PIQA[:2], {"goal": "g", "sol1": "s"}]),
    }
    for name, (file, rows) in wrong.items():
        write_lines(folder / file, rows)
        with pytest.raises(InputError, match=rf"line {len(rows)} of .*{Path(file).name} is no question"):
            read_task(name, folder)


def test_a_right_choice_that_is_none_of_them_is_named(folder: Path) -> None:
    path = folder / "arc" / "ARC-Easy-Test.jsonl"
    for wrong in ({**ARC[2], "answerKey": "B"}, {**ARC[2], "question": {"stem": "?", "choices": []}}):
        write_lines(path, [ARC[0], wrong, *ARC[2:]])
        with pytest.raises(InputError, match="item 2 of .* is no question of arc_easy"):
            read_task("arc_easy", folder)


def test_labels_that_do_not_fit_the_questions_are_refused(folder: Path) -> None:
    (folder / "piqa" / "dev-labels.lst").write_text("0\n1\n")
    with pytest.raises(InputError, match="has 2 labels for the 3 questions"):
        read_task("piqa", folder)


def test_a_table_with_a_header_or_other_columns_is_refused(folder: Path) -> None:
    path = folder / "mmlu" / "test" / f"{SUBJECTS[0]}_test.csv"
    for first_line in ("question,A,B,C,D,answer", "What?,a,b,c,A"):
        path.write_text(f"{first_line}\nq,a,b,c,d,A\nq,a,b,c,d,A\n")
        with pytest.raises(InputError, match=f"row 1 of .*{path.name} is no question"):
            read_task("mmlu", folder)


def test_an_unknown_task_and_a_limit_below_zero_are_refused(folder: Path) -> None:
    with pytest.raises(InputError, match="there is no task 'piqua': give piqa$"):
        read_task("piqua", folder)
    with pytest.raises(InputError, match="there is no task 'cooking': give some of arc_easy, arc_challenge"):
        read_task("cooking", folder)
    with pytest.raises(InputError, match="a limit of -1 items"):
        read_task("piqa", folder, limit=-1)


# --- the Hub ----------------------------------------------------------------------------------------------


def on_the_hub(name: str, folder: Path) -> dict[str, list[dict[str, object]]]:
    """The questions of the tiny files as the Hub has them, by split."""
    form = TASKS[name]
    rows = {split: form.local(folder / part.file) for split, part in form.parts.items()}
    if form.examples:
        rows["dev"] = form.local(folder / form.examples.file)
    return {split: [dict(row) for row in part] for split, part in rows.items()}


@every_task
def test_the_hub_gives_what_the_files_give(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = on_the_hub(name, folder)
    if name == "hellaswag":
        raw = {"activity_label": "Baking", "ctx_a": "A man.", "ctx_b": "he", "label": "2"}
        rows = {"validation": [{**raw, "endings": row["choices"]} for row in rows["validation"]]}

    def load(dataset_id: str, config: str | None, split: str) -> list[dict[str, object]]:
        assert ":".join(filter(None, (dataset_id, config))) == TASKS[name].hub
        return rows[split]

    monkeypatch.setattr(datasets, "load_dataset", load)
    here, there = read_task(name, folder), read_task(name)
    assert there.source.startswith(f"Hub {TASKS[name].hub}, ")
    if name == "hellaswag":
        assert there.items[0].contexts == here.items[0].contexts
        assert there.items[0].continuations[2] == " bakes bread."
    else:
        assert there.items == here.items


def test_without_a_network_the_way_out_is_a_folder() -> None:
    with pytest.raises(
        InputError, match=r"baber/piqa .* could not be read from the Hub .*: give the folder of its"
    ):
        read_task("piqa")


def test_a_truth_value_is_no_label() -> None:
    with pytest.raises(TypeError):
        hellaswag_fields({"activity_label": "", "ctx_a": "", "ctx_b": "", "endings": [], "label": True})


def test_digests_tell_questions_apart_and_not_folders(
    folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    elsewhere = write_tasks(tmp_path_factory.mktemp("elsewhere"))
    for name in tasks.TASKS:
        assert read_task(name, folder).digest == read_task(name, elsewhere).digest
    digests = [read_task(name, folder).digest for name in tasks.TASKS]
    assert len(set(digests)) == len(digests)
