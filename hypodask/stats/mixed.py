"""A linear model with an intercept for each site that is drawn at random, by restricted maximum likelihood.

The model has one parameter that is not found by least squares: how much of the variance is between sites. So its
likelihood is a curve, of which the highest point is found surely, also where it lies at no variance between sites, and
what has to be known of the scans are sums within sites and the means of sites.

Standard errors and degrees of freedom are those of Kenward and Roger: a covariate that differs between sites alone is
tested on as many degrees of freedom as there are sites, and one that differs within sites on those of the scans.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

from hypodask.stats.moments import Moments, moments_of

SHARES = np.concatenate([[0.0], np.geomspace(1e-5, 1.0, 40)[:-1], [1 - 1e-9]])
"""Of the variance that is between sites, where the likelihood is looked at before it is followed to its top."""

ROUNDS = 8
"""Each comes twenty times nearer to the top; as near as its flatness lets digits tell."""

HARDLY = 1e-10
"""Information on a variance where there is none, of what there would be without covariates: it is then all but
unknown, and leaves all but no degrees of freedom to what depends on it."""


@dataclass(frozen=True, eq=False)
class RandomIntercept:
    """The fit of a column of values to covariates, in the unit of the values."""

    slopes: Float[ndarray, " column"]
    errors: Float[ndarray, " column"]
    """Standard errors, enlarged by what is not known of the variances (Kenward and Roger)."""
    df: Float[ndarray, " column"]
    site_sd: float
    residual_sd: float


@dataclass(frozen=True, eq=False)
class _Sums:
    """What the model needs: sums about the means of sites, and these means, whose first column is the intercept."""

    n: Float[ndarray, " site"]
    x: Float[ndarray, "site column"]
    y: Float[ndarray, " site"]
    xx: Float[ndarray, "column column"]
    xy: Float[ndarray, " column"]
    yy: float

    @classmethod
    def of(cls, y: Float[ndarray, " scan"], design: Float[ndarray, "scan column"], site: Int[ndarray, " scan"]) -> Self:
        each = Moments.stack(
            [moments_of(design[site == number], y[site == number, None]) for number in np.unique(site)]
        )
        within = each.within()
        means = each.n[:, 0], each.mean_x[:, 0], each.mean_y[:, 0]
        return cls(*means, within.xx[0, 0], within.xy[0, 0], float(within.yy[0, 0]))

    def between(self, factors: Float[ndarray, "... site"]) -> Float[ndarray, "... column column"]:
        """Products of the means of sites, each of them times a factor."""
        return (self.x.T * factors[..., None, :]) @ self.x

    def precision(self, ratio: Float[ndarray, "..."]) -> Float[ndarray, "... column column"]:
        """Inverse of the covariance of the coefficients, in units of the residual variance."""
        return self.xx + self.between(self.weights(ratio))

    def weights(self, ratio: Float[ndarray, "..."]) -> Float[ndarray, "... site"]:
        """What the mean of each site counts where the variance between sites is so many times the residual one."""
        return self.n / (1 + self.n * ratio[..., None])

    def solve(self, ratio: Float[ndarray, "..."]) -> tuple[Float[ndarray, "... column"], Float[ndarray, "..."]]:
        """Coefficients and residual variance."""
        weights = self.weights(ratio)
        products = self.xy + (weights * self.y) @ self.x
        slopes = np.linalg.solve(self.precision(ratio), products[..., None])[..., 0]
        within = self.yy - (slopes * (2 * self.xy - slopes @ self.xx)).sum(axis=-1)
        squares = within + (weights * (self.y - slopes @ self.x.T) ** 2).sum(axis=-1)
        return slopes, squares / (self.n.sum() - slopes.shape[-1])

    def deviance(self, share: Float[ndarray, "..."]) -> Float[ndarray, "..."]:
        """Minus twice the logarithm of the restricted likelihood, but for a constant."""
        ratio = share / (1 - share)
        free = self.n.sum() - len(self.xx)
        sites = np.log1p(self.n * ratio[..., None]).sum(axis=-1)
        return free * np.log(self.solve(ratio)[1]) + sites + np.linalg.slogdet(self.precision(ratio))[1]


def fit_random_intercept(
    y: Float[ndarray, " scan"], x: Float[ndarray, "scan column"], site: Int[ndarray, " scan"]
) -> RandomIntercept:
    """Fit ``y`` to the columns of ``x`` and an intercept that varies between sites.

    Parameters
    ----------
    y
        One value per scan, which site and columns do not explain wholly.
    x
        Columns that can be told apart, without that of the intercept.
    site
        Number of the site of each scan, from 0, each with a scan.

    References
    ----------
    Patterson & Thompson, Biometrika 1971 (restricted likelihood); Kenward & Roger, Biometrics 1997 (standard errors and
    degrees of freedom, which are those of Satterthwaite where one coefficient is tested).

    Examples
    --------
    A covariate of sites is tested on the sites, as by Student's test of their means:

    >>> y = np.array([8.0, 10, 9, 11, 14, 12, 5, 7])
    >>> found = fit_random_intercept(y, np.array([[0.0], [0], [0], [0], [1], [1], [1], [1]]), np.arange(8) // 2)
    >>> found.slopes.round(6).tolist(), found.df.round(6).tolist()
    ([0.0], [2.0])
    """
    # Everything is standardised first, so that units change no digit that counts.
    scale_y, scale_x = y.std(), x.std(axis=0)
    design = np.column_stack([np.ones(len(y)), (x - x.mean(axis=0)) / scale_x])
    sums = _Sums.of((y - y.mean()) / scale_y, design, site)
    share = _best_share(sums)
    ratio = share / (1 - share)
    slopes, variance = sums.solve(ratio)
    covariance, df = _kenward_roger(sums, ratio)
    errors = np.sqrt(variance * np.diagonal(covariance))
    units = scale_y / scale_x
    residual_sd = float(np.sqrt(variance) * scale_y)
    return RandomIntercept(
        slopes[1:] * units, errors[1:] * units, df[1:], float(np.sqrt(ratio)) * residual_sd, residual_sd
    )


def _best_share(sums: _Sums) -> Float[ndarray, ""]:
    """Share of the variance between sites at which the likelihood is highest; exactly 0 where that is its end."""
    shares = SHARES
    for _ in range(ROUNDS):
        best = int(np.argmin(sums.deviance(shares)))
        low, high = shares[max(best - 1, 0)], shares[min(best + 1, len(shares) - 1)]
        if best == 0 and low == 0 and shares is not SHARES:
            break
        shares = np.linspace(low, high, len(SHARES))
    return shares[best]


def _kenward_roger(
    sums: _Sums, ratio: Float[ndarray, ""]
) -> tuple[Float[ndarray, "column column"], Float[ndarray, " column"]]:
    """Covariance of the coefficients and degrees of freedom of each, the residual variance being 1.

    The two parameters are the variances between and within sites; the names of the matrices are those of the paper.
    """
    n, inner = sums.n, 1 / (1 + sums.n * ratio)
    phi = np.linalg.inv(sums.precision(ratio))
    derivatives = (n, np.ones(len(n)))
    p = [-sums.between(n * inner**2 * first) for first in derivatives]
    p[1] -= sums.xx
    information, q = np.empty((2, 2)), np.empty((2, 2, *phi.shape))
    for i, first in enumerate(derivatives):
        for j, second in enumerate(derivatives):
            both = i == j == 1
            q[i, j] = sums.between(n * inner**3 * first * second) + both * sums.xx
            trace = (inner**2 * first * second).sum() + both * (n.sum() - len(n))
            known = trace * (1 + HARDLY * (i == j))
            information[i, j] = (known - np.trace(2 * phi @ q[i, j] - phi @ p[i] @ phi @ p[j])) / 2
    w = np.linalg.inv(information)
    widening = sum(w[i, j] * (q[i, j] - p[i] @ phi @ p[j]) for i in range(2) for j in range(2))
    slope = np.stack([np.diagonal(phi @ p[i] @ phi) for i in range(2)])
    df = 2 * np.diagonal(phi) ** 2 / np.einsum("ic,ij,jc->c", slope, w, slope)
    return phi + 2 * phi @ widening @ phi, df
