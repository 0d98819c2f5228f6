"""Norms: where a volume stands among people of the same age, sex and size of the head.

The model is a Gaussian one of location and scale, as in GAMLSS (Rigby & Stasinopoulos, Applied Statistics 2005): the
mean of the logarithm of the volume is a natural cubic spline of age, with a shift by sex (or a spline of its own for
each sex) and a slope of the logarithm of the ICV; the logarithm of its standard deviation is a line in age. Both are
fitted together by maximum likelihood, with the scale corrected for the columns of the mean (Smyth & Verbyla,
Environmetrics 1999).

Norms are plain numbers: they can be written as JSON, read by another site and, with a few controls of its own, moved
to its scanner. Ages outside those of the reference have no norm.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
import pandas as pd
import xarray as xr
from jaxtyping import Bool, Float
from numpy import ndarray
from scipy import special, stats

from hypodask.errors import ResultsError
from hypodask.stats.covariates import covariate_values, is_full_rank, known_covariates
from hypodask.stats.demographics import sexes
from hypodask.stats.groups import ALPHA, FEWEST_SCANS
from hypodask.stats.samples import group_labels, is_constant, is_in, require, usable_scans

SCHEMA = 1
"""Version of the JSON of norms; raised when an older reader would misunderstand it."""

KNOTS = (0.05, 0.35, 0.65, 0.95)
"""Quantiles of age at which the spline bends (Harrell, Regression Modeling Strategies, 2001, for four knots)."""

CURVES_OF_SEX = tuple(f"sex:age{i}" for i in range(1, len(KNOTS)))
"""Columns by which the curve of men differs from that of women."""

SCANS_PER_COLUMN = 10
"""Fewer scans per coefficient fit the sample and not the people (Harrell's rule)."""

MOST_STEPS = 100
"""The fit settles in about ten."""

SITE_SHIFT_SD = 1.0
"""How far sites may lie apart, in standard deviations of the norm; a guess, wide enough for other scanners."""

SITE_LOG_SCALE_SD = 0.2
"""How much sites may differ in the logarithm of their spread; a guess: one in twenty beyond a factor of 1.5."""

FEWEST_FOR_SHAPE = 20
"""The test of D'Agostino and Pearson is not valid for fewer."""

REACH = float(stats.norm.ppf(1 - ALPHA / 2))

Scale = Literal["log", "linear"]


@dataclass(frozen=True)
class StructureNorm:
    """Model of one structure; the values of a scan are ``(y - mean) / sd``, less the shift, over the scale."""

    structure: str
    n: int
    """Scans of the reference."""
    columns: tuple[str, ...]
    """Of the mean: ``1``, splines of age, then sex and ICV where there are, then splines of age that differ by sex."""
    mean: tuple[float, ...]
    log_sd: tuple[float, float]
    """Intercept and slope, age running from 0 to 1 over that of the reference."""
    mean_covariance: tuple[tuple[float, ...], ...]
    log_sd_covariance: tuple[tuple[float, ...], ...]
    centre: float
    """What the logarithm of the ICV is taken from."""
    controls: int = 0
    """Controls of the site that the norm was moved to; 0 for that of the reference."""
    shift: float = 0.0
    """Of the site, in standard deviations of the norm."""
    shift_sd: float = 0.0
    log_scale: float = 0.0
    log_scale_sd: float = 0.0


@dataclass(frozen=True)
class Norms:
    """Norms of several structures from one reference; written with :meth:`to_json`."""

    variable: str
    units: str
    scale: Scale
    """``log``: the logarithm of the volume is normal; ``linear``: the volume is."""
    knots_years: tuple[float, ...]
    """First and last are those of the spline, not the youngest and oldest."""
    age_low_years: float
    age_high_years: float
    structures: tuple[StructureNorm, ...]
    schema: int = SCHEMA

    def to_json(self) -> str:
        """As text that :meth:`from_json` reads."""
        return json.dumps(asdict(self), indent=1)

    @staticmethod
    def from_json(text: str) -> "Norms":
        """Read norms.

        Raises
        ------
        ResultsError
            If the text is no norms, or of another schema.

        Examples
        --------
        >>> Norms.from_json('{"schema": 99}')
        Traceback (most recent call last):
        hypodask.errors.ResultsError: norms of schema 99, needed 1: read them with the version that wrote them
        """
        try:
            found = json.loads(text)
            if found["schema"] != SCHEMA:
                raise ResultsError(
                    f"norms of schema {found['schema']}, needed {SCHEMA}: read them with the version that wrote them"
                )
            structures = tuple(StructureNorm(**_tuples(one)) for one in found.pop("structures"))
            return Norms(**_tuples(found), structures=structures)
        except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as err:
            raise ResultsError(f"no norms ({err!r}), needed the JSON of Norms.to_json: write them again") from err

    def of(self, structure: str) -> StructureNorm:
        """The norm of one structure.

        Raises
        ------
        ResultsError
            If there is none.
        """
        known = {one.structure: one for one in self.structures}
        if structure not in known:
            raise ResultsError(f"no norm of {structure!r}: choose one of {list(known)}, or fit it")
        return known[structure]


def _tuples(found: dict[str, Any]) -> dict[str, Any]:
    """JSON knows lists only."""
    return {name: _tuple(value) for name, value in found.items()}


def _tuple(value: object) -> object:
    return tuple(_tuple(item) for item in value) if isinstance(value, list) else value


def fit_norms(
    ds: xr.Dataset,
    *,
    reference: str | None = "control",
    by: str = "group",
    structures: Sequence[str] = ("hypothalamus",),
    variable: str = "volume_mm3",
    covariates: Sequence[Literal["sex", "icv"]] = ("sex", "icv"),
    scale: Scale = "log",
    sex_curves: bool = False,
) -> Norms:
    """Fit norms to a reference group.

    Parameters
    ----------
    ds
        Results with ``age`` in years, and ``sex`` and the structure ``icv`` where they are adjusted for; one scan per
        participant. Scans that are failed, skipped, ``excluded`` or lack a covariate do not count.
    reference
        Name of the reference group; None for all scans.
    by
        Coordinate that holds the group.
    structures
        Those that get a norm; the norm of ``icv`` itself is adjusted for age and sex alone.
    variable
        Such as ``volume_mm3``, with one value per structure.
    covariates
        What is adjusted for besides age. Take ``icv`` out for volumes that are divided by it already.
    scale
        Whether the logarithm of a volume is normal, or the volume itself; :func:`check_norms` tells which fits.
    sex_curves
        Whether men and women have each a curve of age of their own, not one and a shift: three coefficients more.

    Raises
    ------
    ResultsError
        If something is not there, or the reference is too small or too alike for the model.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> age = rng.uniform(20, 80, 300)
    >>> volume = np.exp(6.8 - 0.002 * age + rng.normal(0, 0.09, 300))[:, None]
    >>> ds = xr.Dataset(
    ...     {"volume_mm3": (("scan", "structure"), volume)},
    ...     coords={"structure": ["hypothalamus"], "age": ("scan", age)},
    ... )
    >>> norms = fit_norms(ds, reference=None, covariates=[])
    >>> apply_norms(ds, norms).z.mean("scan").round(2).values.tolist()
    [0.0]
    """
    require(ds, variable, "age", "structure")
    if sex_curves and "sex" not in covariates:
        raise ResultsError(f"sex_curves with the covariates {list(covariates)}, needed 'sex' among them: add it")
    members = _reference_scans(ds, reference, by, covariates)
    _refuse_repeated(ds, members)
    age = covariate_values(ds, "age")[members]
    knots = np.quantile(age, KNOTS) if len(age) else np.zeros(len(KNOTS))
    if not (np.diff(knots) > 0).all():
        raise ResultsError(
            f"{len(age)} reference scans of ages that are too few or too alike for a curve (its knots would be "
            f"{knots.tolist()} years): take a larger reference group"
        )
    empty = Norms(
        variable=variable,
        units=str(ds[variable].attrs.get("units", "mm3")),
        scale=scale,
        knots_years=tuple(knots.tolist()),
        age_low_years=float(age.min()),
        age_high_years=float(age.max()),
        structures=(),
    )
    columns = (*covariates, *(CURVES_OF_SEX if sex_curves else ()))
    return replace(empty, structures=tuple(_fit(ds, empty, members, name, columns) for name in structures))


def _reference_scans(
    ds: xr.Dataset, reference: str | None, by: str, covariates: Sequence[str]
) -> Bool[ndarray, " scan"]:
    members: Bool[ndarray, " scan"] = usable_scans(ds) & known_covariates(ds, ["age", *covariates])
    return members & is_in(ds, reference, by)


def _refuse_repeated(ds: xr.Dataset, members: Bool[ndarray, " scan"]) -> None:
    if "participant_id" not in ds.variables:
        return
    people = pd.Series(group_labels(ds, "participant_id")[members])
    if people[people != ""].duplicated().any():
        raise ResultsError("a participant of the reference has more than one scan, needed one each: keep one of them")


def _response(ds: xr.Dataset, norms: Norms, structure: str) -> Float[ndarray, " scan"]:
    """What is normal: the volume or its logarithm; NaN where there is none."""
    known = ds["structure"].to_numpy().astype(str).tolist()
    if structure not in known:
        raise ResultsError(f"no structure {structure!r} in the results: choose one of {known}")
    values = ds[norms.variable].sel(structure=structure).to_numpy().astype(np.float64)
    if norms.scale == "linear":
        return np.where(np.isfinite(values), values, np.nan)
    return np.log(values, out=np.full(len(values), np.nan), where=np.isfinite(values) & (values > 0))


def _unit_age(norms: Norms, age: Float[ndarray, " scan"]) -> Float[ndarray, " scan"]:
    return (age - norms.age_low_years) / (norms.age_high_years - norms.age_low_years)


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


def _design(
    norms: Norms,
    columns: Sequence[str],
    centre: float,
    age: Float[ndarray, " scan"],
    male: Float[ndarray, " scan"],
    icv_mm3: Float[ndarray, " scan"],
) -> tuple[Float[ndarray, "scan column"], Float[ndarray, "scan 2"]]:
    """Columns of the mean and of the logarithm of the standard deviation."""
    x = _unit_age(norms, age)
    spline = natural_spline(x, _unit_age(norms, np.array(norms.knots_years)))
    parts = [np.ones(len(x)), *spline.T]
    parts += [male - 0.5] if "sex" in columns else []
    parts += [np.log(icv_mm3) - centre] if "icv" in columns else []
    parts += [(male - 0.5) * column for column in spline.T] if CURVES_OF_SEX[0] in columns else []
    return np.column_stack(parts), np.column_stack([np.ones(len(x)), x])


def _covariates(ds: xr.Dataset, columns: Sequence[str]) -> tuple[ndarray, ndarray, ndarray]:
    """Age, 1 for a man and 0 for a woman, ICV in mm3; what is not asked for is not looked for."""
    n, unknown = ds.sizes["scan"], np.full(ds.sizes["scan"], np.nan)
    male = np.select([sexes(ds) == "male", sexes(ds) == "female"], [1.0, 0.0], np.nan) if "sex" in columns else unknown
    icv = covariate_values(ds, "icv") if "icv" in columns else np.ones(n)
    return covariate_values(ds, "age"), male, np.where(icv > 0, icv, np.nan)


def _fit(
    ds: xr.Dataset, norms: Norms, members: Bool[ndarray, " scan"], structure: str, covariates: Sequence[str]
) -> StructureNorm:
    asked = [name for name in covariates if not (name == structure == "icv")]
    age, male, icv = _covariates(ds, asked)
    y = _response(ds, norms, structure)
    counted = members & np.isfinite(y) & (np.isfinite(icv))
    centre = float(np.log(icv[counted]).mean()) if counted.any() else 0.0
    design, spread = _design(norms, asked, centre, age[counted], male[counted], icv[counted])
    _check_reference(design, spread, y[counted], structure)
    mean, log_sd, mean_covariance, log_sd_covariance = fit_location_scale(y[counted], design, spread)
    names = ("1", *(f"age{i}" for i in range(1, len(KNOTS))), *asked)
    return StructureNorm(
        structure=structure,
        n=int(counted.sum()),
        columns=names,
        mean=tuple(mean.tolist()),
        log_sd=(float(log_sd[0]), float(log_sd[1])),
        mean_covariance=tuple(map(tuple, mean_covariance.tolist())),
        log_sd_covariance=tuple(map(tuple, log_sd_covariance.tolist())),
        centre=centre,
    )


def _check_reference(design: ndarray, spread: ndarray, y: ndarray, structure: str) -> None:
    needed = SCANS_PER_COLUMN * (design.shape[1] + spread.shape[1])
    if len(y) < needed:
        raise ResultsError(
            f"{len(y)} reference scans with every value for {structure!r}, needed {needed}: take a larger reference "
            "or fewer covariates"
        )
    if is_constant(y) or not is_full_rank(design):
        raise ResultsError(
            f"a covariate or the volume of {structure!r} is the same in all reference scans, needed values that vary: "
            "leave the covariate out"
        )


def fit_location_scale(
    y: Float[ndarray, " scan"], design: Float[ndarray, "scan column"], spread: Float[ndarray, "scan scale"]
) -> tuple[ndarray, ndarray, ndarray, ndarray]:
    """Mean and logarithm of the standard deviation, both linear, with the covariance of their coefficients.

    Weighted least squares for the mean and Fisher's scoring for the scale in turn; residuals are enlarged by their
    leverage, without which the scale of a small reference is too small.

    Raises
    ------
    ResultsError
        If the fit does not settle.

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
    for _ in range(MOST_STEPS):
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
        f"the norms of {len(y)} scans did not settle in {MOST_STEPS} steps: look for outliers, take a larger reference"
    )


@dataclass(frozen=True, eq=False)
class _Place:
    """Where the scans stand in the norm of one structure, and how far its own sampling error may move them."""

    z: Float[ndarray, " scan"]
    error: Float[ndarray, " scan"]


def _place(ds: xr.Dataset, norms: Norms, norm: StructureNorm, within: Bool[ndarray, " scan"]) -> _Place:
    """Delta method: errors of mean, standard deviation, and of shift and scale of the site."""
    z, error = np.full((2, len(within)), np.nan)
    age, male, icv = (values[within] for values in _covariates(ds, norm.columns))
    design, spread = _design(norms, norm.columns, norm.centre, age, male, icv)
    sd = np.exp(spread @ np.array(norm.log_sd))
    plain = (_response(ds, norms, norm.structure)[within] - design @ np.array(norm.mean)) / sd
    mean_error2 = _quadratic(design, norm.mean_covariance) / sd**2
    sd_error2 = _quadratic(spread, norm.log_sd_covariance) * plain**2
    shrink = np.exp(-norm.log_scale)
    z[within] = (plain - norm.shift) * shrink
    variance = (mean_error2 + sd_error2 + norm.shift_sd**2) * shrink**2 + (z[within] * norm.log_scale_sd) ** 2
    error[within] = np.sqrt(variance)
    return _Place(z, error)


def _quadratic(columns: Float[ndarray, "scan column"], covariance: Sequence[Sequence[float]]) -> ndarray:
    return np.einsum("si,ij,sj->s", columns, np.array(covariance), columns, optimize=True)


def _reasons(ds: xr.Dataset, norms: Norms) -> ndarray:
    """Why a scan has no norm: one sentence each, empty where it has one."""
    columns = {name for norm in norms.structures for name in norm.columns}
    age, male, icv = _covariates(ds, sorted(columns))
    span = f"the reference is {norms.age_low_years:g} to {norms.age_high_years:g} years"
    conditions = [
        ~usable_scans(ds),
        ~np.isfinite(age),
        (age < norms.age_low_years) | (age > norms.age_high_years),
        ~np.isfinite(male) & ("sex" in columns),
        ~np.isfinite(icv),
    ]
    texts = ["not done, or excluded", "no age", f"age outside the norms: {span}", "no sex", "no ICV"]
    return np.select(conditions, np.array(texts, dtype=object), default="")


def apply_norms(ds: xr.Dataset, norms: Norms) -> xr.Dataset:
    """Place every scan in the norms.

    Parameters
    ----------
    ds
        Results with what the norms adjust for; scans are placed whatever their group.

    Returns
    -------
    Dataset
        With ``z`` and ``centile`` (0 to 100), each with the ends of a 95 % interval, ``z_low``, ``z_high``,
        ``centile_low``, ``centile_high``, NaN for structures without a norm; and ``norm_reason(scan)``, why a scan has
        none: not usable, a covariate missing, or an age outside those of the reference. The interval says how
        far the norm itself may be off, from the size of the reference and the controls of a site; not how well the
        volume was measured.

    Raises
    ------
    ResultsError
        If the variable, a structure or a covariate of the norms is not there.
    """
    require(ds, norms.variable, "age", "structure")
    reasons = _reasons(ds, norms)
    within = reasons == ""
    known = ds["structure"].to_numpy().astype(str).tolist()
    shape = (ds.sizes["scan"], len(known))
    z, error = np.full(shape, np.nan), np.full(shape, np.nan)
    for norm in norms.structures:
        place = _place(ds, norms, norm, within)
        z[:, known.index(norm.structure)], error[:, known.index(norm.structure)] = place.z, place.error
    ends = {"": z, "_low": z - REACH * error, "_high": z + REACH * error}
    dims = ("scan", "structure")
    found = {f"z{end}": (dims, values, {"units": "1"}) for end, values in ends.items()}
    found |= {f"centile{end}": (dims, 100 * special.ndtr(values), {"units": "%"}) for end, values in ends.items()}
    return ds.assign(found).assign(norm_reason=("scan", reasons))


def adapt_norms(
    ds: xr.Dataset,
    norms: Norms,
    *,
    reference: str | None = "control",
    by: str = "group",
    shift_sd: float = SITE_SHIFT_SD,
    log_scale_sd: float = SITE_LOG_SCALE_SD,
) -> Norms:
    """Move norms to a site, by its own controls.

    A scanner shifts volumes and changes their spread. Both are estimated from the ``z`` of the controls and drawn
    towards none, the more the fewer they are: an empirical Bayes estimate with normal priors. What they leave
    unsure widens every interval of ``z`` at this site.

    Parameters
    ----------
    ds
        Results of the site; its usable controls with every covariate count.
    norms
        Those of the reference, not moved before.
    reference
        Name of the group of controls; None for all scans.
    by
        Coordinate that holds the group.
    shift_sd, log_scale_sd
        How much sites differ: standard deviation of the shift, in those of the norm, and of the logarithm of the
        scale.

    Raises
    ------
    ResultsError
        If there are fewer than three controls, or the norms were moved before.
    """
    if any(norm.controls for norm in norms.structures):
        raise ResultsError("norms that were moved to a site before, needed those of the reference: start from them")
    if min(shift_sd, log_scale_sd) <= 0:
        raise ResultsError(f"shift_sd {shift_sd} and log_scale_sd {log_scale_sd}, needed numbers above 0")
    columns = {name for norm in norms.structures for name in norm.columns} & {"sex", "icv"}
    members = _reference_scans(ds, reference, by, sorted(columns))
    _refuse_repeated(ds, members)
    z = apply_norms(ds, norms)["z"]
    moved = []
    for norm in norms.structures:
        own = z.sel(structure=norm.structure).to_numpy()[members]
        moved.append(_move(norm, own[np.isfinite(own)], shift_sd, log_scale_sd))
    return replace(norms, structures=tuple(moved))


def _move(norm: StructureNorm, z: Float[ndarray, " n"], shift_sd: float, log_scale_sd: float) -> StructureNorm:
    n = len(z)
    if n < FEWEST_SCANS or is_constant(z):
        raise ResultsError(
            f"{n} controls of the site with a z of {norm.structure!r} that varies, needed {FEWEST_SCANS}: add controls"
        )
    half = (n - 1) / 2
    # Mean and variance of the logarithm of a sample's standard deviation, from those of log chi-square.
    observed = float(np.log(z.std(ddof=1)) - (special.digamma(half) - np.log(half)) / 2)
    scale_doubt = float(special.polygamma(1, half)) / 4
    log_scale, log_scale_var = _shrunk(observed, scale_doubt, log_scale_sd)
    shift, shift_var = _shrunk(float(z.mean()), float(np.exp(2 * log_scale)) / n, shift_sd)
    return replace(
        norm,
        controls=n,
        shift=shift,
        shift_sd=float(np.sqrt(shift_var)),
        log_scale=log_scale,
        log_scale_sd=float(np.sqrt(log_scale_var)),
    )


def _shrunk(observed: float, variance: float, prior_sd: float) -> tuple[float, float]:
    """Mean and variance of what is believed of a number, normal about 0 beforehand, after it was observed."""
    share = prior_sd**2 / (prior_sd**2 + variance)
    return share * observed, share * variance


def centile_curves(
    norms: Norms,
    structure: str,
    ages_years: Sequence[float],
    *,
    sex: Literal["male", "female"] = "female",
    icv_mm3: float = 1.5e6,
    centiles: Sequence[float] = (2.5, 10, 25, 50, 75, 90, 97.5),
) -> pd.DataFrame:
    """Volumes of chosen centiles over age, to draw or to print.

    Returns
    -------
    DataFrame
        One row per age and centile: ``age, centile, value`` in the unit of the variable with the 95 % interval
        ``value_low, value_high`` (delta method).

    Raises
    ------
    ResultsError
        If there is no such norm, an age lies outside those of the reference, or a centile is not within 0 and 100.
    """
    norm, age, share = norms.of(structure), np.asarray(ages_years, np.float64), np.asarray(centiles, np.float64)
    if (age < norms.age_low_years).any() or (age > norms.age_high_years).any():
        raise ResultsError(f"ages {age.tolist()}, needed {norms.age_low_years:g} to {norms.age_high_years:g} years")
    if ((share <= 0) | (share >= 100)).any():
        raise ResultsError(f"centiles {share.tolist()}, needed numbers above 0 and below 100")
    male, icv = np.full(len(age), float(sex == "male")), np.full(len(age), icv_mm3)
    design, spread = _design(norms, norm.columns, norm.centre, age, male, icv)
    sd = np.exp(spread @ np.array(norm.log_sd))[:, None]
    site = np.exp(norm.log_scale) * special.ndtri(share / 100)
    plain = norm.shift + site
    middle = (design @ np.array(norm.mean))[:, None] + sd * plain
    doubt = _quadratic(design, norm.mean_covariance)[:, None] + sd**2 * (
        plain**2 * _quadratic(spread, norm.log_sd_covariance)[:, None]
        + norm.shift_sd**2
        + (site * norm.log_scale_sd) ** 2
    )
    undo = np.exp if norms.scale == "log" else np.asarray
    ends = {"value": 0.0, "value_low": -REACH, "value_high": REACH}
    values = {name: undo(middle + reach * np.sqrt(doubt)).ravel() for name, reach in ends.items()}
    return pd.DataFrame({"age": np.repeat(age, len(share)), "centile": np.tile(share, len(age))} | values)


def check_norms(ds: xr.Dataset, norms: Norms, *, reference: str | None = "control", by: str = "group") -> pd.DataFrame:
    """Check that the norms fit people they are for: the reference itself, or better controls it did not know.

    Returns
    -------
    DataFrame
        One row per structure: ``n``; ``mean, sd, skewness, kurtosis`` (excess) of z, 0, 1, 0 and 0 where the norms
        fit; ``below_5``, ``below_95``: percent of scans below these centiles; ``p_mean`` (t-test) and ``p_normal``
        (D'Agostino and Pearson); ``reason`` why there is no result.

    Raises
    ------
    ResultsError
        As of :func:`apply_norms`, or if there is no such reference group.
    """
    members = _reference_scans(ds, reference, by, ())
    z = apply_norms(ds, norms)["z"]
    rows = []
    for norm in norms.structures:
        own = z.sel(structure=norm.structure).to_numpy()[members]
        rows.append({"structure": norm.structure} | _check_z(own[np.isfinite(own)]))
    columns = ("structure", "n", "mean", "sd", "skewness", "kurtosis", "below_5", "below_95", "p_mean", "p_normal")
    return pd.DataFrame(rows, columns=[*columns, "reason"])


def _check_z(z: Float[ndarray, " n"]) -> dict[str, object]:
    if len(z) < FEWEST_FOR_SHAPE or is_constant(z):
        return {"n": len(z), "reason": f"{len(z)} scans have a z, needed {FEWEST_FOR_SHAPE} that vary"}
    low, high = special.ndtri([0.05, 0.95])
    found = {"mean": z.mean(), "sd": z.std(ddof=1), "skewness": stats.skew(z), "kurtosis": stats.kurtosis(z)}
    found |= {"below_5": 100 * (z < low).mean(), "below_95": 100 * (z < high).mean()}
    found |= {"p_mean": stats.ttest_1samp(z, 0.0).pvalue, "p_normal": stats.normaltest(z).pvalue}
    return {"n": len(z), **{name: float(value) for name, value in found.items()}, "reason": ""}
