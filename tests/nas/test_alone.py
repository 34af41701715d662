"""Workers that share a folder: nothing is made twice, and nobody waits who could make something else."""

import multiprocessing
from pathlib import Path

import pytest
import torch

from nas import block_files
from nas.alone import alone, unless_taken
from nas.importance import CRITERIA
from nas.space import default_space
from nas.tensor_files import read_tensors
from tests.nas.tiny_models import case_of

FORK = multiprocessing.get_context("fork")


def test_what_another_makes_is_left_to_it(tmp_path: Path) -> None:
    with alone(tmp_path / "a"), unless_taken(tmp_path / "a") as mine, unless_taken(tmp_path / "b") as other:
        assert (mine, other) == (False, True)
    with unless_taken(tmp_path / "a") as mine:
        assert mine


def ranked(folder: Path, log: Path) -> None:
    """Rank and repair all blocks as one of some workers, and write down those that this one made."""
    case, write = case_of("llama"), block_files.write_tensors

    def noted(path: Path, *args: object) -> None:
        with log.open("a") as file:
            file.write(f"{path.stem}\n")
        write(path, *args)  # type: ignore[arg-type]

    block_files.write_tensors = noted
    try:
        block_files.fill(
            case.parent, case.shape, default_space(case.shape, 4), case.windows, CRITERIA["output_energy"],
            folder, batch_size=8, seed=0, quiet=True,
        )  # fmt: skip
    finally:
        block_files.write_tensors = write


@pytest.mark.parametrize("workers", [1, 3])
def test_each_block_is_made_once_whoever_works(tmp_path: Path, workers: int) -> None:
    case_of("llama").windows  # noqa: B018  # made once, before the forks
    ranked(tmp_path / "one", tmp_path / "log of one")
    processes = [
        FORK.Process(target=ranked, args=(tmp_path / "many", tmp_path / "log")) for _ in range(workers)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * workers
    blocks = [str(block) for block in range(case_of("llama").shape.blocks)]
    assert sorted((tmp_path / "log").read_text().split()) == blocks
    for block in blocks:
        ours, theirs = (read_tensors(tmp_path / name / f"{block}.safetensors") for name in ("one", "many"))
        assert ours is not None and theirs is not None
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)
