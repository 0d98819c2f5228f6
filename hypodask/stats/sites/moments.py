"""Sums of a site that are sufficient for regressions: numbers, means and centred products of covariates and volumes.

They are all that a regression with an intercept for each site needs. They are centred at the means of the site, so that
no digits are lost, and the moments of two sites can be combined to those of both together (Chan, Golub and LeVeque
1983). A scan whose volume of a structure is missing is left out of the sums of that structure only.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray

_SINGULAR = 1e-10
"""Eigenvalue of the correlations among covariates below which they are collinear."""


@dataclass(frozen=True, eq=False)
class Moments:
    """Moments of x, the covariates, and y, the volumes, by site and structure; products are sums about the means."""

    n: Float[ndarray, "site structure"]
    mean_x: Float[ndarray, "site_of_means structure column"]
    """Means of each site, also where the sums are those over all sites (:meth:`within`)."""
    mean_y: Float[ndarray, "site_of_means structure"]
    xx: Float[ndarray, "site structure column column"]
    xy: Float[ndarray, "site structure column"]
    yy: Float[ndarray, "site structure"]

    @classmethod
    def stack(cls, parts: Sequence["Moments"]) -> "Moments":
        """Sites of all parts, one after the other."""
        return cls(*(np.concatenate(values) for values in zip(*(vars(part).values() for part in parts), strict=True)))

    def where(self, kept: ndarray) -> "Moments":
        """Only the cells (site, structure) that are kept; the others are empty."""
        wide = {2: kept, 3: kept[..., None], 4: kept[..., None, None]}
        return type(self)(*(np.where(wide[values.ndim], values, 0.0) for values in vars(self).values()))

    def within(self) -> "Moments":
        """Sums over the sites, each about its own means, as one site: for a regression with an intercept for each."""
        return Moments(**vars(self) | {name: vars(self)[name].sum(axis=0, keepdims=True) for name in _SUMS})

    def together(self) -> "Moments":
        """All sites as if they were one."""
        n = self.n.sum(axis=0, keepdims=True)
        counted = np.maximum(n, 1)
        mean_x = (self.n[..., None] * self.mean_x).sum(axis=0, keepdims=True) / counted[..., None]
        mean_y = (self.n * self.mean_y).sum(axis=0, keepdims=True) / counted
        x, y = self.mean_x - mean_x, self.mean_y - mean_y
        weighted = self.n[..., None] * x
        xx = (self.xx + weighted[..., None] * x[..., None, :]).sum(axis=0, keepdims=True)
        xy = (self.xy + weighted * y[..., None]).sum(axis=0, keepdims=True)
        yy = (self.yy + self.n * y**2).sum(axis=0, keepdims=True)
        return Moments(n, mean_x, mean_y, xx, xy, yy)

    def residual(self, slopes: Float[ndarray, "site structure column"]) -> Float[ndarray, "site structure"]:
        """Residual sum of squares for these slopes, with the best intercept at each site."""
        explained = 2 * self.xy - (self.xx @ slopes[..., None])[..., 0]
        # Rounding of a perfect fit can end just below zero.
        return np.maximum(self.yy - (slopes * explained).sum(axis=-1), 0.0)


_SUMS = ("n", "xx", "xy", "yy")


def moments_of(x: Float[ndarray, "scan column"], y: Float[ndarray, "scan structure"]) -> Moments:
    """Moments of the scans of one site.

    Parameters
    ----------
    x
        Covariates, all finite.
    y
        Volumes; NaN where there is none.
    """
    present = np.isfinite(y)
    counted = present.astype(np.float64)
    n = counted.sum(axis=0)
    shares = counted / np.maximum(n, 1)
    mean_x = shares.T @ x
    mean_y = (shares * np.where(present, y, 0.0)).sum(axis=0)
    deviation = np.where(present, y - mean_y, 0.0)
    about = x - x.mean(axis=0) if len(x) else x
    # Covariates are centred at the mean of the site, and then at the mean of the scans that have the structure.
    shift = mean_x - x.mean(axis=0) if len(x) else mean_x
    squares = (about[:, :, None] * about[:, None, :]).reshape(len(x), x.shape[1] ** 2)
    xx = (counted.T @ squares).reshape(*shift.shape, x.shape[1])
    xx -= n[:, None, None] * shift[:, :, None] * shift[:, None, :]
    moments = (n, mean_x, mean_y, xx, deviation.T @ about, (deviation**2).sum(axis=0))
    return Moments(*(values[None] for values in moments))


def is_singular(xx: Float[ndarray, "... column column"]) -> Bool[ndarray, "..."]:
    """Whether covariates with these products do not vary, or are collinear.

    >>> is_singular(np.array([[[2.0, 0.0], [0.0, 1.0]], [[2.0, 2.0], [2.0, 2.0]]])).tolist()
    [False, True]
    """
    if not xx.shape[-1]:
        return np.zeros(xx.shape[:-2], dtype=bool)
    spread = np.sqrt(np.diagonal(xx, axis1=-2, axis2=-1))
    scale = np.where(spread > 0, spread, 1.0)
    smallest = np.linalg.eigvalsh(xx / scale[..., None] / scale[..., None, :])[..., 0]
    return np.asarray(smallest < _SINGULAR)


def inverse(xx: Float[ndarray, "... column column"]) -> Float[ndarray, "... column column"]:
    """Inverse, by way of the correlations, so that the units of the covariates do not matter."""
    scale = np.sqrt(np.diagonal(xx, axis1=-2, axis2=-1))
    outer = scale[..., None] * scale[..., None, :]
    return np.linalg.inv(xx / outer) / outer


@dataclass(frozen=True, eq=False)
class Regression:
    """Slopes of one regression with an intercept; NaN for a column that does not vary."""

    slopes: Float[ndarray, " column"]
    errors: Float[ndarray, " column"]
    """Standard errors."""
    df: float
    """Residual degrees of freedom."""
    residual_sd: float
    reason: str
    """Why there are no slopes, else empty."""


def regress(moments: Moments, site: int, structure: int, *, intercepts: int = 1) -> Regression:
    """Least squares on the moments of one site and structure.

    Columns that do not vary, such as the sex at a site with women only, are left out.

    Parameters
    ----------
    moments, site, structure
        Which moments; ``moments.within()`` for a regression with an intercept for each site.
    intercepts
        How many intercepts the model has.
    """
    n, mean_y = float(moments.n[site, structure]), float(moments.mean_y[site, structure])
    xx, xy, yy = moments.xx[site, structure], moments.xy[site, structure], float(moments.yy[site, structure])
    used = np.diagonal(xx) > 1e-20 * n * (moments.mean_x[site, structure] ** 2 + 1e-300)
    df = n - intercepts - used.sum()
    nothing = np.full(len(xy), np.nan)
    if df < 1:
        reason = f"{int(n)} usable scans, a regression with {int(used.sum())} covariates needs {int(n - df) + 1}"
        return Regression(nothing, nothing, np.nan, np.nan, reason)
    if is_singular(xx[np.ix_(used, used)]):
        return Regression(nothing, nothing, np.nan, np.nan, "the covariates are collinear")
    inverted = inverse(xx[np.ix_(used, used)])
    slopes, errors = nothing.copy(), nothing.copy()
    slopes[used] = inverted @ xy[used]
    left = yy - float(slopes[used] @ (2 * xy[used] - xx[np.ix_(used, used)] @ slopes[used]))
    if not left > 1e-20 * n * (mean_y**2 + yy):
        return Regression(nothing, nothing, np.nan, np.nan, "the values do not vary beyond the covariates")
    errors[used] = np.sqrt(left / df * np.diagonal(inverted))
    return Regression(slopes, errors, float(df), float(np.sqrt(left / df)), "")
