"""ComBat: volumes of several sites on one scale, with the effects of covariates kept.

Johnson, Li and Rabinovic 2007 (Biostatistics 8:118); Fortin et al. 2018 (NeuroImage 167:104) for MRI. The model is::

    volume = mean + covariates @ coefficients + sd * (shift of the site + sqrt(variance ratio of the site) * noise)

Shift and variance ratio of each site and structure are shrunk towards their common distribution over the structures of
that site (``shrinkage``). The whole model is calculated from the moments of each site (``moments``). Sites that cannot
share their scans therefore get the same model (``federated``).
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, get_args

import numpy as np
import pandas as pd
import xarray as xr
from jaxtyping import Bool, Float
from numpy import ndarray

from hypodask.core.errors import ResultsError
from hypodask.core.variables import VARIABLES
from hypodask.stats.covariates import Covariate, encode, known_covariates, read_covariate
from hypodask.stats.groups import FEWEST_SCANS
from hypodask.stats.samples import done_scans, group_labels, group_names, is_in, usable_scans, volumes_of
from hypodask.stats.sites.combat_model import ComBat
from hypodask.stats.sites.moments import Moments, inverse, is_singular, moments_of
from hypodask.stats.sites.shrinkage import Prior, SiteEstimates, shrink

_SINGULAR_SHARE = 1e-12
"""Share of the variation of a covariate within sites, below which it is rounding error."""


@dataclass(frozen=True)
class Options:
    """How a model is fitted: options of :func:`fit_combat`, with an empty text for None."""

    variable: str = "volume_mm3"
    site: str = "site"
    on: str = ""
    reference: str = ""
    prior: Prior = "parametric"
    mean_only: bool = False


@dataclass(frozen=True, eq=False)
class SiteMoments:
    """The moments of the sites with the names of their axes: all that a model is calculated from."""

    moments: Moments
    sites: tuple[str, ...]
    structures: tuple[str, ...]
    covariates: tuple[Covariate, ...]


def fit_combat(
    ds: xr.Dataset,
    variable: str = "volume_mm3",
    *,
    site: str = "site",
    covariates: Sequence[str] = ("age", "sex"),
    on: str | None = None,
    by: str = "group",
    reference: str | None = None,
    prior: Prior = "parametric",
    mean_only: bool = False,
) -> ComBat:
    """Estimate how each site shifts the volumes, and how it changes their variance.

    A site with fewer than three scans has no estimate, nor has a structure at a site where it does not vary.
    ``left_out`` of the model gives the reasons.

    Parameters
    ----------
    ds
        Results; scans that are failed, skipped, ``excluded`` or lack the site or a covariate do not count. A missing
        volume takes its scan out of that structure only.
    variable
        Volumes with one value per structure.
    site
        Coordinate that holds the site.
    covariates
        Covariates whose effects are kept: numbers, or categories (text; ``sex``, ``scanner`` and the like also if they
        are numbered). If the model is fitted on several groups, name the group here; otherwise ComBat takes a part of
        the difference between groups for one between sites.
    on
        Group to fit on, such as the controls; None for all scans.
    by
        Coordinate that holds the group.
    reference
        Site whose volumes stay as they are; None for the mean of all.
    prior
        See :data:`Prior`. ``none`` is the only one for a single structure.
    mean_only
        Correct the means of the sites but not their variances.

    Raises
    ------
    ResultsError
        If a column is not there, fewer than two sites have enough scans, or the effect of a covariate cannot be
        separated from that of the site.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> volumes = rng.normal([800, 400], 50, (40, 2)) + np.repeat([[0], [60]], 20, axis=0)
    >>> ds = xr.Dataset(
    ...     {"volume_mm3": (("scan", "structure"), volumes)},
    ...     coords={"structure": ["left", "right"], "site": ("scan", ["a"] * 20 + ["b"] * 20)},
    ... )
    >>> model = fit_combat(ds, covariates=())
    >>> model.sites, bool((model.shift[0] < model.shift[1]).all())
    (('a', 'b'), True)
    """
    labels, y = group_labels(ds, site), volumes_of(ds, variable)
    counted = usable_scans(ds) & (labels != "") & known_covariates(ds, covariates) & is_in(ds, on, by)
    known = tuple(read_covariate(ds, name, among=counted) for name in covariates)
    x = encode(ds, known)
    sites = tuple(group_names(labels[counted]))
    moments = Moments.stack(
        [moments_of(x[m], y[m]) for m in (counted & (labels == name) for name in sites)] or [moments_of(x[:0], y[:0])]
    )
    structures = tuple(ds["structure"].to_numpy().astype(str).tolist())
    options = Options(variable, site, on or "", reference or "", prior, mean_only)
    return combat_of(SiteMoments(moments, sites, structures, known), options)


def combat_of(given: SiteMoments, options: Options) -> ComBat:
    """Calculate the model from the moments of the sites.

    Raises
    ------
    ResultsError
        As :func:`fit_combat` does.
    """
    # A structure is harmonised at the sites where it has an estimate, if there are two of them.
    estimated: ndarray = np.logical_and(given.moments.n >= FEWEST_SCANS, _varies(given.moments))
    kept = replace(given, moments=given.moments.where(np.logical_and(estimated, estimated.sum(axis=0) >= 2)))
    _check(kept, options)
    row = given.sites.index(options.reference) if options.reference else None
    location = _locate(kept.moments, row)
    found = _site_estimates(kept.moments, location, options.mean_only)
    shift, ratio = shrink(found, prior=options.prior, mean_only=options.mean_only)
    if row is not None:
        there = kept.moments.n[row] > 0
        shift[row], ratio[row] = np.where(there, 0.0, np.nan), np.where(there, 1.0, np.nan)
    return ComBat(
        **asdict(options),
        sites=given.sites,
        structures=given.structures,
        covariates=given.covariates,
        n=kept.moments.n,
        mean=location.mean,
        sd=location.sd,
        coefficients=location.slopes.T,
        shift=shift,
        variance_ratio=ratio,
        left_out=_left_out(given),
    )


def _varies(moments: Moments) -> Bool[ndarray, "site structure"]:
    varies: ndarray = moments.yy > 1e-24 * moments.n * moments.mean_y**2
    return varies


def _left_out(given: SiteMoments) -> dict[str, str]:
    moments, sites, structures = given.moments, given.sites, given.structures
    enough: ndarray = np.asarray(moments.n >= FEWEST_SCANS)
    varies = _varies(moments)
    most = moments.n.max(axis=1, initial=0).astype(int)
    reasons = {
        site: f"{most[i]} scans at {site} could be used, an estimate needs {FEWEST_SCANS}"
        for i, site in enumerate(sites)
        if not enough[i].any()
    }
    cells: ndarray = np.logical_and(enough, varies)
    whole: ndarray = np.asarray(cells.sum(axis=0) >= 2)
    for k in np.flatnonzero(~whole):
        reasons[structures[k]] = f"{structures[k]} varies in fewer than two sites with {FEWEST_SCANS} volumes"
    for i, k in np.argwhere(~cells & whole & enough.any(axis=1, keepdims=True)):
        what = "does not vary" if enough[i, k] else f"has {int(moments.n[i, k])} volumes, needed {FEWEST_SCANS},"
        reasons[f"{sites[i]}: {structures[k]}"] = f"{structures[k]} {what} at {sites[i]}"
    return reasons


def _check(kept: SiteMoments, options: Options) -> None:
    """Raise an error if no model can be fitted."""
    n, reference = kept.moments.n, options.reference
    used: ndarray = np.any(n > 0, axis=1)
    if used.sum() < 2:
        raise ResultsError(
            f"{used.sum()} of the sites {list(kept.sites)} have {FEWEST_SCANS} usable scans that vary, harmonisation "
            "needs two such sites: check the column of sites, the covariates and the group to fit on (on=...)"
        )
    if options.prior not in get_args(Prior):
        raise ResultsError(f"no prior {options.prior!r}: choose one of {list(get_args(Prior))}")
    known = [site for site, there in zip(kept.sites, used, strict=True) if there]
    if reference and reference not in known:
        raise ResultsError(f"the reference site {reference!r} has no estimate: choose one of {known}")
    if options.prior != "none" and np.any(np.count_nonzero(n[used], axis=1) < 2):
        raise ResultsError(
            "a site has a single usable structure, needed two or more for a prior, which is the common distribution of "
            "the structures: give more structures, or prior='none'"
        )
    _refuse_confounded(kept)


def _refuse_confounded(kept: SiteMoments) -> None:
    columns = np.array([column for covariate in kept.covariates for column in covariate.columns])
    within, total = kept.moments.within(), kept.moments.together()
    present = within.n[0] > 0
    spread, whole = (np.diagonal(m.xx[0], axis1=-2, axis2=-1) for m in (within, total))
    fixed = present[:, None] & ~(spread > _SINGULAR_SHARE * whole)
    if fixed.any():
        raise ResultsError(
            f"{columns[fixed.any(axis=0)].tolist()} do not vary within any site, so that their effects cannot be "
            "separated from those of the sites: leave them out, or fit on one group (on=...) that all sites have"
        )
    singular = present & is_singular(within.xx[0])
    if singular.any():
        raise ResultsError(
            f"within the sites {columns.tolist()} are collinear ({kept.structures[int(np.argmax(singular))]}): "
            "leave out one that follows from the others"
        )


@dataclass(frozen=True, eq=False)
class _Location:
    """The regression that all sites share."""

    slopes: Float[ndarray, "structure column"]
    intercepts: Float[ndarray, "site structure"]
    mean: Float[ndarray, " structure"]
    sd: Float[ndarray, " structure"]


def _locate(kept: Moments, reference: int | None) -> _Location:
    there = kept.n.sum(axis=0) > 0
    slopes = np.zeros(kept.mean_x.shape[1:])
    within = kept.within()
    slopes[there] = (inverse(within.xx[0][there]) @ within.xy[0][there][..., None])[..., 0]
    intercepts = kept.mean_y - (kept.mean_x * slopes).sum(axis=-1)
    weights = kept.n if reference is None else kept.n * (np.arange(len(kept.n)) == reference)[:, None]
    # Sites are weighted by their scans, and the variance is divided by n, as in the reference implementations.
    counted = np.where(weights.sum(axis=0) > 0, weights.sum(axis=0), np.nan)
    mean = (weights * intercepts).sum(axis=0) / counted
    left = np.where(weights > 0, kept.residual(np.broadcast_to(slopes, kept.mean_x.shape)), 0.0)
    return _Location(slopes, intercepts, mean, np.sqrt(left.sum(axis=0) / counted))


def _site_estimates(kept: Moments, location: _Location, mean_only: bool) -> SiteEstimates:
    n = np.where((kept.n > 0) & np.isfinite(location.mean), kept.n, np.nan)
    shift = kept.mean_y - (kept.mean_x * location.slopes).sum(axis=-1) - location.mean
    squares = kept.residual(np.broadcast_to(location.slopes, kept.mean_x.shape)) / location.sd**2
    ratio = np.where(np.isfinite(n), 1.0, np.nan) if mean_only else squares / (n - 1)
    return SiteEstimates(n, np.where(np.isfinite(n), shift, np.nan) / location.sd, ratio, squares)


def apply_combat(ds: xr.Dataset, model: ComBat) -> xr.Dataset:
    """Remove the shift and scale of the sites from volumes, of scans in the fit or of new ones.

    Parameters
    ----------
    ds
        Results with the variable, site and covariates of the model, of any group.
    model
        Of :func:`fit_combat` or of :func:`~hypodask.stats.pool_combat`.

    Returns
    -------
    Dataset
        With ``harmonized_volume_mm3(scan, structure)`` (``harmonized_`` and the name of the variable) and
        ``harmonized_reason(scan)``: why a scan, or which of its volumes, could not be harmonised and is NaN: a site
        that is not in the model, a missing covariate, no estimate. Structures that are not in the model are NaN.

    Raises
    ------
    ResultsError
        If the variable, the site or a covariate is not there.
    """
    y = volumes_of(ds, model.variable)
    present = ds["structure"].to_numpy().astype(str)
    columns = pd.Index(model.structures).get_indexer(pd.Index(present)).tolist()
    x, labels = encode(ds, model.covariates), group_labels(ds, model.site)
    rows = pd.Index(model.sites).get_indexer(pd.Index(labels))
    harmonized = np.full_like(y, np.nan)
    for here, column in enumerate(columns):
        if column >= 0:
            harmonized[:, here] = _harmonize(model, y[:, here], x, rows, column)
    name = f"harmonized_{model.variable}"
    reasons = _reasons(model, labels, rows, x, present, np.isfinite(y) & done_scans(ds)[:, None])
    attrs = {"description": VARIABLES["harmonized_reason"].description}
    return ds.assign(
        {
            name: (("scan", "structure"), harmonized, _attrs(ds, model)),
            "harmonized_reason": ("scan", reasons, attrs),
        }
    )


def _harmonize(model: ComBat, y: ndarray, x: ndarray, rows: ndarray, column: int) -> Float[ndarray, " scan"]:
    expected = model.mean[column] + x @ model.coefficients[:, column]
    shift = np.append(model.sd[column] * model.shift[:, column], np.nan)
    spread = np.append(np.sqrt(model.variance_ratio[:, column]), np.nan)
    # Scans of an unknown site have row -1: the NaN at the end.
    return (y - expected - shift[rows]) / spread[rows] + expected


def _attrs(ds: xr.Dataset, model: ComBat) -> dict[str, object]:
    columns = [column for covariate in model.covariates for column in covariate.columns]
    return {
        "units": str(ds[model.variable].attrs.get("units", "mm3" if model.variable.endswith("_mm3") else "")),
        "description": f"{model.variable} without the effects of {model.site} (ComBat).",
        "prior": model.prior,
        "reference": model.reference or "mean of all sites",
        "fitted_on": model.on or "all scans",
        "kept_effects": ", ".join(columns),
    }


def _reasons(
    model: ComBat,
    labels: ndarray,
    rows: ndarray,
    x: ndarray,
    present: ndarray,
    measured: Bool[ndarray, "scan structure"],
) -> ndarray:
    """One text per scan, empty if all of its measured volumes are harmonised."""
    reasons = np.full(len(labels), "", dtype=object)
    for code in np.unique(rows[rows >= 0]):
        members = rows == code
        reasons[members] = _site_reasons(model, model.sites[code], present, measured[members])
    unknown = (rows < 0) & (labels != "")
    reasons[unknown] = [f"no scan of {name} was in the fit: fit again with scans of it" for name in labels[unknown]]
    reasons[labels == ""] = f"the scan has no {model.site}"
    start = 0
    for covariate in model.covariates:
        lacking = ~np.isfinite(x[:, start])
        start += len(covariate.columns)
        among = f" among {list(covariate.levels)}" if covariate.levels else ""
        reasons[lacking] = f"the scan has no {covariate.name}{among}"
    return np.where(measured.any(axis=1), reasons, "")


def _site_reasons(model: ComBat, site: str, present: ndarray, measured: Bool[ndarray, "n structure"]) -> ndarray:
    if site in model.left_out:
        return np.full(len(measured), model.left_out[site], dtype=object)
    reasons = np.full(len(measured), "", dtype=object)
    for column, structure in enumerate(present):
        fault = model.left_out.get(structure) or model.left_out.get(f"{site}: {structure}", "")
        fault = fault or ("" if structure in model.structures else f"{structure} was not in the fit")
        if fault:
            reasons[measured[:, column]] += f"{fault}; "
    return np.array([reason.removesuffix("; ") for reason in reasons], dtype=object)


def harmonize(ds: xr.Dataset, variable: str = "volume_mm3", **options: Any) -> xr.Dataset:
    """Fit ComBat and apply it to all scans: :func:`fit_combat` with its ``options``, then :func:`apply_combat`.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> volumes = rng.normal([800, 400], 50, (40, 2)) + np.repeat([[0], [60]], 20, axis=0)
    >>> ds = xr.Dataset(
    ...     {"volume_mm3": (("scan", "structure"), volumes)},
    ...     coords={"structure": ["left", "right"], "site": ("scan", ["a"] * 20 + ["b"] * 20)},
    ... )
    >>> moved = harmonize(ds, covariates=()).harmonized_volume_mm3.groupby("site").mean()
    >>> bool(abs(moved.sel(site="a") - moved.sel(site="b")).max() < 10)
    True
    """
    return apply_combat(ds, fit_combat(ds, variable, **options))
