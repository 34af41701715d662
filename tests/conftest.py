"""What every test starts from: offline, one thread, no progress bars, the same random numbers."""

import os

# Read by the libraries when they are imported, so set before any of them is. One thread because two pools
# that spin on the same cores (torch's and XGBoost's, or two workers') slow each other down many times.
os.environ.update(
    HF_HUB_OFFLINE="1",
    HF_HUB_DISABLE_PROGRESS_BARS="1",
    HF_DATASETS_DISABLE_PROGRESS_BARS="1",
    MPLBACKEND="Agg",
    OMP_NUM_THREADS="1",
    TOKENIZERS_PARALLELISM="false",
)

import random
import sys

import hypothesis
import numpy as np
import pytest

pytest.register_assert_rewrite("predictors.contract")

# The same examples in every run, and no limit of time for one: the machine may be busy.
hypothesis.settings.register_profile("house", deadline=None, derandomize=True, print_blob=True)
hypothesis.settings.load_profile("house")


@pytest.fixture(autouse=True)
def _same_random_numbers() -> None:
    random.seed(0)
    np.random.seed(0)
    # Importing torch takes seconds that a test of predictors need not spend.
    if torch := sys.modules.get("torch"):
        torch.manual_seed(0)
        torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked `gpu` are skipped where there is none; torch is asked only if there is such a test."""
    wanting = [item for item in items if item.get_closest_marker("gpu")]
    if not wanting:
        return
    import torch

    if not torch.cuda.is_available():
        for item in wanting:
            item.add_marker(pytest.mark.skip(reason="no GPU here"))
