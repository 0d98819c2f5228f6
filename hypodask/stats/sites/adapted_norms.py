"""Norms at another site: its scanner shifts volumes and changes their spread, which its own controls show."""

from dataclasses import replace

import numpy as np
import xarray as xr
from jaxtyping import Float
from numpy import ndarray
from scipy import special

from hypodask.core.errors import ResultsError
from hypodask.core.structures import HEAD_SIZE
from hypodask.stats.centiles import apply_norms
from hypodask.stats.groups import FEWEST_SCANS
from hypodask.stats.norms import Norms, StructureNorm, reference_scans
from hypodask.stats.samples import is_constant

_SHIFT_SD = 1.0
"""How much sites differ, in standard deviations of the norm; a guess, wide enough for other scanners."""

_LOG_SCALE_SD = 0.2
"""How much sites differ in the logarithm of their spread; a guess: one site in twenty beyond a factor of 1.5."""


def adapt_norms(
    ds: xr.Dataset,
    norms: Norms,
    *,
    reference: str | None = "control",
    by: str = "group",
    shift_sd: float = _SHIFT_SD,
    log_scale_sd: float = _LOG_SCALE_SD,
) -> Norms:
    """Move norms to a site, by its own controls.

    A scanner shifts volumes and changes their spread. Both are estimated from the ``z`` of the controls and shrunk
    towards no change, the more the fewer controls there are: an empirical Bayes estimate with normal priors. The
    uncertainty that remains widens every interval of ``z`` at this site.

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
        How much sites differ: standard deviation of the shift, in standard deviations of the norm, and of the logarithm
        of the scale.

    Returns
    -------
    Norms
        With ``controls``, ``shift``, ``log_scale`` and their errors in every structure.

    Raises
    ------
    ResultsError
        If there are fewer than three controls, or the norms were moved before.
    """
    if any(norm.controls for norm in norms.structures):
        raise ResultsError("norms that were moved to a site before, needed those of the reference: start from them")
    if min(shift_sd, log_scale_sd) <= 0:
        raise ResultsError(
            f"shift_sd {shift_sd} and log_scale_sd {log_scale_sd}, needed numbers above 0: "
            f"{_SHIFT_SD} and {_LOG_SCALE_SD} are usual"
        )
    columns = {name for norm in norms.structures for name in norm.columns} & {"sex", HEAD_SIZE.name}
    members = reference_scans(ds, reference, by, sorted(columns))
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
    log_scale, log_scale_var = _shrunk(observed, float(special.polygamma(1, half)) / 4, log_scale_sd)
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
    """Posterior mean and variance of a number whose prior is normal about 0, from one observation of it."""
    share = prior_sd**2 / (prior_sd**2 + variance)
    return share * observed, share * variance
