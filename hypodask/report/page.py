"""The report: one HTML page, made from the results alone, that loads nothing from elsewhere."""

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

from hypodask.core.errors import HypodaskError, ResultsError, StoreError
from hypodask.core.structures import HEAD_SIZE, MAIN, STRUCTURES, title_of
from hypodask.core.variables import LOW_QUALITY
from hypodask.files.digests import write_sealed
from hypodask.files.leases import PATIENCE_SECONDS, held
from hypodask.files.location import Location, writing
from hypodask.report import tables
from hypodask.report.figures import group_figure
from hypodask.report.pictures import Pictures, read_pictures
from hypodask.report.slices import plane_figure, slice_figure
from hypodask.stats.exclusions import check_exclusions, compare_exclusions
from hypodask.stats.groups import compare_groups
from hypodask.stats.head_size import compare_icv_adjustments
from hypodask.stats.published import PaperResult, paper
from hypodask.stats.samples import done_scans, group_labels, group_names, values_of
from hypodask.storage.journal import read_journal
from hypodask.study.results import open_results, read_cohort
from hypodask.study.runs import at_work

_MOST_PICTURES = 60
"""Most scans that are shown with pictures, which are about 0.1 MB for each scan."""

_log = logging.getLogger(__name__)

_SHOWN_DIGITS = 12
"""Digits of the sha256 of its weights in the name of a network."""

_MOST_ROWS = 2000
"""Most rows of the table of scans; browsers scroll longer tables badly. The other scans are in volumes.tsv."""

_NORMALIZED = "normalized_volume_mm3"


def write_report(url: str, *, reference: str | None = None, pictures: int = _MOST_PICTURES) -> str:
    """Write ``report.html`` into an output folder, from what is stored there.

    Parameters
    ----------
    url
        Output folder or fsspec URL of a finished run, with the stores of the scans.
    reference
        Group that the others are compared with; :func:`render` says which one is taken by default.
    pictures
        Most scans to show with pictures; the other scans are in the table only.

    Returns
    -------
    str
        Path or URL of the page.

    Raises
    ------
    ResultsError
        If there are no results at ``url``, or no scan is in the reference group that was asked for.
    ClusterError
        If a participant is being removed from the output.
    OutputError
        If the page cannot be written.
    """
    place, ds = Location(url), open_results(url)
    # No participant can be removed while their pictures are drawn, and two pages are not written at once.
    with at_work(place):
        ds = _without_removed(ds, url)
        shown = {scan: _pictures(place, ds, scan) for scan in _choose_scans(ds, pictures)}
        page = render(ds, shown, reference=reference)
        with writing(place), held(place, "report", patience=PATIENCE_SECONDS):
            write_sealed(place.child("report.html"), page.encode())
    return place.child("report.html").url


def _without_removed(ds: xr.Dataset, url: str) -> xr.Dataset:
    """The results without scans that were removed from the output after these results were read."""
    try:
        known = {*read_cohort(url)["scan"], *read_journal(url).index}
    except (ResultsError, StoreError):
        return ds  # the results came from elsewhere, or the output is damaged, which other readers report
    left = [scan for scan in ds["scan"].to_numpy().tolist() if scan not in known]
    if left:
        _log.warning("%d scans were removed from %s after its results were read; the report omits them", len(left), url)
    return ds.isel(scan=~np.isin(ds["scan"].to_numpy(), left)) if left else ds


def _pictures(place: Location, ds: xr.Dataset, scan: str) -> "Pictures | str":
    """Pictures of one scan, or the reason why there are none: the report is made although a store is damaged."""
    store = str(ds["store"].sel(scan=scan).item()) if "store" in ds else ""
    if not store:
        return "nothing was stored for this scan"
    try:
        return read_pictures(place.child(store))
    except (HypodaskError, OSError, KeyError) as error:
        return f"no pictures: {error}"


def _choose_scans(ds: xr.Dataset, limit: int) -> list[str]:
    """Scans to show: half of them suspicious ones, half the first of the dataset, so that usual scans are seen too.

    Flagged scans and those of low quality are the most suspicious, then those whose volumes are furthest from the
    median of their group. The chosen scans keep the order of the dataset.

    Examples
    --------
    >>> volumes = [[800.0], [810.0], [820.0], [2000.0], [805.0]]
    >>> ds = xr.Dataset(
    ...     {"volume_mm3": (("scan", "structure"), volumes)}, coords={"scan": list("abcde"), "structure": ["icv"]}
    ... )
    >>> _choose_scans(ds, 2)
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
    """Largest distance of a structure's volume from the median of its group, in median absolute deviations."""
    structures = [name for name in STRUCTURES if name in ds["structure"].to_numpy()]
    values = pd.DataFrame({name: values_of(ds, "volume_mm3", name) for name in structures})
    labels = group_labels(ds, by)
    distance = (values - values.groupby(labels).transform("median")).abs()
    spread = distance.groupby(labels).transform("median").replace(0, np.nan)
    relative: ndarray = (distance / spread).max(axis=1).fillna(0).to_numpy(dtype=np.float64)
    return relative


def _groups_of(ds: xr.Dataset) -> str | None:
    """The group column; None where no scan has a group."""
    return "group" if "group" in ds.variables and (group_labels(ds, "group") != "").any() else None


def _reference_of(ds: xr.Dataset, by: str | None, asked: str | None) -> str | None:
    """The group that was asked for; else that of the normalization; else ``control`` if there is such a group."""
    if by is None:
        return None
    if asked is not None:
        return group_names(group_labels(ds, by), asked)[0]
    names = set(group_labels(ds, by))
    used = ds[_NORMALIZED].attrs.get("reference", "") if _NORMALIZED in ds.variables else "control"
    return used if used in names else None


@dataclass(frozen=True, eq=False)
class _Analysis:
    """The group statistics of a report, or the problem that prevented them."""

    by: str | None
    reference: str | None
    result: PaperResult | None
    problem: str = ""


def _analyse(ds: xr.Dataset, reference: str | None) -> _Analysis:
    by = _groups_of(ds)
    reference = _reference_of(ds, by, reference)
    try:
        return _Analysis(by, reference, paper(ds, by=by, reference=reference))
    except ResultsError as error:
        return _Analysis(by, reference, None, str(error))


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
        What to show of some scans, by scan; or a text that says why there is nothing to show.
    reference
        Group that the others are compared with. By default that of the dataset's own normalization; else ``control``
        where there is such a group; else none: volumes are scaled to the mean ICV of all scans, and groups are compared
        in alphabetical order.
    title
        Heading of the page.

    Returns
    -------
    str
        HTML with its style and pictures inside; texts of the user are escaped. Where the group statistics cannot be
        made, the page says why and shows the rest.

    Raises
    ------
    ResultsError
        If no scan is in the reference group that was asked for.
    """
    analysis = _analyse(ds, reference)
    # The analysis marked outliers and added normalized volumes.
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
        scans=tables.scan_table(shown.isel(scan=slice(_MOST_ROWS)), analysis.by),
        scans_total=ds.sizes["scan"],
        panels=list(_panels(shown, pictures)),
        methods=_methods(ds, analysis),
    )


def _run(ds: xr.Dataset) -> dict[str, Any]:
    """How many scans were done, failed or skipped, and which."""
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


def _group_section(analysis: _Analysis) -> dict[str, Any] | None:
    if analysis.result is None:
        return None
    found = analysis.result
    figure = group_figure(
        found.dataset, _NORMALIZED, MAIN.name, found.comparisons, by=analysis.by, reference=analysis.reference
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
        "others": _other_structures(found.dataset, analysis),
    }


def _other_structures(ds: xr.Dataset, analysis: _Analysis) -> tables.Table | None:
    """The comparisons for every further structure that was measured."""
    names = tables.other_structures(ds)
    if analysis.by is None or not names:
        return None
    asked: dict[str, Any] = {"by": analysis.by, "reference": analysis.reference}
    found = [compare_groups(ds, _NORMALIZED, structure=name, **asked).assign(structure=name) for name in names]
    return _table_or_none(tables.comparison_table, pd.concat(found, ignore_index=True))


def _other_ways(ds: xr.Dataset, analysis: _Analysis) -> dict[str, tables.Table | None]:
    """The comparisons under other adjustments and exclusion rules, and whether exclusion depends on the group."""
    if analysis.by is None:
        return dict.fromkeys(("adjustments", "rules", "exclusion_tests"))
    asked: dict[str, Any] = {"by": analysis.by, "reference": analysis.reference}
    rules = compare_exclusions(ds, _NORMALIZED, structure=MAIN.name, **asked)
    return {
        "adjustments": _table_or_none(tables.adjustment_table, compare_icv_adjustments(ds, **asked)),
        "rules": _table_or_none(tables.rule_table, rules),
        "exclusion_tests": _table_or_none(tables.exclusion_test_table, check_exclusions(ds, by=analysis.by)),
    }


def _table_or_none(make: Callable[[Any], tables.Table], frame: Any) -> tables.Table | None:
    return make(frame) if len(frame) else None


def _panels(ds: xr.Dataset, pictures: Mapping[str, "Pictures | str"]) -> Iterator[dict[str, Any]]:
    """The section of each scan that has pictures."""
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
        shown = title_of(seen.slices.labels.whole).lower()
        yield f"{scan}: coronal slices with the outline of the {shown}", _jpeg(figure)
    if seen.planes:
        yield f"{scan}: three planes with the outline of the {HEAD_SIZE.title}", _jpeg(plane_figure(seen.planes))


def _jpeg(figure: Figure) -> str:
    stream = io.BytesIO()
    # Without colour subsampling, which would blur thin outlines.
    figure.savefig(stream, format="jpeg", dpi=110, pil_kwargs={"quality": 85, "subsampling": 0, "optimize": True})
    return _data_url("image/jpeg", stream.getvalue())


def _svg(figure: Figure) -> str:
    stream = io.BytesIO()
    # No date and fixed ids, so that the same results give the same page.
    with rc_context({"svg.hashsalt": "hypodask"}):
        figure.savefig(stream, format="svg", metadata={"Date": None})
    return _data_url("image/svg+xml", stream.getvalue())


def _data_url(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _methods(ds: xr.Dataset, analysis: _Analysis) -> dict[str, Any]:
    """Label protocols, networks, versions and reference group, for the text of the methods."""
    normalized = analysis.result.dataset[_NORMALIZED].attrs if analysis.result else {}
    models = _distinct(ds, "model")
    shipped, weights = _shipped_cards(), list(_weights(models))
    # Weights are found by their digest. Those without a shipped card include those of a further label protocol.
    used = {digest for _, digest in weights}
    known = {(name, card["sha256"][:_SHOWN_DIGITS]) for card in shipped for name in (card["name"], "")}
    return {
        "protocols": _distinct(ds, "protocol"),
        "models": models,
        "versions": _distinct(ds, "version"),
        "cards": [card for card in shipped if card["sha256"][:_SHOWN_DIGITS] in used],
        "unknown_networks": sorted({f"{name} ({digest})" for name, digest in weights if (name, digest) not in known}),
        "reference": normalized.get("reference", ""),
        "reference_n": normalized.get("reference_n", 0),
        "reference_icv_ml": normalized.get("reference_mean_icv_mm3", float("nan")) / 1000,
    }


def _distinct(ds: xr.Dataset, name: str) -> list[str]:
    return sorted(set(ds[name].to_numpy().astype(str)) - {""}) if name in ds else []


def _weights(models: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Name and digest of all weights in texts such as ``hypothalamus:0123 icv:4567+89ab``; later ones have no name.

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
