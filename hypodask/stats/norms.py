"""Norms: the model of a volume among people of the same age, sex and ICV, fitted to a reference group.

The model is a Gaussian one of location and scale, as in GAMLSS (Rigby & Stasinopoulos, Applied Statistics 2005). The
mean of the logarithm of the volume is a natural cubic spline of age, plus a shift by sex (or a spline of its own for
each sex), plus a slope of the logarithm of the ICV. The logarithm of its standard deviation is a line in age. Both are
fitted together by restricted maximum likelihood (``location_scale``).

Norms are plain numbers: they can be written as JSON, read at another site and, with a few controls of that site, moved
to its scanner. There is no norm for ages outside those of the reference.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import pandas as pd
import xarray as xr
from jaxtyping import Bool, Float
from numpy import ndarray

from hypodask.core.documents import from_document, read_table, to_json
from hypodask.core.errors import ResultsError
from hypodask.core.structures import HEAD_SIZE, MAIN
from hypodask.stats.covariates import covariate_values, is_full_rank, known_covariates
from hypodask.stats.location_scale import fit_location_scale, natural_spline
from hypodask.stats.samples import group_labels, is_constant, is_in, require, usable_scans, values_of
from hypodask.stats.table_one import sexes

_SCHEMA = 1
"""Version of the JSON of norms; raised when an older reader would misunderstand it."""

_KNOTS = (0.05, 0.35, 0.65, 0.95)
"""Quantiles of age at which the spline bends (Harrell, Regression Modeling Strategies, 2001, for four knots)."""

_CURVES_OF_SEX = tuple(f"sex:age{i}" for i in range(1, len(_KNOTS)))
"""Columns by which the curve of men differs from that of women."""

_ADJUSTED_FOR = ("sex", HEAD_SIZE.name)
"""What norms can be adjusted for besides age."""

_SCANS_PER_COLUMN = 10
"""With fewer scans per coefficient a model describes the sample rather than the people (Harrell's rule)."""

Scale = Literal["log", "linear"]


@dataclass(frozen=True)
class StructureNorm:
    """Norm of one structure: z of a scan is ``((y - mean) / sd - shift) / scale``."""

    structure: str
    n: int
    """Scans of the reference."""
    columns: tuple[str, ...]
    """Columns of the mean: ``1``, splines of age, then sex and ICV if adjusted for, then the splines of age that differ
    by sex."""
    mean: tuple[float, ...]
    """Coefficient of each column."""
    log_sd: tuple[float, float]
    """Intercept and slope of the logarithm of the standard deviation; age runs from 0 to 1 over the reference."""
    mean_covariance: tuple[tuple[float, ...], ...]
    log_sd_covariance: tuple[tuple[float, ...], ...]
    centre: float
    """Mean logarithm of the ICV in the reference, which is subtracted from that of each scan."""
    controls: int = 0
    """Controls of the site that the norm was moved to; 0 for the norm of the reference itself."""
    shift: float = 0.0
    """Shift of the site, in standard deviations of the norm."""
    shift_sd: float = 0.0
    """Standard error of ``shift``."""
    log_scale: float = 0.0
    """Logarithm of how many times wider volumes spread at the site."""
    log_scale_sd: float = 0.0
    """Standard error of ``log_scale``."""


@dataclass(frozen=True)
class Norms:
    """Norms of several structures from one reference; written with :meth:`to_json`."""

    variable: str
    units: str
    scale: Scale
    """``log``: the logarithm of the volume is normal; ``linear``: the volume is."""
    knots_years: tuple[float, ...]
    """Where the spline bends; the first and the last are not the youngest and the oldest age."""
    age_low_years: float
    age_high_years: float
    structures: tuple[StructureNorm, ...]
    schema: int = _SCHEMA

    def to_json(self) -> str:
        """As text that :meth:`from_json` reads."""
        return to_json(self)

    @classmethod
    def from_json(cls, text: str) -> "Norms":
        """Read norms.

        Raises
        ------
        ResultsError
            If the text is not that of norms, or of another schema.

        Examples
        --------
        >>> Norms.from_json('{"schema": 99}')
        Traceback (most recent call last):
        hypodask.core.errors.ResultsError: norms of schema 99, needed 1: read them with the version that wrote them
        """
        what, cure = "the file of norms", "write it again with Norms.to_json"
        values = read_table(text, "JSON", what=what, error=ResultsError, cure=cure)
        if values.get("schema", _SCHEMA) != _SCHEMA:
            raise ResultsError(
                f"norms of schema {values['schema']}, needed {_SCHEMA}: read them with the version that wrote them"
            )
        return from_document(cls, values, what=what, error=ResultsError, cure=cure)

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


def fit_norms(
    ds: xr.Dataset,
    *,
    reference: str | None = "control",
    by: str = "group",
    structures: Sequence[str] = (MAIN.name,),
    variable: str = "volume_mm3",
    covariates: Sequence[str] = _ADJUSTED_FOR,
    scale: Scale = "log",
    sex_curves: bool = False,
) -> Norms:
    """Fit norms to a reference group.

    Parameters
    ----------
    ds
        Results with ``age`` in years, and ``sex`` and the structure ``icv`` if they are adjusted for; one scan per
        participant. Scans that are failed, skipped, ``excluded`` or lack a covariate do not count.
    reference
        Name of the reference group; None for all scans.
    by
        Coordinate that holds the group.
    structures
        Those that get a norm; the norm of ``icv`` itself is adjusted for age and sex only.
    variable
        Such as ``volume_mm3``, with one value per structure.
    covariates
        What is adjusted for besides age: ``sex``, ``icv``, both or neither. Leave ``icv`` out for volumes that are
        divided by it already.
    scale
        Whether the logarithm of a volume is normal, or the volume itself; :func:`~hypodask.stats.check_norms` tells
        which of them fits.
    sex_curves
        Whether men and women each have their own curve of age, rather than one curve and a shift. This needs three
        more coefficients.

    Raises
    ------
    ResultsError
        If something is not there, a covariate is neither ``sex`` nor ``icv``, or the reference is too small or varies
        too little for the model.

    Examples
    --------
    >>> from hypodask.stats import apply_norms
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
    if unknown := sorted(set(covariates) - set(_ADJUSTED_FOR)):
        raise ResultsError(
            f"norms adjusted for {unknown}, needed {' or '.join(_ADJUSTED_FOR)} (age is always adjusted for): "
            "leave the others out"
        )
    if sex_curves and "sex" not in covariates:
        raise ResultsError(f"sex_curves with the covariates {list(covariates)}, needed 'sex' among them: add it")
    members = reference_scans(ds, reference, by, covariates)
    age = covariate_values(ds, "age")[members]
    knots = np.quantile(age, _KNOTS) if len(age) else np.zeros(len(_KNOTS))
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
    columns = (*covariates, *(_CURVES_OF_SEX if sex_curves else ()))
    return replace(empty, structures=tuple(_fit(ds, empty, members, name, columns) for name in structures))


def reference_scans(
    ds: xr.Dataset, reference: str | None, by: str, covariates: Sequence[str]
) -> Bool[ndarray, " scan"]:
    """Usable scans of the reference group with age and every covariate, one per participant.

    Raises
    ------
    ResultsError
        If there is no such group or covariate, or a participant has two of these scans.
    """
    members = usable_scans(ds) & known_covariates(ds, ["age", *covariates]) & is_in(ds, reference, by)
    if "participant_id" in ds.variables:
        people = pd.Series(group_labels(ds, "participant_id")[members])
        if people[people != ""].duplicated().any():
            raise ResultsError(
                "a participant of the reference has more than one scan, needed one each: keep one of them"
            )
    return members


@dataclass(frozen=True, eq=False)
class People:
    """What norms are adjusted for, one entry per scan; NaN where it is unknown or not asked for."""

    age_years: Float[ndarray, " scan"]
    male: Float[ndarray, " scan"]
    """1 for a man, 0 for a woman."""
    icv_mm3: Float[ndarray, " scan"]
    """Without adjustment for the ICV 1 in every scan."""

    @classmethod
    def of(cls, ds: xr.Dataset, columns: Sequence[str]) -> "People":
        """Read age, and sex and ICV if the columns of a norm name them."""
        sex, unknown = sexes(ds) if "sex" in columns else None, np.full(ds.sizes["scan"], np.nan)
        male = unknown if sex is None else np.select([sex == "male", sex == "female"], [1.0, 0.0], np.nan)
        icv = covariate_values(ds, HEAD_SIZE.name) if HEAD_SIZE.name in columns else np.ones(ds.sizes["scan"])
        return cls(covariate_values(ds, "age"), male, np.where(icv > 0, icv, np.nan))

    def only(self, members: Bool[ndarray, " scan"]) -> "People":
        """Those of some scans."""
        return type(self)(self.age_years[members], self.male[members], self.icv_mm3[members])


def design_of(
    norms: Norms, columns: Sequence[str], centre: float, people: People
) -> tuple[Float[ndarray, "scan column"], Float[ndarray, "scan 2"]]:
    """Columns of the mean, and of the logarithm of the standard deviation."""
    span_years = norms.age_high_years - norms.age_low_years
    x, knots = ((years - norms.age_low_years) / span_years for years in (people.age_years, np.array(norms.knots_years)))
    spline = natural_spline(x, knots)
    parts = [np.ones(len(x)), *spline.T]
    parts += [people.male - 0.5] if "sex" in columns else []
    parts += [np.log(people.icv_mm3) - centre] if HEAD_SIZE.name in columns else []
    parts += [(people.male - 0.5) * column for column in spline.T] if _CURVES_OF_SEX[0] in columns else []
    return np.column_stack(parts), np.column_stack([np.ones(len(x)), x])


def response_of(ds: xr.Dataset, norms: Norms, structure: str) -> Float[ndarray, " scan"]:
    """The values that are normal: volumes or their logarithms; NaN where there is none."""
    values = values_of(ds, norms.variable, structure)
    if norms.scale == "linear":
        return values
    return np.log(values, out=np.full(len(values), np.nan), where=values > 0)


def _fit(
    ds: xr.Dataset, norms: Norms, members: Bool[ndarray, " scan"], structure: str, covariates: Sequence[str]
) -> StructureNorm:
    asked = [name for name in covariates if not (name == structure == HEAD_SIZE.name)]
    people, y = People.of(ds, asked), response_of(ds, norms, structure)
    counted = members & np.isfinite(y) & np.isfinite(people.icv_mm3)
    centre = float(np.log(people.icv_mm3[counted]).mean()) if counted.any() else 0.0
    design, spread = design_of(norms, asked, centre, people.only(counted))
    _check_reference(design, spread, y[counted], structure)
    mean, log_sd, mean_covariance, log_sd_covariance = fit_location_scale(y[counted], design, spread)
    return StructureNorm(
        structure=structure,
        n=int(counted.sum()),
        columns=("1", *(f"age{i}" for i in range(1, len(_KNOTS))), *asked),
        mean=tuple(mean.tolist()),
        log_sd=(float(log_sd[0]), float(log_sd[1])),
        mean_covariance=tuple(map(tuple, mean_covariance.tolist())),
        log_sd_covariance=tuple(map(tuple, log_sd_covariance.tolist())),
        centre=centre,
    )


def _check_reference(design: ndarray, spread: ndarray, y: ndarray, structure: str) -> None:
    needed = _SCANS_PER_COLUMN * (design.shape[1] + spread.shape[1])
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
