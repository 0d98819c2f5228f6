"""The report: one HTML page without a single external request, from the results alone."""

import base64
import io
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from jaxtyping import Float
from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib import rc_context
from matplotlib.figure import Figure
from numpy import ndarray

from hypodask.accounts import at_work
from hypodask.dataset import open_results, read_cohort
from hypodask.digests import write_sealed
from hypodask.errors import HypodaskError, ResultsError, StoreError
from hypodask.journal import read_journal
from hypodask.leases import PATIENCE_SECONDS, held
from hypodask.location import Location, writing
from hypodask.report import tables
from hypodask.report.figures import group_figure
from hypodask.report.pictures import Pictures, read_pictures
from hypodask.report.slices import plane_figure, slice_figure
from hypodask.stats import PaperResult, check_exclusions, compare_exclusions, compare_icv_adjustments, paper
from hypodask.stats.samples import done_scans, group_labels, group_names, values_of
from hypodask.variables import LOW_QUALITY

MOST_PICTURES = 60
"""Scans with pictures, about 0.1 MB each."""

log = logging.getLogger(__name__)

SHOWN_DIGITS = 12
"""Digits of a digest that the name of a network shows."""

MOST_ROWS = 2000
"""Rows of the table of scans: a page that a browser still scrolls well. The others are in volumes.tsv."""

NORMALIZED = "normalized_volume_mm3"


def write_report(url: str, *, reference: str | None = None, pictures: int = MOST_PICTURES) -> str:
    """Write ``report.html`` into an output folder, from what is stored there.

    Parameters
    ----------
    url
        Output folder or fsspec URL of a finished run.
    reference
        Group the others are compared with; see :func:`render` for what is taken without it.
    pictures
        Number of scans to show; the other scans are in the table only.

    Returns
    -------
    str
        Path or URL of the page.

    Raises
    ------
    ResultsError
        If there are no results at ``url``.
    OutputError
        If the page cannot be written.
    """
    return write(open_results(url), url, reference=reference, pictures=pictures)


def write(ds: xr.Dataset, url: str, *, reference: str | None = None, pictures: int = MOST_PICTURES) -> str:
    """Write ``report.html`` of a results dataset into an output folder; return its path or URL.

    Parameters
    ----------
    ds
        Results; where they were normalized, the reference group of that is taken.
    url
        Output folder or fsspec URL that holds the stores of the scans.
    reference, pictures
        As in :func:`write_report`.
    """
    place = Location(url)
    # A participant may not leave while their pictures are drawn, and two pages are not written at once.
    with at_work(place):
        ds = _without_those_who_left(ds, url)
        page = render(ds, _all_pictures(place, ds, pictures), reference=reference)
        with writing(place), held(place, "report", patience=PATIENCE_SECONDS):
            write_sealed(place.child("report.html"), page.encode())
    return place.child("report.html").url


def _all_pictures(place: Location, ds: xr.Dataset, number: int) -> dict[str, "Pictures | str"]:
    return {scan: _pictures(place, ds, scan) for scan in choose_scans(ds, number)}


def _without_those_who_left(ds: xr.Dataset, url: str) -> xr.Dataset:
    """The results without scans that are neither in the table of the output nor in its journal any more."""
    try:
        known = {*read_cohort(url)["scan"], *read_journal(url).index}
    except (ResultsError, StoreError):
        return ds  # results of another place, or an output that every reader complains of
    left = [scan for scan in ds["scan"].to_numpy().tolist() if scan not in known]
    if left:
        log.warning("%d scans were removed from %s since these results were read; they are left out", len(left), url)
    return ds.isel(scan=~np.isin(ds["scan"].to_numpy(), left)) if left else ds


def _pictures(place: Location, ds: xr.Dataset, scan: str) -> "Pictures | str":
    """Pictures of one scan, or the reason why there are none: a damaged store must not cost the report."""
    store = str(ds["store"].sel(scan=scan).item()) if "store" in ds else ""
    if not store:
        return "nothing was stored for this scan"
    try:
        return read_pictures(place.child(store))
    except (HypodaskError, OSError, KeyError) as error:
        return f"no pictures: {error}"


def choose_scans(ds: xr.Dataset, limit: int) -> list[str]:
    """Scans to look at: doubtful ones and those furthest from the median of their group, then the first ones.

    Doubtful are a flagged pose and low quality. Half of the places go to each, so that ordinary scans are seen too. The
    scans keep the order of the dataset.

    Examples
    --------
    >>> volumes = [[800.0], [810.0], [820.0], [2000.0], [805.0]]
    >>> ds = xr.Dataset(
    ...     {"volume_mm3": (("scan", "structure"), volumes)}, coords={"scan": list("abcde"), "structure": ["icv"]}
    ... )
    >>> choose_scans(ds, 2)
    ['a', 'd']
    """
    done = np.flatnonzero(done_scans(ds))
    if len(done) <= limit:
        return [str(scan) for scan in ds["scan"].to_numpy()[done]]
    deviance = _deviance(ds, _groups_of(ds))
    if "flagged" in ds:
        deviance = deviance + np.where(ds["flagged"].to_numpy().astype(bool), 1e6, 0)
    if "quality" in ds:
        deviance = deviance + np.where(ds["quality"].to_numpy() < LOW_QUALITY, 1e6, 0)
    deviant = done[np.argsort(-deviance[done], kind="stable")][: limit - limit // 2].tolist()
    first = [scan for scan in done.tolist() if scan not in set(deviant)][: limit // 2]
    return [str(scan) for scan in ds["scan"].to_numpy()[sorted([*deviant, *first])]]


def _deviance(ds: xr.Dataset, by: str | None) -> Float[ndarray, " scan"]:
    """Largest distance of hypothalamus and ICV from the median of the group, in median absolute deviations."""
    structures = [name for name in ("hypothalamus", "icv") if name in ds["structure"].to_numpy()]
    values = pd.DataFrame({name: values_of(ds, "volume_mm3", name) for name in structures})
    labels = group_labels(ds, by)
    distance = (values - values.groupby(labels).transform("median")).abs()
    spread = distance.groupby(labels).transform("median").replace(0, np.nan)
    relative: ndarray = (distance / spread).max(axis=1).fillna(0).to_numpy(dtype=np.float64)
    return relative


def _groups_of(ds: xr.Dataset) -> str | None:
    """The group column, where anybody has a group."""
    return "group" if "group" in ds.variables and (group_labels(ds, "group") != "").any() else None


def _reference_of(ds: xr.Dataset, by: str | None, asked: str | None) -> str | None:
    """The reference that was asked for, else that of the normalisation, else ``control`` if there is such a group."""
    if by is None:
        return None
    if asked is not None:
        return group_names(group_labels(ds, by), asked)[0]
    names = set(group_labels(ds, by))
    used = ds[NORMALIZED].attrs.get("reference", "") if NORMALIZED in ds.variables else "control"
    return used if used in names else None


@dataclass(frozen=True, eq=False)
class Analysis:
    """The group statistics of a report, or why there are none."""

    by: str | None
    reference: str | None
    result: PaperResult | None
    problem: str = ""


def _analyse(ds: xr.Dataset, reference: str | None) -> Analysis:
    by = _groups_of(ds)
    reference = _reference_of(ds, by, reference)
    try:
        return Analysis(by, reference, paper(ds, by=by, reference=reference))
    except ResultsError as error:
        return Analysis(by, reference, None, str(error))


def render(
    ds: xr.Dataset,
    pictures: Mapping[str, "Pictures | str"],
    *,
    reference: str | None = None,
    title: str = "Hypothalamic volumes",
) -> str:
    """Make the page of a results dataset.

    Parameters
    ----------
    ds
        Results of a cohort; with a coordinate ``group`` the groups are compared.
    pictures
        What to show of some scans, by scan; a text says why there is nothing.
    reference
        Group that the others are compared with. Without it the reference of the dataset's own normalisation is
        taken, else ``control`` where there is such a group, else the mean ICV over all scans and no order of groups.
    title
        Heading of the page.

    Returns
    -------
    str
        HTML with its style and pictures inside; ids and reasons from outside are escaped. Where the group statistics
        cannot be made the page says why, and the rest stands.

    Raises
    ------
    ResultsError
        If no scan is in the reference group that was asked for.
    """
    analysis = _analyse(ds, reference)
    # From here on the dataset has outliers and normalised volumes, where there are any.
    shown = analysis.result.dataset if analysis.result else ds
    environment = Environment(
        loader=PackageLoader("hypodask.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.j2").render(
        title=title,
        style=files("hypodask.report").joinpath("report.css").read_text(encoding="utf-8"),
        run=_run(ds),
        analysis=analysis,
        groups=_group_section(analysis),
        scans=tables.scan_table(shown.isel(scan=slice(MOST_ROWS)), analysis.by),
        scans_total=ds.sizes["scan"],
        panels=list(_panels(shown, pictures)),
        methods=_methods(ds, analysis),
    )


def _run(ds: xr.Dataset) -> dict[str, Any]:
    """What became of every scan."""
    status = ds["status"].to_numpy().astype(str)
    seconds = ds["seconds"].to_numpy() if "seconds" in ds else np.array([np.nan])
    return {
        "scans": len(status),
        **{name: int((status == name).sum()) for name in ("done", "failed", "skipped")},
        "flagged": int(ds["flagged"].to_numpy().astype(bool).sum()) if "flagged" in ds else 0,
        "median_seconds": float(np.median(seconds[np.isfinite(seconds)])) if np.isfinite(seconds).any() else None,
        "low_quality": tables.low_quality_table(ds),
        "failures": tables.failure_table(ds),
        "failure_counts": tables.failure_count_table(ds),
        "skipped_scans": ds["scan"].to_numpy().astype(str)[status == "skipped"].tolist(),
    }


def _group_section(analysis: Analysis) -> dict[str, Any] | None:
    if analysis.result is None:
        return None
    found = analysis.result
    figure = group_figure(
        found.dataset, NORMALIZED, "hypothalamus", found.comparisons, by=analysis.by, reference=analysis.reference
    )
    return {
        "figure": _svg(figure),
        "volumes": tables.volume_table(found.summaries),
        "comparisons": _table_or_none(tables.comparison_table, found.comparisons),
        "comparisons_with_outliers": _table_or_none(tables.comparison_table, found.comparisons_with_outliers),
        "subgroups": _table_or_none(tables.comparison_table, found.subgroup_comparisons),
        "sexes": _table_or_none(tables.comparison_table, found.sex_comparisons),
        "associations": _table_or_none(tables.association_table, found.associations),
        "demographics": _table_or_none(tables.demographics_table, found.demographics),
        "exclusion_counts": tables.exclusion_count_table(found.exclusion_counts),
        "exclusions": _table_or_none(tables.exclusion_table, found.exclusions),
        **_other_ways(found.dataset, analysis),
    }


def _other_ways(ds: xr.Dataset, analysis: Analysis) -> dict[str, tables.Table | None]:
    """The comparisons under other adjustments and rules of exclusion, and whether exclusion depends on the group."""
    if analysis.by is None:
        return dict.fromkeys(("adjustments", "rules", "exclusion_tests"))
    asked: dict[str, Any] = {"by": analysis.by, "reference": analysis.reference}
    rules = compare_exclusions(ds, NORMALIZED, structure="hypothalamus", **asked)
    return {
        "adjustments": _table_or_none(tables.adjustment_table, compare_icv_adjustments(ds, **asked)),
        "rules": _table_or_none(tables.rule_table, rules),
        "exclusion_tests": _table_or_none(tables.exclusion_test_table, check_exclusions(ds, by=analysis.by)),
    }


def _table_or_none(make: Callable[[Any], tables.Table], frame: Any) -> tables.Table | None:
    return make(frame) if len(frame) else None


def _panels(ds: xr.Dataset, pictures: Mapping[str, "Pictures | str"]) -> Iterator[dict[str, Any]]:
    """What the page shows of one scan."""
    for scan, seen in pictures.items():
        one = ds.sel(scan=[scan])
        yield {
            "scan": scan,
            "facts": list(_facts(one)),
            "notes": tables.scan_notes(one)[0],
            "problem": seen if isinstance(seen, str) else "",
            "images": [] if isinstance(seen, str) else list(_images(one, seen)),
        }


def _facts(one: xr.Dataset) -> Iterator[tuple[str, str]]:
    cells = tables.scan_table(one, "group" if "group" in one.coords else None)
    yield from (pair for pair in zip(cells.columns, cells.rows[0], strict=True) if pair[0] not in ("Scan", "Notes"))
    for name, heading in (
        ("alignment_score", "Alignment score"),
        ("alignment_error_mm", "Alignment error (mm)"),
        ("acpc_distance_mm", "AC–PC (mm)"),
    ):
        if name in one and np.isfinite(one[name].item()):
            yield heading, f"{one[name].item():.2f}"


def _images(one: xr.Dataset, seen: Pictures) -> Iterator[tuple[str, str]]:
    """Alternative text and data of each picture."""
    scan = str(one["scan"].item())
    if seen.slices is not None:
        figure = slice_figure(seen.slices)
        yield f"{scan}: coronal slices with the outline of the hypothalamus", _jpeg(figure)
    if seen.planes:
        yield f"{scan}: three planes with the outline of the intracranial volume", _jpeg(plane_figure(seen.planes))


def _jpeg(figure: Figure) -> str:
    stream = io.BytesIO()
    # Full colour resolution: thin outlines would smear otherwise.
    figure.savefig(stream, format="jpeg", dpi=110, pil_kwargs={"quality": 85, "subsampling": 0, "optimize": True})
    return _data_url("image/jpeg", stream.getvalue())


def _svg(figure: Figure) -> str:
    stream = io.BytesIO()
    # Without a date and with fixed ids the same results give the same page.
    with rc_context({"svg.hashsalt": "hypodask"}):
        figure.savefig(stream, format="svg", metadata={"Date": None})
    return _data_url("image/svg+xml", stream.getvalue())


def _data_url(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _methods(ds: xr.Dataset, analysis: Analysis) -> dict[str, Any]:
    """What the methods text names: who drew the outlines, which networks, which version."""
    normalized = analysis.result.dataset[NORMALIZED].attrs if analysis.result else {}
    models = _distinct(ds, "model")
    return {
        "protocols": _distinct(ds, "protocol"),
        "models": models,
        "versions": _distinct(ds, "version"),
        "cards": list(_cards(models)),
        "unknown_networks": _without_card(models),
        "reference": normalized.get("reference", ""),
        "reference_n": normalized.get("reference_n", 0),
        "reference_icv_ml": normalized.get("reference_mean_icv_mm3", float("nan")) / 1000,
    }


def _distinct(ds: xr.Dataset, name: str) -> list[str]:
    return sorted(set(ds[name].to_numpy().astype(str)) - {""}) if name in ds else []


def _cards(models: Iterable[str]) -> Iterator[dict[str, Any]]:
    """Model cards of the shipped networks that made these volumes, known by the digest of their weights."""
    digests = {digest for _, digest in _weights(models)}
    return (card for card in _shipped_cards() if card["sha256"][:SHOWN_DIGITS] in digests)


def _without_card(models: Iterable[str]) -> list[str]:
    """Networks that made volumes here and that no shipped card is of; extended outlines are not those of the card."""
    known = {(name, card["sha256"][:SHOWN_DIGITS]) for card in _shipped_cards() for name in (card["name"], "")}
    return sorted({f"{name} ({digest})" for name, digest in _weights(models) if (name, digest) not in known})


def _weights(models: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Name and digest of all weights in names such as ``hypothalamus:0123 icv:4567+89ab``; only the first are named.

    >>> list(_weights(["hypothalamus:0123 icv:4567+89ab", ""]))
    [('hypothalamus', '0123'), ('icv', '4567'), ('', '89ab')]
    """
    for network in " ".join(models).split():
        name, _, digests = network.rpartition(":")
        first, *others = digests.split("+")
        yield name, first
        yield from (("", digest) for digest in others)


def _shipped_cards() -> list[dict[str, Any]]:
    folder = files("hypodask").joinpath("weights")
    entries = sorted(
        (entry for entry in folder.iterdir() if entry.name.endswith(".json")), key=lambda entry: entry.name
    )
    cards = [json.loads(entry.read_text(encoding="utf-8")) for entry in entries]
    return [card for card in cards if "sha256" in card]
