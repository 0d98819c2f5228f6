"""A regression in which both the mean and the spread of a value depend on covariates, and a spline for its columns.

Norms are fitted with it: volumes change with age, and so does how much people differ.
"""

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from hypodask.core.errors import ResultsError

_MOST_STEPS = 100
"""The fit converges in about ten."""


def natural_spline(x: Float[ndarray, " n"], knots: Float[ndarray, " knot"]) -> Float[ndarray, "n column"]:
    """Columns of a cubic spline that is straight beyond its outer knots; ``knots - 1`` of them, without the constant.

    References
    ----------
    Harrell, Regression Modeling Strategies, 2001, section 2.4.4.

    Examples
    --------
    >>> natural_spline(np.array([0.0, 1.0, 2.0, 4.0]), np.array([0.0, 1.0, 2.0])).round(2).tolist()
    [[0.0, 0.0], [1.0, 0.25], [2.0, 1.5], [4.0, 4.5]]
    """
    last, before = knots[-1], knots[-2]
    cubes = np.maximum(x[:, None] - knots, 0) ** 3
    far, near = (last - knots[:-2]) / (last - before), (before - knots[:-2]) / (last - before)
    bends = cubes[:, :-2] - cubes[:, -2:-1] * far + cubes[:, -1:] * near
    return np.column_stack([x, bends / (last - knots[0]) ** 2])


def fit_location_scale(
    y: Float[ndarray, " scan"], design: Float[ndarray, "scan column"], spread: Float[ndarray, "scan scale"]
) -> tuple[ndarray, ndarray, ndarray, ndarray]:
    """Fit mean and logarithm of the standard deviation, both linear in their columns.

    The fit alternates between weighted least squares for the mean and Fisher's scoring for the spread. Each squared
    residual is compared with one less its leverage; without this the spread of a small sample comes out too small
    (Smyth & Verbyla, Environmetrics 1999).

    Parameters
    ----------
    y
        Values, all finite.
    design, spread
        Columns of the mean, and of the logarithm of the standard deviation.

    Returns
    -------
    mean, log_sd, mean_covariance, log_sd_covariance
        The coefficients of both, and their covariances.

    Raises
    ------
    ResultsError
        If the fit does not converge.

    Examples
    --------
    >>> y, ones = np.array([1.0, 2.0, 4.0, 5.0]), np.ones((4, 1))
    >>> mean, log_sd, *_ = fit_location_scale(y, ones, ones)
    >>> mean.round(3).tolist(), np.exp(log_sd).round(3).tolist(), y.std(ddof=1).round(3).item()
    ([3.0], [1.826], 1.826)
    """
    log_sd = np.zeros(spread.shape[1])
    log_sd[0] = np.log(y.std(ddof=1))
    scoring = np.linalg.pinv(spread.T @ spread)
    for _ in range(_MOST_STEPS):
        inverse_sd = np.exp(-spread @ log_sd)
        whole = design * inverse_sd[:, None]
        basis, triangle = np.linalg.qr(whole)
        mean = np.linalg.solve(triangle, basis.T @ (y * inverse_sd))
        kept = 1 - (basis**2).sum(axis=1)
        square = ((y - design @ mean) * inverse_sd) ** 2
        step = scoring @ (spread.T @ (square - kept) / 2)
        log_sd = log_sd + np.clip(step, -1, 1)
        if np.abs(step).max() < 1e-10:
            inverse = np.linalg.inv(triangle)
            information = 2 * spread.T @ (spread * kept[:, None])
            return mean, log_sd, inverse @ inverse.T, np.linalg.inv(information)
    raise ResultsError(
        f"the norms of {len(y)} scans did not converge in {_MOST_STEPS} steps: look for outliers, "
        "or take a larger reference"
    )
