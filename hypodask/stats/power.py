"""How many scans the next study needs: power of the unpaired t-test, by statsmodels.

The power of the test that was made, at the effect that was observed, says no more than its p (Hoenig & Heisey, The
American Statistician 2001) and is not given. What is given looks ahead: the size of a study that would find an effect
as large as the one observed, or as either end of its interval, and the smallest effect that a study of a size would
find.
"""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from statsmodels.stats.power import TTestIndPower

from hypodask.errors import ResultsError
from hypodask.stats.groups import ALPHA, FEWEST_SCANS, compare_groups

MOST_PER_GROUP = 10**7
"""Searched up to here; a study that needs more cannot be made."""

LARGEST_D = 100.0
"""Standard deviations; searched up to here."""

COLUMNS = (
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
    """Find for each pair of groups the size of a study that would tell them apart.

    Parameters
    ----------
    ds, variable, structure, by, reference
        As in :func:`~hypodask.stats.compare_groups`.
    power
        Chances to find the effect, at a two-sided level of 5 %.
    n_per_group
        Size of a study whose smallest detectable difference is asked for; None for the present one.

    Returns
    -------
    DataFrame
        One row per pair and power:

        - ``hedges_g`` observed, with its 95 % interval;
        - ``n_per_group`` to find an effect of this size; ``n_per_group_low`` if it is as large as the far end of the
          interval, ``n_per_group_high`` as the near end, infinite where the interval includes no effect. The last is
          the one to plan with when nothing else is known of the effect;
        - ``detectable_d``, the smallest effect that the study would find with this power, in standard deviations,
          as ``detectable_difference`` in the unit of the variable and as ``detectable_percent`` of the mean of
          ``group_b``;
        - ``reason`` why there is no result, or what to mind.

    Raises
    ------
    ResultsError
        As of :func:`~hypodask.stats.compare_groups`, or if a power is not above 5 % and below 1, or the study is
        smaller than three per group.

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
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _check(power: Sequence[float], n_per_group: int | None) -> None:
    if not all(ALPHA < chance < 1 for chance in power):
        raise ResultsError(f"power {list(power)}, needed numbers above {ALPHA} and below 1, such as 0.8")
    if n_per_group is not None and n_per_group < FEWEST_SCANS:
        raise ResultsError(f"{n_per_group} per group, a test needs {FEWEST_SCANS}: name a larger study")


def _plan(pair: Mapping[Hashable, Any], power: float, n_per_group: int | None) -> dict[str, object]:
    row: dict[str, object] = {"power": power, **{name: pair[name] for name in COLUMNS if name in pair}}
    if np.isnan(pair["hedges_g"]):
        return row
    near, far = _ends(pair["hedges_g_low"], pair["hedges_g_high"])
    sizes = [scans_per_group(effect, power) for effect in (pair["hedges_g"], far, near)]
    row |= dict(zip(("n_per_group", "n_per_group_low", "n_per_group_high"), sizes, strict=True))
    n_a, n_b = (n_per_group, n_per_group) if n_per_group else (pair["n_a"], pair["n_b"])
    detectable = detectable_effect(int(n_a), int(n_b), power)
    difference = detectable * _pooled_sd(pair)
    percent = 100 * difference / abs(pair["mean_b"]) if pair["mean_b"] else np.nan
    row |= {"detectable_d": detectable, "detectable_difference": difference, "detectable_percent": percent}
    notes = [str(pair["reason"]), "" if near else "the interval of the effect includes none: no study is surely enough"]
    return row | {"reason": "; ".join(filter(None, notes))}


def _ends(low: float, high: float) -> tuple[float, float]:
    """The smallest and the largest size of effect in an interval."""
    near = 0.0 if low <= 0 <= high else min(abs(low), abs(high))
    return near, max(abs(low), abs(high))


def _pooled_sd(pair: Mapping[Hashable, Any]) -> float:
    a, b = pair["n_a"] - 1, pair["n_b"] - 1
    return float(np.sqrt((a * pair["sd_a"] ** 2 + b * pair["sd_b"] ** 2) / (a + b)))


def _power(effect: float, n_a: int, n_b: int) -> float:
    found = float(TTestIndPower().power(effect, n_a, ALPHA, ratio=n_b / n_a))
    # scipy's noncentral t is NaN for some effects of ten standard errors and more, where the power is 1.
    return 1.0 if np.isnan(found) else found


def scans_per_group(effect: float, power: float) -> float:
    """Fewest scans in each of two equal groups that find an effect; infinite where no number is enough.

    Parameters
    ----------
    effect
        Difference of the means in standard deviations; its sign does not matter.
    power
        Chance to find it at a two-sided level of 5 %.

    Examples
    --------
    Cohen 1988, table 2.4.1: 64 for a medium effect, 26 for a large one.

    >>> scans_per_group(0.5, 0.8), scans_per_group(-0.8, 0.8), scans_per_group(0, 0.8)
    (64.0, 26.0, inf)
    """
    effect = abs(effect)
    if effect == 0 or _power(effect, MOST_PER_GROUP, MOST_PER_GROUP) < power:
        return float("inf")
    low, high = FEWEST_SCANS - 1, MOST_PER_GROUP
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if _power(effect, middle, middle) >= power else (middle, high)
    return float(high)


def detectable_effect(n_a: int, n_b: int, power: float) -> float:
    """Smallest difference of the means, in standard deviations, that groups of these sizes find.

    >>> round(detectable_effect(64, 64, 0.8), 3)
    0.499
    """
    low, high = 0.0, LARGEST_D
    while high - low > 1e-7:
        middle = (low + high) / 2
        low, high = (middle, high) if _power(middle, n_a, n_b) < power else (low, middle)
    return high
