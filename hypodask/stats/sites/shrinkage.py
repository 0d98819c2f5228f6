"""The empirical Bayes step of ComBat: shift and spread of a site are shrunk towards their distribution over structures.

Johnson, Li and Rabinovic 2007 (Biostatistics 8:118). With few scans at a site the estimate for one structure is poor;
the estimates for all structures of the site show what to expect of one.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from hypodask.core.errors import ResultsError

Prior = Literal["parametric", "nonparametric", "none"]
"""What the estimates of a site are shrunk towards: a normal and an inverse gamma distribution, the empirical
distribution over the other structures, or nothing."""

_CONVERGED = 1e-12
"""Relative change of the estimates at which the iteration ends."""

_MOST_ITERATIONS = 10_000
"""Tens of steps are usual: the error becomes smaller by a factor in each."""


@dataclass(frozen=True, eq=False)
class SiteEstimates:
    """Estimates from each site alone, in units of the common standard deviation; NaN where there are none."""

    n: Float[ndarray, "site structure"]
    shift: Float[ndarray, "site structure"]
    variance_ratio: Float[ndarray, "site structure"]
    squares: Float[ndarray, "site structure"]
    """Sum of squares about ``shift``."""


def shrink(
    found: SiteEstimates, *, prior: Prior, mean_only: bool
) -> tuple[Float[ndarray, "site structure"], Float[ndarray, "site structure"]]:
    """Shift and variance ratio of each site and structure, shrunk towards the prior of the site."""
    if prior == "none":
        return found.shift.copy(), found.variance_ratio.copy()
    columns = (found.n, found.shift, found.variance_ratio, found.squares)
    pairs = [_shrink_site(*row, prior, mean_only) for row in zip(*columns, strict=True)]
    shift, ratio = (np.stack(values) for values in zip(*pairs, strict=True))
    return shift, ratio


def _shrink_site(
    n: ndarray, shift: ndarray, ratio: ndarray, squares: ndarray, prior: Prior, mean_only: bool
) -> tuple[ndarray, ndarray]:
    shifts, ratios = np.full_like(n, np.nan), np.full_like(n, np.nan)
    there = np.isfinite(n)
    if there.any():
        n, shift, ratio, squares = n[there], shift[there], ratio[there], squares[there]
        if prior == "nonparametric":
            shifts[there], ratios[there] = _weigh(n, shift, ratio, squares)
        elif mean_only:
            # With n = 1 and the common variance, as in sva and neuroCombat.
            shifts[there], ratios[there] = _posterior_shift(np.ones_like(n), shift, ratio), ratio
        else:
            shifts[there], ratios[there] = _iterate(n, shift, ratio, squares)
    return shifts, ratios


def _posterior_shift(n: ndarray, shift: ndarray, ratio: ndarray) -> Float[ndarray, " structure"]:
    common, spread = shift.mean(), shift.var(ddof=1)
    return (spread * n * shift + ratio * common) / (spread * n + ratio)


def _posterior_ratio(n: ndarray, squares: ndarray, ratio: ndarray) -> Float[ndarray, " structure"]:
    """Mean of the inverse gamma posterior; the prior has mean and variance of the ratios, and the variance may be 0."""
    common, spread = ratio.mean(), ratio.var(ddof=1)
    return (spread * (squares / 2 + common) + common**3) / (spread * (n / 2 + 1) + common**2)


def _iterate(n: ndarray, shift: ndarray, ratio: ndarray, squares: ndarray) -> tuple[ndarray, ndarray]:
    """Posterior means of shift and ratio, iterated until they agree with each other (Johnson 2007, equation 3.1)."""
    ratios = ratio
    for _ in range(_MOST_ITERATIONS):
        shifts = _posterior_shift(n, shift, ratios)
        before, ratios = ratios, _posterior_ratio(n, squares + n * (shift - shifts) ** 2, ratio)
        if np.all(np.abs(ratios - before) <= _CONVERGED * before):
            return shifts, ratios
    raise ResultsError(f"ComBat did not converge in {_MOST_ITERATIONS} steps: try prior='nonparametric'")


def _weigh(n: ndarray, shift: ndarray, ratio: ndarray, squares: ndarray) -> tuple[ndarray, ndarray]:
    """Mean over the estimates of the other structures, weighted by the likelihood of the scans under each."""
    misfit = squares[:, None] + n[:, None] * (shift[:, None] - shift) ** 2
    log_likelihood = -n[:, None] / 2 * np.log(2 * np.pi * ratio) - misfit / (2 * ratio)
    np.fill_diagonal(log_likelihood, -np.inf)
    weights = np.exp(log_likelihood - log_likelihood.max(axis=1, keepdims=True))
    weights /= weights.sum(axis=1, keepdims=True)
    return weights @ shift, weights @ ratio
