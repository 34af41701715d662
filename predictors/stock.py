"""Regressors of scikit-learn set for 50 to 1000 rows of 60 to 80 columns, to go into `Standardised`.

Each function gives an unfitted one; what it asks for by name is told by `predictors.adapter`. Columns and
scores have mean 0 and deviation 1, so that a kernel's width is in deviations and its square of the order of
the number of columns.
"""

from __future__ import annotations

import numpy as np
from sklearn.ensemble import RandomForestRegressor
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel
from sklearn.kernel_ridge import KernelRidge
from sklearn.model_selection import GridSearchCV, KFold
from sklearn.svm import SVR

WIDTHS = np.array([0.01, 0.03, 0.1, 0.3, 1.0])  # gamma of exp(-gamma |x - x'|^2), times the number of columns


def random_forest(random_state: int) -> RandomForestRegressor:
    """200 trees grown to leaves of two rows, a third of the columns at each split (Breiman 2001)."""
    return RandomForestRegressor(
        n_estimators=200, min_samples_leaf=2, max_features=1 / 3, n_jobs=1, random_state=random_state
    )


def kernel_ridge(rows: int, columns: int, seed: int) -> GridSearchCV:
    """Ridge with a Gaussian kernel; its width and penalty by cross-validation in five folds."""
    grid = {"gamma": WIDTHS / columns, "alpha": [1e-4, 1e-3, 1e-2, 1e-1, 1.0]}
    return GridSearchCV(
        KernelRidge(kernel="rbf"), grid, scoring="neg_mean_squared_error", cv=_folds(rows, seed)
    )


def svr(rows: int, columns: int, seed: int) -> GridSearchCV:
    """Support-vector regression with a Gaussian kernel; its width and C by cross-validation in five folds."""
    grid = {"gamma": WIDTHS / columns, "C": [1.0, 10.0, 100.0]}
    return GridSearchCV(SVR(epsilon=0.05), grid, scoring="neg_mean_squared_error", cv=_folds(rows, seed))


def gaussian_process(columns: int, random_state: int) -> GaussianProcessRegressor:
    """A Gaussian kernel plus white noise; size, width and noise by marginal likelihood, from one start."""
    width = np.sqrt(columns)
    kernel = ConstantKernel(1.0, (1e-2, 1e4)) * RBF(width, (0.1 * width, 100 * width)) + WhiteKernel(
        0.05, (1e-6, 1e1)
    )
    return GaussianProcessRegressor(kernel, random_state=random_state)


def _folds(rows: int, seed: int) -> KFold:
    # Shuffled, for pairs come in the order in which a search measured them, worse ones first.
    return KFold(min(5, rows), shuffle=True, random_state=seed)
