"""How many scans the next study needs: power of the unpaired t-test (statsmodels).

Two questions about the next study are answered: how large it must be to find an effect of the observed size, or of
either end of its interval; and what the smallest effect is that a study of a given size finds. The power of the present
study at the observed effect is not given, because it says no more than its p (Hoenig & Heisey, The American
Statistician 2001).
"""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from statsmodels.stats.power import TTestIndPower

from hypodask.core.errors import ResultsError
from hypodask.stats.groups import ALPHA, FEWEST_SCANS, compare_groups

_MOST_PER_GROUP = 10**7
"""Largest study that is searched; a larger one is not feasible."""

_LARGEST_D = 100.0
"""Largest effect that is searched, in standard deviations."""

_COLUMNS = (
    *("group_a", "group_b", "n_a", "n_b", "difference", "percent", "hedges_g", "hedges_g_low", "hedges_g_high"),
    *("power", "n_per_group", "n_per_group_low", "n_per_group_high"),
    *("detectable_d", "detectable_difference", "detectable_percent", "reason"),
)


def plan_groups(
    ds: xr.Dataset,
    variable: str,
    *,
    structure: str | None = None,
    by: str = "group",
    reference: str | None = None,
    power: Sequence[float] = (0.8, 0.9),
    n_per_group: int | None = None,
) -> pd.DataFrame:
    """Find for each pair of groups how large a study must be to find a difference between them.

    Parameters
    ----------
    ds, variable, structure, by, reference
        As in :func:`~hypodask.stats.compare_groups`.
    power
        Probabilities to find the effect, at a two-sided level of 5 %.
    n_per_group
        Size of the study whose smallest detectable difference is calculated; None for the present one.

    Returns
    -------
    DataFrame
        One row per pair and power:

        - ``hedges_g`` observed, with its 95 % interval;
        - ``n_per_group`` to find an effect of this size; ``n_per_group_low`` for the end of the interval that is
          farther from 0, ``n_per_group_high`` for the nearer end, infinite if the interval includes 0. Plan with
          ``n_per_group_high`` if nothing else is known about the effect;
        - ``detectable_d``, the smallest effect that the study would find with this power, in standard deviations,
          as ``detectable_difference`` in the unit of the variable and as ``detectable_percent`` of the mean of
          ``group_b``;
        - ``reason`` why there is no result, or what limits it.

    Raises
    ------
    ResultsError
        As :func:`~hypodask.stats.compare_groups` does, or if a power is not above 0.05 and below 1, or the study has
        fewer than three per group.

    References
    ----------
    Cohen, Statistical Power Analysis for the Behavioral Sciences, 1988.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> ds = xr.Dataset(
    ...     {"volume": ("scan", np.r_[rng.normal(820, 75, 40), rng.normal(860, 75, 40)])},
    ...     coords={"group": ("scan", ["PLS"] * 40 + ["control"] * 40)},
    ... )
    >>> plan_groups(ds, "volume", reference="control")[["power", "n_per_group"]].values.tolist()
    [[0.8, 20.0], [0.9, 26.0]]
    """
    _check(power, n_per_group)
    compared = compare_groups(ds, variable, structure=structure, by=by, reference=reference)
    rows = [_plan(pair, chance, n_per_group) for pair in compared.to_dict("records") for chance in power]
    return pd.DataFrame(rows, columns=list(_COLUMNS))


def _check(power: Sequence[float], n_per_group: int | None) -> None:
    if not all(ALPHA < chance < 1 for chance in power):
        raise ResultsError(f"power {list(power)}, needed numbers above {ALPHA} and below 1: 0.8 and 0.9 are usual")
    if n_per_group is not None and n_per_group < FEWEST_SCANS:
        raise ResultsError(f"{n_per_group} per group, a test needs {FEWEST_SCANS}: name a larger study")


def _plan(pair: Mapping[Hashable, Any], power: float, n_per_group: int | None) -> dict[str, object]:
    row: dict[str, object] = {"power": power, **{name: pair[name] for name in _COLUMNS if name in pair}}
    if np.isnan(pair["hedges_g"]):
        return row
    low, high = pair["hedges_g_low"], pair["hedges_g_high"]
    near, far = 0.0 if low <= 0 <= high else min(abs(low), abs(high)), max(abs(low), abs(high))
    sizes = [scans_per_group(effect, power) for effect in (pair["hedges_g"], far, near)]
    row |= dict(zip(("n_per_group", "n_per_group_low", "n_per_group_high"), sizes, strict=True))
    n_a, n_b = (n_per_group, n_per_group) if n_per_group else (pair["n_a"], pair["n_b"])
    detectable = detectable_effect(int(n_a), int(n_b), power)
    df_a, df_b = pair["n_a"] - 1, pair["n_b"] - 1
    pooled_sd = float(np.sqrt((df_a * pair["sd_a"] ** 2 + df_b * pair["sd_b"] ** 2) / (df_a + df_b)))
    difference = detectable * pooled_sd
    percent = 100 * difference / abs(pair["mean_b"]) if pair["mean_b"] else np.nan
    row |= {"detectable_d": detectable, "detectable_difference": difference, "detectable_percent": percent}
    uncertain = "" if near else "the interval of the effect includes 0: no size is certain to be enough"
    return row | {"reason": "; ".join(filter(None, (str(pair["reason"]), uncertain)))}


def _power(effect: float, n_a: int, n_b: int) -> float:
    found = float(TTestIndPower().power(effect, n_a, ALPHA, ratio=n_b / n_a))
    # scipy's noncentral t is NaN for some effects of ten standard errors and more, where the power is 1.
    return 1.0 if np.isnan(found) else found


def scans_per_group(effect: float, power: float) -> float:
    """Smallest size of two equal groups that finds an effect; infinite if no size is enough.

    Parameters
    ----------
    effect
        Difference of the means in standard deviations; its sign does not matter.
    power
        Probability to find it at a two-sided level of 5 %.

    Examples
    --------
    Cohen 1988, table 2.4.1: 64 for a medium effect, 26 for a large one.

    >>> scans_per_group(0.5, 0.8), scans_per_group(-0.8, 0.8), scans_per_group(0, 0.8)
    (64.0, 26.0, inf)
    """
    effect = abs(effect)
    if effect == 0 or _power(effect, _MOST_PER_GROUP, _MOST_PER_GROUP) < power:
        return float("inf")
    low, high = FEWEST_SCANS - 1, _MOST_PER_GROUP
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if _power(effect, middle, middle) >= power else (middle, high)
    return float(high)


def detectable_effect(n_a: int, n_b: int, power: float) -> float:
    """Smallest difference of the means, in standard deviations, that groups of these sizes find.

    Parameters
    ----------
    n_a, n_b
        Scans in each group.
    power
        Probability to find it at a two-sided level of 5 %.

    Examples
    --------
    >>> round(detectable_effect(64, 64, 0.8), 3)
    0.499
    """
    low, high = 0.0, _LARGEST_D
    while high - low > 1e-7:
        middle = (low + high) / 2
        low, high = (middle, high) if _power(middle, n_a, n_b) < power else (low, middle)
    return high
