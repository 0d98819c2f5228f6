"""A linear model with a random intercept for each site, fitted by restricted maximum likelihood.

Least squares gives all parameters but one: the share of the variance that is between sites. The likelihood is therefore
a function of one number, and a search over a grid always finds its maximum, also if that is at no variance between
sites. Sums within sites and the means of sites are sufficient.

Standard errors and degrees of freedom are those of Kenward and Roger: a covariate that varies only between sites has
about as many degrees of freedom as there are sites, and one that varies within sites has those of the scans.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

from hypodask.stats.sites.moments import Moments, moments_of

_SHARES = np.concatenate([[0.0], np.geomspace(1e-5, 1.0, 40)[:-1], [1 - 1e-9]])
"""Shares of the variance between sites at which the likelihood is first calculated."""

_ROUNDS = 8
"""Each refines the grid about the maximum twenty times; more would be below rounding error."""

_HARDLY = 1e-10
"""Share that is added to the information about each variance, so that its matrix can be inverted. A variance that the
scans do not determine then leaves almost no degrees of freedom to the coefficients that depend on it."""


@dataclass(frozen=True, eq=False)
class RandomIntercept:
    """The fit of a column of values to covariates, in the unit of the values."""

    slopes: Float[ndarray, " column"]
    errors: Float[ndarray, " column"]
    """Standard errors, enlarged by the uncertainty of the variances (Kenward and Roger)."""
    df: Float[ndarray, " column"]
    site_sd: float
    residual_sd: float


@dataclass(frozen=True, eq=False)
class _Sums:
    """What the model needs: sums about the means of the sites, and these means; the first column is the intercept."""

    n: Float[ndarray, " site"]
    x: Float[ndarray, "site column"]
    y: Float[ndarray, " site"]
    xx: Float[ndarray, "column column"]
    xy: Float[ndarray, " column"]
    yy: float

    @classmethod
    def of(
        cls, y: Float[ndarray, " scan"], design: Float[ndarray, "scan column"], site: Int[ndarray, " scan"]
    ) -> "_Sums":
        each = Moments.stack(
            [moments_of(design[site == number], y[site == number, None]) for number in np.unique(site)]
        )
        within = each.within()
        means = each.n[:, 0], each.mean_x[:, 0], each.mean_y[:, 0]
        return cls(*means, within.xx[0, 0], within.xy[0, 0], float(within.yy[0, 0]))

    def between(self, factors: Float[ndarray, "... site"]) -> Float[ndarray, "... column column"]:
        """Sum over sites of the products of their means, each times a factor."""
        return (self.x.T * factors[..., None, :]) @ self.x

    def precision(self, ratio: Float[ndarray, "..."] | float) -> Float[ndarray, "... column column"]:
        """Inverse of the covariance of the coefficients, in units of the residual variance."""
        return self.xx + self.between(self.weights(ratio))

    def weights(self, ratio: Float[ndarray, "..."] | float) -> Float[ndarray, "... site"]:
        """Weight of the mean of each site; ``ratio`` is the variance between sites over the residual variance."""
        return self.n / (1 + self.n * np.asarray(ratio)[..., None])

    def solve(self, ratio: Float[ndarray, "..."] | float) -> tuple[Float[ndarray, "... column"], Float[ndarray, "..."]]:
        """Coefficients and residual variance."""
        weights = self.weights(ratio)
        products = self.xy + (weights * self.y) @ self.x
        slopes = np.linalg.solve(self.precision(ratio), products[..., None])[..., 0]
        within = self.yy - (slopes * (2 * self.xy - slopes @ self.xx)).sum(axis=-1)
        squares = within + (weights * (self.y - slopes @ self.x.T) ** 2).sum(axis=-1)
        return slopes, np.asarray(squares / (self.n.sum() - slopes.shape[-1]))

    def deviance(self, share: Float[ndarray, "..."]) -> Float[ndarray, "..."]:
        """Minus twice the logarithm of the restricted likelihood, without its constant."""
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
        One value per scan, which site and columns do not explain completely.
    x
        Linearly independent columns, without that of the intercept.
    site
        Number of the site of each scan.

    References
    ----------
    Patterson & Thompson, Biometrika 1971 (restricted likelihood); Kenward & Roger, Biometrics 1997 (standard errors and
    degrees of freedom, which are those of Satterthwaite where one coefficient is tested).

    Examples
    --------
    A covariate that is the same in all scans of a site is tested as by Student's test of the means of the sites:

    >>> y = np.array([8.0, 10, 9, 11, 14, 12, 5, 7])
    >>> found = fit_random_intercept(y, np.array([[0.0], [0], [0], [0], [1], [1], [1], [1]]), np.arange(8) // 2)
    >>> found.slopes.round(6).tolist(), found.df.round(6).tolist()
    ([0.0], [2.0])
    """
    # Standardised first, so that units do not change the result beyond rounding.
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


def _best_share(sums: _Sums) -> float:
    """Share of the variance between sites at which the likelihood is highest; exactly 0 if that is best."""
    shares = _SHARES
    for _ in range(_ROUNDS):
        best = int(np.argmin(sums.deviance(shares)))
        low, high = shares[max(best - 1, 0)], shares[min(best + 1, len(shares) - 1)]
        if best == 0 and low == 0 and shares is not _SHARES:
            break
        shares = np.linspace(low, high, len(_SHARES))
    return shares[best]


def _kenward_roger(sums: _Sums, ratio: float) -> tuple[Float[ndarray, "column column"], Float[ndarray, " column"]]:
    """Covariance of the coefficients and degrees of freedom of each, the residual variance being 1.

    The two parameters are the variances between and within sites. Matrices have the names of the paper.
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
            known = trace * (1 + _HARDLY * (i == j))
            information[i, j] = (known - np.trace(2 * phi @ q[i, j] - phi @ p[i] @ phi @ p[j])) / 2
    w = np.linalg.inv(information)
    widening = sum(w[i, j] * (q[i, j] - p[i] @ phi @ p[j]) for i in range(2) for j in range(2))
    slope = np.stack([np.diagonal(phi @ p[i] @ phi) for i in range(2)])
    df = 2 * np.diagonal(phi) ** 2 / np.einsum("ic,ij,jc->c", slope, w, slope)
    return phi + 2 * phi @ widening @ phi, df
