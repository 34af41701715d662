"""LightGBM with leaves that follow the number of pairs, to go into `Standardised`.

The extra `predictors` brings it. Its own default, at least 20 rows a leaf, learns nothing from fewer than 50
rows.
"""

from __future__ import annotations

try:
    from lightgbm import LGBMRegressor
except ImportError as error:
    raise ImportError(f"{error}; pip install 'secateur[predictors]' brings LightGBM") from error


def small_leaves(rows: int, random_state: int) -> LGBMRegressor:
    """300 trees of at most 7 leaves, a leaf at least a fifteenth of the rows of a tree, or 20."""
    return LGBMRegressor(
        n_estimators=300,
        learning_rate=0.05,
        num_leaves=7,
        min_child_samples=max(1, min(20, rows // 30)),
        min_child_weight=0.0,
        min_data_in_bin=1,
        subsample=0.5,
        subsample_freq=1,
        colsample_bytree=0.3,
        n_jobs=1,
        random_state=random_state,
        deterministic=True,
        force_row_wise=True,
        verbosity=-1,
    )
