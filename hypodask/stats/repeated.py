"""Participants with more than one scan: how well a volume repeats, and how fast it changes.

``session`` distinguishes the scans of a participant; ``age``, a number of years or a date gives their time.
Participants with only one usable scan do not contribute, and are counted.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import xarray as xr
from jaxtyping import Float
from numpy import ndarray
from scipy import stats

from hypodask.core.errors import ResultsError
from hypodask.image.agreement import FEWEST_SCANS, NORMAL_95, intraclass_correlation
from hypodask.stats.groups import ALPHA
from hypodask.stats.samples import group_labels, group_names, is_constant, usable_scans, values_of

_DAYS_PER_YEAR = 365.25

_COLUMNS = (
    *("group", "sessions", "participants", "n", "single", "incomplete", "mean"),
    *("icc_2_1", "icc_2_1_low", "icc_2_1_high", "icc_3_1", "icc_3_1_low", "icc_3_1_high"),
    *("within_sd", "within_sd_low", "within_sd_high", "cov_percent", "cov_percent_low", "cov_percent_high"),
    *("smallest_change", "smallest_change_low", "smallest_change_high", "smallest_change_percent"),
    *("bias", "bias_low", "bias_high", "agreement_low", "agreement_high", "p_bias", "reason"),
)


def repeatability(
    ds: xr.Dataset,
    variable: str,
    *,
    structure: str | None = None,
    sessions: Sequence[str] | None = None,
    by: str | None = None,
    participant: str = "participant_id",
    session: str = "session",
) -> pd.DataFrame:
    """Test-retest agreement of a volume over sessions between which the participants did not change.

    Parameters
    ----------
    ds
        Results; scans that are failed, skipped, ``excluded`` or without value do not count.
    variable
        Such as ``volume_mm3``.
    structure
        Such as ``hypothalamus``; needed when the variable has one value per structure.
    sessions
        Sessions to compare, in order; None for all. Participants count who have a usable scan in each.
    by
        Coordinate that holds the group; None for all participants together.
    participant, session
        Coordinates that hold the participant and the session of a scan.

    Returns
    -------
    DataFrame
        One row per group:

        - ``n`` participants count, of ``participants`` with any usable scan; ``single`` have a usable scan in one
          session, ``incomplete`` in several but not all;
        - ``icc_2_1`` (absolute agreement: a bias of a session lowers it) and ``icc_3_1`` (consistency), each with its
          95 % interval;
        - ``within_sd``, the standard deviation within a participant, in the unit of the variable, and
          ``cov_percent``, that of the logarithm, each with its exact interval (chi-square);
        - ``smallest_change`` = 1.96 * sqrt(2) * ``within_sd``: a change of one participant below it may be error;
          ``smallest_change_percent`` of the mean;
        - for two sessions Bland and Altman's ``bias`` (second minus first) with interval and p (paired t), and the
          limits of agreement;
        - ``reason`` why there is no result.

    Raises
    ------
    ResultsError
        If a column or session is not there, or a participant has two usable scans in one session.

    References
    ----------
    Shrout & Fleiss, Psychological Bulletin 1979; McGraw & Wong, Psychological Methods 1996 (intervals); Bland &
    Altman, Lancet 1986; Weir, Journal of Strength and Conditioning Research 2005 (smallest detectable change).

    Examples
    --------
    >>> ds = xr.Dataset(
    ...     {"volume": ("scan", [800.0, 810.0, 900.0, 880.0, 850.0, 860.0, 700.0])},
    ...     coords={"participant_id": ("scan", list("aabbccd")), "session": ("scan", [1, 2, 1, 2, 1, 2, 1])},
    ... )
    >>> repeatability(ds, "volume")[["n", "single", "icc_2_1", "within_sd"]].round(2).values.tolist()
    [[3.0, 1.0, 0.95, 10.0]]
    """
    scans = _usable_table(ds, variable, structure, by, participant)
    scans["session"] = group_labels(ds, session)[scans["scan"]]
    scans = scans[scans["session"] != ""]
    chosen = _sessions(scans, sessions)
    wide = _by_session(scans, chosen)
    groups = scans.groupby("participant")["group"].first().reindex(wide.index)
    rows = [_repeat_row(name, wide[groups == name]) for name in group_names(scans["group"].to_numpy())]
    return pd.DataFrame(rows, columns=list(_COLUMNS))


def _usable_table(
    ds: xr.Dataset, variable: str, structure: str | None, by: str | None, participant: str
) -> pd.DataFrame:
    """Position, participant, group and value of each usable scan of a participant with a group."""
    values, labels, people = values_of(ds, variable, structure), group_labels(ds, by), group_labels(ds, participant)
    counted = usable_scans(ds) & np.isfinite(values) & (labels != "") & (people != "")
    table = pd.DataFrame({"scan": np.arange(len(values)), "participant": people, "group": labels, "value": values})
    table = table[counted]
    moved = table.groupby("participant")["group"].nunique()
    if (moved > 1).any():
        raise ResultsError(
            f"participants {moved.index[moved > 1].tolist()[:5]} are in more than one group of {by!r}: "
            "give all scans of a participant one group in the cohort's table"
        )
    return table


def _sessions(scans: pd.DataFrame, sessions: Sequence[str] | None) -> list[str]:
    known = sorted(scans["session"].unique())
    if sessions is None:
        return known
    unknown = [str(name) for name in sessions if str(name) not in known]
    if unknown or len(set(sessions)) < 2:
        raise ResultsError(f"sessions {list(sessions)}, needed two or more of those with usable scans: {known}")
    return [str(name) for name in sessions]


def _by_session(scans: pd.DataFrame, sessions: list[str]) -> pd.DataFrame:
    """One row per participant, one column per session; NaN where there is no usable scan."""
    scans = scans[scans["session"].isin(sessions)]
    twice = scans[scans.duplicated(["participant", "session"])]
    if len(twice):
        raise ResultsError(
            f"{twice['participant'].iloc[0]!r} and {len(twice) - 1} others have two usable scans in one session: "
            "keep one of each, or give as session= a coordinate that distinguishes them"
        )
    wide = scans.pivot_table(index="participant", columns="session", values="value")
    return wide.reindex(columns=sessions)


def _repeat_row(group: str, wide: pd.DataFrame) -> dict[str, object]:
    scans_each = wide.notna().sum(axis=1)
    ratings = wide.dropna().to_numpy()
    n, k = ratings.shape
    row: dict[str, object] = {"group": group, "sessions": k, "participants": len(wide), "n": n}
    row |= {"single": int((scans_each == 1).sum()), "incomplete": int((scans_each > 1).sum()) - n if k > 1 else 0}
    if n < FEWEST_SCANS or k < 2:
        return row | {"reason": f"{n} participants have all of {k} sessions, needed {FEWEST_SCANS} with 2 or more"}
    if is_constant(ratings.ravel()):
        return row | {"reason": "all values are the same"}
    row |= {"mean": float(ratings.mean()), "reason": ""} | _icc(ratings) | _within(ratings)
    return row | (_bland_altman(ratings[:, 1] - ratings[:, 0]) if k == 2 else {})


def _mean_squares(ratings: Float[ndarray, "participant session"]) -> tuple[float, float, float]:
    """Mean squares between participants, between sessions, and of the residuals."""
    n, k = ratings.shape
    people, sessions, centre = ratings.mean(axis=1), ratings.mean(axis=0), ratings.mean()
    residual = ratings - people[:, None] - sessions + centre
    between = k * ((people - centre) ** 2).sum() / (n - 1)
    return between, n * ((sessions - centre) ** 2).sum() / (k - 1), (residual**2).sum() / ((n - 1) * (k - 1))


def _icc(ratings: Float[ndarray, "participant session"]) -> dict[str, float]:
    n, k = ratings.shape
    between, sessions, error = _mean_squares(ratings)
    if error <= 1e-24 * between:
        return {"icc_2_1": intraclass_correlation(ratings), "icc_3_1": 1.0, "icc_3_1_low": 1.0, "icc_3_1_high": 1.0}
    agreement = intraclass_correlation(ratings)
    low, high = _agreement_interval(n, k, between, sessions, error, agreement)
    f, tail = between / error, 1 - ALPHA / 2
    f_low = f / stats.f.ppf(tail, n - 1, (n - 1) * (k - 1))
    f_high = f * stats.f.ppf(tail, (n - 1) * (k - 1), n - 1)
    row = {"icc_2_1": agreement, "icc_2_1_low": low, "icc_2_1_high": high}
    row |= {f"icc_3_1{end}": (x - 1) / (x + k - 1) for end, x in (("", f), ("_low", f_low), ("_high", f_high))}
    return {name: float(value) for name, value in row.items()}


def _agreement_interval(
    n: int, k: int, between: float, sessions: float, error: float, icc: float
) -> tuple[float, float]:
    """McGraw & Wong 1996, table 7, for ICC(A,1)."""
    a, b = k * icc / (n * (1 - icc)), 1 + k * icc * (n - 1) / (n * (1 - icc))
    df = (a * sessions + b * error) ** 2 / ((a * sessions) ** 2 / (k - 1) + (b * error) ** 2 / ((n - 1) * (k - 1)))
    rest = k * sessions + (k * n - k - n) * error
    f_low, f_high = stats.f.ppf(1 - ALPHA / 2, n - 1, df), stats.f.ppf(1 - ALPHA / 2, df, n - 1)
    low = n * (between - f_low * error) / (f_low * rest + n * between)
    return low, n * (f_high * between - error) / (rest + n * f_high * between)


def _within(ratings: Float[ndarray, "participant session"]) -> dict[str, float]:
    n, k = ratings.shape
    df = n * (k - 1)
    ends = np.sqrt(df / stats.chi2.ppf([1 - ALPHA / 2, ALPHA / 2], df))
    sd = float(np.sqrt(ratings.var(axis=1, ddof=1).mean()))
    least = NORMAL_95 * np.sqrt(2) * sd
    row = {"within_sd": sd, "within_sd_low": sd * ends[0], "within_sd_high": sd * ends[1]}
    row |= {"smallest_change": least, "smallest_change_low": least * ends[0], "smallest_change_high": least * ends[1]}
    row["smallest_change_percent"] = 100 * least / abs(ratings.mean()) if ratings.mean() else np.nan
    if (ratings > 0).all():
        log_sd = float(np.sqrt(np.log(ratings).var(axis=1, ddof=1).mean())) * np.array([1.0, *ends])
        names = ("cov_percent", "cov_percent_low", "cov_percent_high")
        row |= dict(zip(names, 100 * np.sqrt(np.expm1(log_sd**2)), strict=True))
    return {name: float(value) for name, value in row.items()}


def _bland_altman(difference: Float[ndarray, " participant"]) -> dict[str, float]:
    bias, sd = float(difference.mean()), float(difference.std(ddof=1))
    row = {"bias": bias, "agreement_low": bias - NORMAL_95 * sd, "agreement_high": bias + NORMAL_95 * sd}
    if is_constant(difference):
        return row
    test = stats.ttest_1samp(difference, 0.0)
    low, high = test.confidence_interval(1 - ALPHA)
    return row | {"bias_low": float(low), "bias_high": float(high), "p_bias": float(test.pvalue)}


def annual_change(
    ds: xr.Dataset,
    variable: str,
    *,
    structure: str | None = None,
    time: str = "age",
    by: str | None = "group",
    participant: str = "participant_id",
) -> xr.Dataset:
    """Change per year of each participant, as a dataset for the group tests.

    ``ds.pipe(annual_change, ...).pipe(compare_groups, "change_percent_per_year")`` compares the groups; participants
    with one scan are counted there as ``missing``. The change of participants who were followed for longer is known
    better. If the groups were followed differently, use Welch's t or Mann-Whitney's U of that table.

    Parameters
    ----------
    ds
        Results; scans that are failed, skipped, ``excluded`` or without value or time do not count.
    variable
        Such as ``volume_mm3``.
    structure
        Such as ``hypothalamus``; needed when the variable has one value per structure.
    time
        Coordinate with the time of each scan: years, such as ``age``, or dates (``2024-03-01``).
    by
        Coordinate that holds the group; None for all participants together.
    participant
        Coordinate that holds the participant.

    Returns
    -------
    Dataset
        Along ``scan`` one entry per participant with any usable scan, named by the participant: ``group``,
        ``participant_id``, ``scans`` that count, ``years`` from first to last, ``change_per_year`` (slope of the
        line through the scans, in the unit of the variable), ``change_percent_per_year`` (of the value of that line at
        the first scan), and ``change_reason`` why there is none.

    Raises
    ------
    ResultsError
        If a column is not there, dates cannot be read, or a participant is in two groups.

    Examples
    --------
    >>> ds = xr.Dataset(
    ...     {"volume": ("scan", [800.0, 784.0, 900.0])},
    ...     coords={"participant_id": ("scan", list("aab")), "age": ("scan", [60.0, 62.0, 50.0])},
    ... )
    >>> changes = annual_change(ds, "volume", by=None)
    >>> changes.change_percent_per_year.values.tolist(), changes.change_reason.values.tolist()
    ([-1.0, nan], ['', 'one usable scan'])
    """
    scans = _usable_table(ds, variable, structure, by, participant)
    scans["years"] = _years(ds, time)[scans["scan"]]
    people = scans.groupby("participant")
    summary = pd.DataFrame({"group": people["group"].first()})
    timed = scans.dropna(subset="years")
    timed = timed.assign(years=timed["years"] - timed.groupby("participant")["years"].transform("min"))
    summary = summary.join(_lines(timed))
    summary["scans"] = summary["scans"].fillna(0).astype(int)
    return _change_dataset(summary, str(ds[variable].attrs.get("units", "1")))


def _years(ds: xr.Dataset, time: str) -> Float[ndarray, " scan"]:
    """Time of each scan in years; NaN where there is none."""
    text = group_labels(ds, time)
    if ds[time].dtype.kind not in "OUSTM":
        return values_of(ds, time)
    try:
        dates = pd.to_datetime(pd.Series(text).replace({"": None, "NaT": None}), format="ISO8601")
    except ValueError:
        return values_of(ds, time)
    return (dates - pd.Timestamp("2000-01-01")).dt.total_seconds().to_numpy() / (86400 * _DAYS_PER_YEAR)


def _lines(scans: pd.DataFrame) -> pd.DataFrame:
    """Least squares of each participant: scans, years, slope, and slope in percent of the line at the first scan."""
    people = scans.groupby("participant")
    x = scans["years"] - people["years"].transform("mean")
    y = scans["value"] - people["value"].transform("mean")
    sums = pd.DataFrame({"xx": x * x, "xy": x * y}).groupby(scans["participant"]).sum()
    slope = sums["xy"] / sums["xx"].where(sums["xx"] > 0)
    start = people["value"].mean() - slope * people["years"].mean()
    found = {"scans": people.size(), "years": people["years"].max(), "change_per_year": slope}
    return pd.DataFrame(found | {"change_percent_per_year": 100 * slope / start.where(start > 0)})


def _change_dataset(summary: pd.DataFrame, units: str) -> xr.Dataset:
    reason = np.select(
        [summary["scans"] == 0, summary["scans"] == 1, ~(summary["years"] > 0), summary.isna().any(axis=1)],
        ["no usable scan has a time", "one usable scan", "all scans are of one time", "the line starts below 0"],
        default="",
    )
    names = summary.index.to_numpy(dtype=object)
    attrs = {"scans": "1", "years": "year", "change_per_year": f"{units}/year", "change_percent_per_year": "%/year"}
    data = {name: ("scan", summary[name].to_numpy(), {"units": unit}) for name, unit in attrs.items()}
    coords = {"scan": names, "participant_id": ("scan", names), "group": ("scan", summary["group"].to_numpy(object))}
    return xr.Dataset(data | {"change_reason": ("scan", reason.astype(object))}, coords)
