"""Statistics over sites that share neither scans nor values of single persons.

The exchange::

    centre   decides what is summed: variable, structures, covariates with their levels, and the group to fit on
    site     SiteSummary = summarize_site(its results, ...)          -> one JSON document of means and sums
    centre   pool_regression, pool_effects or pool_combat (summaries) <- all documents; results are those of pooled rows
    site     apply_combat(its results, the model that the centre sent back as JSON)

One document is enough for all three. ComBat needs no second round, in which sites would send the variance of residuals
about the pooled regression: it is calculated from the squares and products in the first document.

Sums do not guarantee anonymity: the fewer persons and the more structures they are about, the more they say about each
person. Sums about fewer than ten persons are refused.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import pandas as pd
import xarray as xr
from jaxtyping import Float
from numpy import ndarray

from hypodask.core.documents import ARRAY
from hypodask.core.errors import ResultsError
from hypodask.stats.covariates import Covariate, category_labels, covariate_values, encode, is_category
from hypodask.stats.samples import group_names, is_in, usable_scans, volumes_of
from hypodask.stats.sites.combat import Options, SiteMoments, combat_of
from hypodask.stats.sites.combat_model import ComBat
from hypodask.stats.sites.documents import read_document, write_document
from hypodask.stats.sites.effects import EFFECT_COLUMNS, effect_at
from hypodask.stats.sites.moments import Moments, moments_of
from hypodask.stats.sites.shrinkage import Prior

_FEWEST_PERSONS = 10
"""Smallest number of persons that a summary may be about, also in each level of a category that the site has. A
convention of statistical offices, not a measured limit."""

_SCHEMA = "hypodask.site_summary"
_VERSION = 1

_SEXES = ("female", "male")

_SUMS = ("mean_x", "mean_y", "xx", "xy", "yy")


@dataclass(frozen=True, eq=False)
class SiteSummary:
    """What a site sends: means and sums, no value of a single person."""

    site: str
    variable: str
    structures: tuple[str, ...]
    covariates: tuple[Covariate, ...]
    on: str
    """Group of the scans, empty for all."""
    n: int
    """Scans that have every structure and covariate."""
    incomplete: int
    """Usable scans that lack a structure or a covariate, and are not in the sums."""
    mean_x: Annotated[Float[ndarray, " column"], ARRAY]
    mean_y: Annotated[Float[ndarray, " structure"], ARRAY]
    """In the unit of the variable."""
    xx: Annotated[Float[ndarray, "column column"], ARRAY]
    """Sums of products about the means, of covariates with covariates."""
    xy: Annotated[Float[ndarray, "structure column"], ARRAY]
    """Sums of products of volumes with covariates."""
    yy: Annotated[Float[ndarray, " structure"], ARRAY]
    """Sums of squares of volumes."""

    def to_json(self) -> str:
        """The document to send."""
        return write_document(self, _SCHEMA, _VERSION)

    @classmethod
    def from_json(cls, text: str) -> "SiteSummary":
        """Read and check a document.

        Raises
        ------
        ResultsError
            If it is another kind or version of document, or its numbers cannot be sums of scans.
        """
        summary = read_document(cls, text, _SCHEMA, _VERSION, what="the summary of a site")
        summary._check_shapes()
        summary._check_sums()
        return summary

    def _check_shapes(self) -> None:
        columns, structures = sum(len(covariate.columns) for covariate in self.covariates), len(self.structures)
        shapes: dict[str, tuple[int, ...]] = {
            "mean_x": (columns,),
            "mean_y": (structures,),
            "xx": (columns, columns),
            "xy": (structures, columns),
            "yy": (structures,),
        }
        for name, shape in shapes.items():
            if getattr(self, name).shape != shape:
                raise ResultsError(
                    f"the summary of the site {self.site!r} has {name} of shape {getattr(self, name).shape}, needed "
                    f"{shape}: have it made again"
                )

    def _check_sums(self) -> None:
        sound = self.n >= 1 and all(np.isfinite(getattr(self, name)).all() for name in _SUMS)
        if sound:
            # All products of one structure and the covariates: squares of real scans make no negative eigenvalue.
            tops = np.concatenate([np.broadcast_to(self.xx, (len(self.yy), *self.xx.shape)), self.xy[:, None]], axis=1)
            sides = np.concatenate([self.xy, self.yy[:, None]], axis=1)[..., None]
            whole = np.concatenate([tops, sides], axis=2)
            scale = np.sqrt(np.maximum(np.diagonal(whole, axis1=1, axis2=2), np.finfo(float).tiny))
            sound = np.linalg.eigvalsh(whole / scale[:, None] / scale[..., None]).min(initial=0) > -1e-6
            sound = bool(sound and np.array_equal(self.xx, self.xx.T))
        if not sound:
            raise ResultsError(f"the sums of the site {self.site!r} cannot be those of scans: have them made again")

    @property
    def moments(self) -> Moments:
        """The sums in the form that regressions take."""
        n = np.full(len(self.structures), float(self.n))
        wide = [np.broadcast_to(values, (len(n), *values.shape)) for values in (self.mean_x, self.xx)]
        parts = (n, wide[0], self.mean_y, wide[1], self.xy, self.yy)
        return Moments(*(np.array(values, dtype=np.float64)[None] for values in parts))


def summarize_site(
    ds: xr.Dataset,
    variable: str = "volume_mm3",
    *,
    name: str,
    structures: Sequence[str],
    covariates: Sequence[str] = ("age", "sex"),
    levels: Mapping[str, Sequence[object]] | None = None,
    on: str | None = None,
    by: str = "group",
    fewest: int = _FEWEST_PERSONS,
) -> SiteSummary:
    """Sums of one site, to be sent to the centre; call it with the same options at all sites.

    Parameters
    ----------
    ds
        Results of the site. Scans count that are usable and have every structure and covariate. All sums are then over
        the same scans: two sums that differ by one person would reveal that person's values.
    variable, structures
        Such as ``volume_mm3`` of ``hypothalamus`` and ``icv``.
    name
        Name of the site, as in the column of sites.
    covariates
        Numbers, or categories (text; ``sex``, ``scanner`` and the like also if they are numbered).
    levels
        Levels of each category, first the one to compare with, such as ``{"group": ["control", "PLS"]}``; not needed
        for ``sex``. A scan of another level counts as incomplete.
    on, by
        Group to sum, such as the controls, and the coordinate that holds the group; None for all scans.
    fewest
        Smallest number of scans, in all and in each level of a category, of which sums may be sent; a level may have
        none.

    Raises
    ------
    ResultsError
        If a column or structure is not there, a category has no levels or none of the levels given, or the sums would
        be about too few scans.

    Examples
    --------
    >>> ds = xr.Dataset(
    ...     {"volume_mm3": (("scan", "structure"), np.linspace(800, 900, 11)[:, None])},
    ...     coords={"structure": ["hypothalamus"], "age": ("scan", np.arange(40, 51))},
    ... )
    >>> summary = summarize_site(ds, name="Ulm", structures=["hypothalamus"], covariates=["age"])
    >>> summary.n, summary.mean_y.tolist()
    (11, [850.0])
    """
    known = tuple(_covariate(ds, covariate, levels or {}) for covariate in covariates)
    x, y = encode(ds, known), volumes_of(ds, variable, structures)
    asked = usable_scans(ds) & is_in(ds, on, by)
    counted = asked & np.isfinite(x).all(axis=1) & np.isfinite(y).all(axis=1)
    _refuse_few(x[counted], known, name, fewest)
    moments = moments_of(x[counted], y[counted])
    return SiteSummary(
        site=name,
        variable=variable,
        structures=tuple(structures),
        covariates=known,
        on=on or "",
        n=int(counted.sum()),
        incomplete=int(asked.sum() - counted.sum()),
        mean_x=moments.mean_x[0, 0],
        mean_y=moments.mean_y[0],
        # Made exactly symmetric, which the reader checks.
        xx=(moments.xx[0, 0] + moments.xx[0, 0].T) / 2,
        xy=moments.xy[0],
        yy=moments.yy[0],
    )


def _covariate(ds: xr.Dataset, name: str, levels: Mapping[str, Sequence[object]]) -> Covariate:
    if not is_category(ds, name):
        covariate_values(ds, name)
        return Covariate(name)
    chosen = tuple(map(str, levels.get(name, _SEXES if name == "sex" else ())))
    if len(chosen) < 2:
        raise ResultsError(
            f"{name!r} is a category whose levels every site must know: give levels={{{name!r}: [...]}}, two or more"
        )
    found = group_names(category_labels(ds, name))
    if found and not set(found) & set(chosen):
        raise ResultsError(f"{name!r} has none of {list(chosen)}; it has {found}: give levels as the column has them")
    return Covariate(name, chosen)


def _refuse_few(x: Float[ndarray, "scan column"], covariates: Sequence[Covariate], site: str, fewest: int) -> None:
    if len(x) < fewest:
        raise ResultsError(
            f"{site} has {len(x)} complete scans, and sums of fewer than {fewest} do not leave a site: ask for fewer "
            "structures and covariates if scans lack some of them"
        )
    start = 0
    for covariate in covariates:
        coded = x[:, start : start + len(covariate.columns)]
        start += len(covariate.columns)
        if not covariate.levels:
            continue
        counts = [int((1 - coded.sum(axis=1)).sum().round()), *coded.sum(axis=0).astype(int).tolist()]
        for level, count in zip(covariate.levels, counts, strict=True):
            if 0 < count < fewest:
                raise ResultsError(
                    f"{site} has {count} complete scans with {covariate.name}={level}, and sums of fewer than {fewest} "
                    "do not leave a site: leave the covariate out, or sum one group (on=...)"
                )


def _pool(summaries: Sequence[SiteSummary | str]) -> tuple[list[SiteSummary], Moments]:
    """The summaries, read if they are text, in alphabetical order of the sites, and their moments."""
    read = [SiteSummary.from_json(each) if isinstance(each, str) else each for each in summaries]
    read.sort(key=lambda summary: summary.site)
    names = [summary.site for summary in read]
    if len(set(names)) < max(len(names), 1):
        raise ResultsError(f"summaries of the sites {names}: give one of each site")
    for part in ("variable", "structures", "covariates", "on"):
        asked = {getattr(summary, part) for summary in read}
        if len(asked) > 1:
            raise ResultsError(
                f"the sites summed different {part}, {sorted(map(str, asked))}: give all of them the same options"
            )
    return read, Moments.stack([summary.moments for summary in read])


def pool_regression(summaries: Sequence[SiteSummary | str], *, site_effects: bool = True) -> pd.DataFrame:
    """Regression of each structure on all covariates; equals that of the pooled scans.

    Parameters
    ----------
    summaries
        Of :func:`summarize_site`, or their JSON.
    site_effects
        Whether each site has its own intercept, or one is common to all.

    Returns
    -------
    DataFrame
        One row per structure and ``term``: ``sites``, ``n``, ``estimate`` in the unit of the variable per unit of the
        covariate, ``se``, 95 % interval, ``t, df, p``, and the ``reason`` why there is no estimate.

    Raises
    ------
    ResultsError
        If a document is damaged, a site is there twice or the sites used different options.
    """
    read, moments = _pool(summaries)
    together = moments.within() if site_effects else moments.together()
    intercepts = len(read) if site_effects else 1
    rows = [
        {"structure": structure, "term": term, "sites": len(read)}
        | effect_at(together, 0, row, column, intercepts=intercepts)
        for row, structure in enumerate(read[0].structures)
        for column, term in enumerate(_terms(read[0]))
    ]
    return pd.DataFrame(rows, columns=["structure", "term", "sites", *EFFECT_COLUMNS[1:]])


def _terms(summary: SiteSummary) -> list[str]:
    return [column for covariate in summary.covariates for column in covariate.columns]


def pool_effects(summaries: Sequence[SiteSummary | str], *, term: str, structure: str) -> pd.DataFrame:
    """Effect of one covariate at each site, adjusted for the others, for :func:`~hypodask.stats.combine_sites`.

    Parameters
    ----------
    summaries
        Of :func:`summarize_site`, or their JSON.
    term
        Such as ``age`` or ``group=PLS``.
    structure
        Such as ``hypothalamus``.

    Returns
    -------
    DataFrame
        One row per site: ``site, n, estimate, se, low, high, t, df, p, reason``.

    Raises
    ------
    ResultsError
        As :func:`pool_regression` does, or if there is no such term or structure.
    """
    read, moments = _pool(summaries)
    terms, structures = _terms(read[0]), list(read[0].structures)
    for asked, there in ((term, terms), (structure, structures)):
        if asked not in there:
            raise ResultsError(f"no {asked!r} in the summaries: choose one of {there}")
    column, row = terms.index(term), structures.index(structure)
    rows = [{"site": each.site} | effect_at(moments, at, row, column) for at, each in enumerate(read)]
    return pd.DataFrame(rows, columns=list(EFFECT_COLUMNS))


def pool_combat(
    summaries: Sequence[SiteSummary | str],
    *,
    site: str = "site",
    reference: str | None = None,
    prior: Prior = "parametric",
    mean_only: bool = False,
) -> ComBat:
    """The model that :func:`~hypodask.stats.fit_combat` would fit on the scans of all sites; to be sent back to them.

    Parameters
    ----------
    summaries
        Of :func:`summarize_site`, or their JSON.
    site
        Coordinate that holds the site where the model is applied.
    reference, prior, mean_only
        As in :func:`~hypodask.stats.fit_combat`.

    Raises
    ------
    ResultsError
        As :func:`pool_regression` and :func:`~hypodask.stats.fit_combat` do.
    """
    read, moments = _pool(summaries)
    given = SiteMoments(moments, tuple(each.site for each in read), read[0].structures, read[0].covariates)
    return combat_of(given, Options(read[0].variable, site, read[0].on, reference or "", prior, mean_only))
