"""Volumes that other tools measured, as results datasets that the statistics take.

==================================================  ==========================================================
file                                                written by
==================================================  ==========================================================
``mri/hypothalamic_subunits_volumes.v1.csv``        FreeSurfer 7.2 and later, ``mri_segment_hypothalamic_subunits``,
                                                    one subject or all of a folder
``stats/hypothalamic_subunits_volumes.v1.stats``    the same
``stats/aseg.stats``                                FreeSurfer, FastSurfer, SAMSEG
a table with ``Measure:volume``                     ``asegstats2table``, separated by tabs, commas, semicolons or blanks
``stats/hypothalamus.HypVINN.stats``                FastSurfer, HypVINN
a table with ``subject``, ``total intracranial``    SynthSeg, ``mri_synthseg --vol``
==================================================  ==========================================================

All of them write mm3. Outlines of two tools are not the same thing under one name: each dataset says on its scans which
``tool`` and label ``protocol`` the volumes are of, and :func:`pool` refuses a mixture unless it is asked for.
"""

import csv
import io
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike, fspath
from pathlib import PurePath
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from numpy import ndarray

from hypodask.dataset import assemble
from hypodask.errors import ResultsError
from hypodask.labels import HYPOTHALAMUS_SUBUNITS, STRUCTURES
from hypodask.location import Location
from hypodask.variables import DERIVED

Volumes = dict[str, float]
"""mm3 of each structure by the name that the file gives it, later by ours."""

OURS = "hypodask"
"""The tool of a dataset that does not name one."""

ROUNDING_MM3 = 0.02
"""By how much a whole may differ from the sum of its parts, each rounded to 0.001 mm3."""

ETIV = "EstimatedTotalIntraCranialVol"

FREESURFER_NAMES = {
    f"{side} {theirs}": f"{ours}_{side}"
    for side in ("left", "right")
    for theirs, ours in (
        ("anterior-inferior", "anterior_inferior"),
        ("anterior-superior", "anterior_superior"),
        ("posterior", "posterior"),
        ("tubular inferior", "tubular_inferior"),
        ("tubular superior", "tubular_superior"),
    )
} | {"whole left": "hypothalamus_left", "whole right": "hypothalamus_right"}
"""Columns of FreeSurfer's CSV, and the structure that each is here."""

HYPVINN_NAMES = {
    f"{side[0].upper()}-{theirs}": f"{ours}_{side}"
    for side in ("left", "right")
    for theirs, ours in (
        ("Ant-Hypothalamus", "hypvinn_anterior"),
        ("Post-Hypothalamus", "hypvinn_posterior"),
        ("Med-Hypothalamus", "hypvinn_medial"),
        ("Lat-Hypothalamus", "hypvinn_lateral"),
        ("C.mammilare", "hypvinn_mammillary_body"),
    )
} | {"Tuberal-Region": "hypvinn_tuberal_region"}
"""Labels of HypVINN that make up its hypothalamus here. It knows no whole and cuts other subunits than FreeSurfer does;
the mammillary bodies count because the posterior subunit of FreeSurfer holds them."""

NO_VOLUME = re.compile(r"Vol$|Vol-to-eTIV$|SurfaceHoles$|^eTIV$|^Euler")
"""Columns of asegstats2table that are totals of others, ratios or counts."""


@dataclass(frozen=True)
class Tool:
    """Who measured the volumes, and after which outlines."""

    name: str
    protocol: str
    """Label protocol of the hypothalamus; that of the whole brain where there is none."""
    rename: Callable[[Volumes, str], Volumes]
    """Volumes by the file's names, and the file -> by ours."""


def _hypothalamus_of_freesurfer(found: Volumes, source: str) -> Volumes:
    _require(found, FREESURFER_NAMES, source)
    ours = {name: found[theirs] for theirs, name in FREESURFER_NAMES.items()}
    for side in ("left", "right"):
        parts = sum(ours[label.structure] for label in HYPOTHALAMUS_SUBUNITS if label.hemisphere == side)
        if abs(parts - ours[f"hypothalamus_{side}"]) > ROUNDING_MM3:
            raise ResultsError(
                f"{source}: whole {side} is {ours[f'hypothalamus_{side}']:g} mm3 but its subunits sum to {parts:g}: "
                "columns were shifted or edited, export the file again"
            )
    return ours | {"hypothalamus": ours["hypothalamus_left"] + ours["hypothalamus_right"]}


def _hypothalamus_of_hypvinn(found: Volumes, source: str) -> Volumes:
    # A label without a voxel has no row in the file.
    ours = {name: found.get(theirs, 0.0) for theirs, name in HYPVINN_NAMES.items()}
    others = {f"hypvinn_{_plain(name)}": volume for name, volume in found.items() if name not in HYPVINN_NAMES}
    return {"hypothalamus": sum(ours.values())} | ours | others


def _brain_of_aseg(found: Volumes, source: str) -> Volumes:
    _require(found, [ETIV], source)
    kept = {_plain(name): volume for name, volume in found.items() if not NO_VOLUME.search(name)}
    return {"icv": found[ETIV]} | {f"aseg_{name}": volume for name, volume in kept.items()}


def _brain_of_synthseg(found: Volumes, source: str) -> Volumes:
    kept = {f"synthseg_{_plain(name)}": volume for name, volume in found.items() if name != "total intracranial"}
    return ({"icv": found["total intracranial"]} if "total intracranial" in found else {}) | kept


FREESURFER_HYPOTHALAMUS = Tool(
    "FreeSurfer mri_segment_hypothalamic_subunits v1", HYPOTHALAMUS_SUBUNITS.protocol, _hypothalamus_of_freesurfer
)
FREESURFER_ASEG = Tool("FreeSurfer aseg", "freesurfer-aseg", _brain_of_aseg)
HYPVINN = Tool("FastSurfer HypVINN", "hypvinn", _hypothalamus_of_hypvinn)
SYNTHSEG = Tool("SynthSeg", "synthseg", _brain_of_synthseg)


def _require(found: Mapping[str, float], needed: Iterable[str], source: str) -> None:
    missing = [name for name in needed if name not in found]
    if missing:
        raise ResultsError(f"{source}: found {sorted(found)}, needed also {missing}: export the file again, whole")


def _plain(name: str) -> str:
    """A structure by our way of naming.

    >>> _plain("Left-Cerebral-White-Matter"), _plain("right cerebral white matter"), _plain("ctx-lh-bankssts")
    ('cerebral_white_matter_left', 'cerebral_white_matter_right', 'ctx_bankssts_left')
    """
    words = re.findall(r"[a-z0-9+]+", name.lower())
    sides = {"left": "left", "right": "right", "lh": "left", "rh": "right", "l": "left", "r": "right"}
    for word in words[:2]:
        if word in sides:
            words.remove(word)
            return "_".join([*words, sides[word]])
    return "_".join(words)


def read_volumes(
    paths: str | PathLike[str] | Iterable[str | PathLike[str]],
    *,
    cohort: pd.DataFrame | None = None,
    scan_of: Callable[[str], str] = str,
) -> xr.Dataset:
    r"""Results of another tool, from files of one of the kinds above, told apart by what is in them.

    Parameters
    ----------
    paths
        One or more files, any fsspec URL; all of one tool. A ``.stats`` file is of the subject whose folder holds its
        ``stats`` folder.
    cohort
        Table with the column ``scan`` and covariates: N scans in, N scans out, those without volumes ``skipped``.
        None for the scans of the files alone.
    scan_of
        The tool's name of a subject -> ``scan``, such as ``lambda name: name.removesuffix("_T1w")``.

    Returns
    -------
    Dataset
        As :func:`hypodask.open_results` gives it, with ``volume_mm3``; coordinates ``tool`` and ``icv_tool`` on
        ``scan`` say who measured hypothalamus and ICV. A scan of which the tool outlined nothing is ``failed``.

    Raises
    ------
    ResultsError
        If a file is of no known kind, of another tool than the first, damaged or incomplete; if a scan is there twice,
        or is not in the cohort.

    Examples
    --------
    >>> table = b"subject,total intracranial,left hippocampus\nsub-01,1500000.0,4100.0\n"
    >>> Location("memory://synthseg.csv").write(table)
    >>> read_volumes("memory://synthseg.csv").volume_mm3.sel(structure="icv").item()
    1500000.0
    """
    files = [paths] if isinstance(paths, str | PathLike) else list(paths)
    read = [_read(fspath(file)) for file in files]
    if not read:
        raise ResultsError("no files were given: name one or more files of volumes")
    tools = list(dict.fromkeys(tool.name for tool, _ in read))
    if len(tools) > 1:
        raise ResultsError(f"the files are of {tools}, needed one tool at a time: read each and use add_icv or pool")
    tool = read[0][0]
    rows = [_row(tool, scan_of(subject), volumes) for _, subjects in read for subject, volumes in subjects]
    if not rows:
        raise ResultsError(f"{fspath(files[0])}: a header and no subject below it: run the tool again")
    return _with_tool(assemble(_cohort(cohort, [str(row["scan"]) for row in rows]), rows), tool)


def _row(tool: Tool, scan: str, volumes: Volumes) -> dict[str, Any]:
    row: dict[str, Any] = {"scan": scan, "protocol": tool.protocol, "model": tool.name}
    empty = [name for name in ("hypothalamus", "icv") if volumes.get(name) == 0]
    if empty:
        reason = f"{tool.name} gave {empty[0]} a volume of 0 mm3: look at its segmentation and run it again"
        return row | {"status": "failed", "stage": "import", "error": "ResultsError", "reason": reason}
    return row | {"status": "done", "volume_mm3": volumes}


def _cohort(cohort: pd.DataFrame | None, scans: Sequence[str]) -> pd.DataFrame:
    repeated = sorted({scan for scan in scans if scans.count(scan) > 1}) if len(set(scans)) < len(scans) else []
    if repeated:
        raise ResultsError(
            f"the files hold {repeated[:5]} more than once, needed each scan once: remove the older ones"
        )
    if cohort is None:
        return pd.DataFrame({"scan": scans})
    if "scan" not in cohort or cohort["scan"].duplicated().any():
        raise ResultsError("the cohort needs a column 'scan' in which each scan is there once: add it, or pass none")
    strangers = sorted(set(scans) - set(cohort["scan"].astype(str)))
    if strangers:
        raise ResultsError(
            f"{len(strangers)} scans of the files are not in the cohort ({strangers[:5]}; the cohort has "
            f"{cohort['scan'].astype(str).tolist()[:5]}): give scan_of= to name them alike, or add them"
        )
    return cohort.assign(scan=cohort["scan"].astype(str))


def _with_tool(ds: xr.Dataset, tool: Tool) -> xr.Dataset:
    has_icv = _has_icv(ds)
    scans = ds.sizes["scan"]
    return ds.assign_coords(
        tool=("scan", np.full(scans, tool.name)), icv_tool=("scan", np.full(scans, tool.name if has_icv else ""))
    ).assign_attrs(description=f"Volumes measured by {tool.name}, imported by hypodask.")


def _has_icv(ds: xr.Dataset) -> bool:
    return bool(np.isfinite(ds["volume_mm3"].sel(structure="icv").to_numpy()).any())


def _read(path: str) -> tuple[Tool, list[tuple[str, Volumes]]]:
    try:
        text = Location(path).read().decode()
    except (FileNotFoundError, IsADirectoryError):
        raise ResultsError(f"{path}: no such file, needed a table of volumes: check the path") from None
    except UnicodeDecodeError:
        raise ResultsError(f"{path}: found bytes that are no text, needed a table of volumes: check the path") from None
    tool, subjects = _read_stats(path, text) if text.startswith("#") else _read_table(path, text)
    return tool, [(subject, tool.rename(found, f"{path}, {subject}")) for subject, found in subjects]


def _read_stats(path: str, text: str) -> tuple[Tool, list[tuple[str, Volumes]]]:
    lines = text.splitlines()
    rows = [line.split() for line in lines if line.strip() and not line.startswith("#")]
    if lines[0].startswith("# Hypothalamic Subunit"):
        found = {_csv_name(row[4]): _number(row[3], path) for row in _long_enough(rows, path)}
        return FREESURFER_HYPOTHALAMUS, [(_subject(path, lines), found)]
    headers = next((line.split()[2:] for line in lines if line.startswith("# ColHeaders")), [])
    if headers[3:5] != ["Volume_mm3", "StructName"]:
        raise ResultsError(
            f"{path}: found columns {headers}, needed Index SegId NVoxels Volume_mm3 StructName: "
            "give an aseg.stats or hypothalamus.HypVINN.stats"
        )
    found = {row[4]: _number(row[3], path) for row in _long_enough(rows, path)}
    if any(name.endswith("-Hypothalamus") for name in found):
        return HYPVINN, [(_subject(path, lines), found)]
    return FREESURFER_ASEG, [(_subject(path, lines), found | _etiv(path, lines))]


def _long_enough(rows: list[list[str]], path: str) -> list[list[str]]:
    short = [row for row in rows if len(row) < 5]
    if short or not rows:
        raise ResultsError(f"{path}: found {short[:1] or 'no row'}, needed five columns a row: the file was cut off")
    return rows


def _csv_name(name: str) -> str:
    """FreeSurfer's name in its CSV of what its stats file writes otherwise, in one case with a slip.

    >>> _csv_name("Right-Anterior-Ssuperior"), _csv_name("Left-Tubular-Inferior"), _csv_name("Whole-Left")
    ('right anterior-superior', 'left tubular inferior', 'whole left')
    """
    plain = name.lower().replace("ssuperior", "superior").replace("-", " ")
    return plain.replace("anterior ", "anterior-")


def _etiv(path: str, lines: list[str]) -> Volumes:
    for line in lines:
        if line.startswith(f"# Measure {ETIV}"):
            *_, value, unit = [part.strip() for part in line.split(",")]
            if unit != "mm^3":
                raise ResultsError(f"{path}: {ETIV} is in {unit!r}, needed mm^3: export the file again")
            return {ETIV: _number(value, path)}
    return {}


def _subject(path: str, lines: list[str]) -> str:
    folders = PurePath(path).parts
    if len(folders) > 2 and folders[-2] in ("stats", "mri"):
        return folders[-3]
    named = next((line.split()[2:] for line in lines if line.startswith("# subjectname")), [])
    if not named:
        raise ResultsError(
            f"{path}: nothing says whose it is, needed a path SUBJECT/stats/FILE: keep the tool's folders"
        )
    return named[0]


def _read_table(path: str, text: str) -> tuple[Tool, list[tuple[str, Volumes]]]:
    header = text.partition("\n")[0]
    delimiter = next((mark for mark in "\t,;" if mark in header), " ")
    rows = [row for row in csv.reader(io.StringIO(text), delimiter=delimiter, skipinitialspace=True) if any(row)]
    names = [name.strip() for name in rows[0]] if rows else []
    tool = _tool_of_table(names, path)
    subjects = []
    for row in rows[1:]:
        if len(row) != len(names):
            raise ResultsError(f"{path}: {row[0]} has {len(row)} columns, needed {len(names)}: the file was cut off")
        numbers = zip(names[1:], row[1:], strict=True)
        subjects.append((row[0].strip(), {name: _number(value, path) for name, value in numbers}))
    return tool, subjects


def _tool_of_table(names: list[str], path: str) -> Tool:
    first, others = (names[0], set(names[1:])) if names else ("", set())
    if first == "subject" and "left anterior-inferior" in others:
        return FREESURFER_HYPOTHALAMUS
    if first == "subject" and others & {"total intracranial", "left cerebral white matter"}:
        return SYNTHSEG
    if first == "Measure:volume":
        return FREESURFER_ASEG
    raise ResultsError(
        f"{path}: found the columns {names[:4]}, needed those of FreeSurfer's hypothalamic subunits, SynthSeg or "
        "asegstats2table --meas volume: give one of these files"
    )


def _number(value: str, path: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = float("nan")
    if not 0 <= number < float("inf"):
        raise ResultsError(f"{path}: found {value!r}, needed a volume in mm3 that is not negative: export it again")
    return number


def add_icv(ds: xr.Dataset, other: xr.Dataset) -> xr.Dataset:
    r"""Take the ICV of another tool, scan by scan.

    Parameters
    ----------
    ds
        Results without ICV, such as FreeSurfer's hypothalamic subunits.
    other
        Results with the ICV of the same scans, such as those of ``aseg.stats``.

    Returns
    -------
    Dataset
        ``ds`` with that ICV, missing where the other has none or is not done, and its tool in ``icv_tool``.

    Raises
    ------
    ResultsError
        If ``ds`` has an ICV, the other has none, or they have no scan in common.

    Examples
    --------
    >>> Location("memory://aseg.tsv").write(b"Measure:volume\tEstimatedTotalIntraCranialVol\nsub-01\t1500000\n")
    >>> icv = read_volumes("memory://aseg.tsv")
    >>> add_icv(icv.assign(volume_mm3=icv.volume_mm3 * np.nan), icv).volume_mm3.sel(structure="icv").item()
    1500000.0
    """
    if _has_icv(ds):
        raise ResultsError("the results have an ICV already, needed ones without: a second would replace measurements")
    shared = np.intersect1d(ds["scan"].to_numpy().astype(str), other["scan"].to_numpy().astype(str))
    theirs = other["volume_mm3"].sel(structure="icv").where(other["status"] == "done")
    if not len(shared) or not np.isfinite(theirs.sel(scan=shared).to_numpy()).any():
        raise ResultsError(
            f"{len(shared)} scans are in both and none of them has an ICV, needed the same scans: "
            "name them alike with scan_of= of read_volumes"
        )
    icv = theirs.reindex(scan=ds["scan"]).drop_vars("structure").reset_coords(drop=True)
    tool = np.where(
        np.isfinite(icv.to_numpy()), _named(other)["icv_tool"].reindex(scan=ds["scan"], fill_value="").astype(str), ""
    )
    return ds.assign(volume_mm3=ds["volume_mm3"].where(ds["structure"] != "icv", icv)).assign_coords(
        icv_tool=("scan", tool.astype(str))
    )


def pool(datasets: Sequence[xr.Dataset], *, allow_mixed_tools: bool = False) -> xr.Dataset:
    r"""One dataset of several, such as the scans of several sites.

    Parameters
    ----------
    datasets
        Results of different scans. What analyses added (outliers, adjusted volumes) is dropped: it is to be found anew.
    allow_mixed_tools
        Pool volumes although tools or label protocols differ. A difference between groups may then be one between
        tools; the coordinates ``tool`` and ``icv_tool`` tell them apart.

    Returns
    -------
    Dataset
        All scans; structures and covariates that a dataset lacks are missing there.

    Raises
    ------
    ResultsError
        If a scan is in two of them, or tools or protocols differ and that was not allowed.

    Examples
    --------
    >>> Location("memory://a.csv").write(b"subject,total intracranial\nsub-01,1500000.0\n")
    >>> Location("memory://b.csv").write(b"subject,total intracranial\nsub-02,1400000.0\n")
    >>> pool([read_volumes("memory://a.csv"), read_volumes("memory://b.csv")]).scan.values.tolist()
    ['sub-01', 'sub-02']
    """
    if not datasets:
        raise ResultsError("there are no datasets to pool: give one or more")
    named = [_named(ds) for ds in datasets]
    scans = pd.Series(np.concatenate([ds["scan"].to_numpy().astype(str) for ds in named]))
    if scans.duplicated().any():
        repeated = scans[scans.duplicated()].unique().tolist()
        raise ResultsError(f"scans {repeated[:5]} are in more than one dataset, needed each once: choose one of them")
    mixed = _mixtures(named)
    if mixed and not allow_mixed_tools:
        raise ResultsError(
            f"the volumes are of different {' and '.join(mixed)}, needed one: their outlines differ, so pool them only "
            "with allow_mixed_tools=True and an analysis that knows the tool"
        )
    pooled = xr.concat(
        _alike(named),
        dim="scan",
        data_vars="all",
        coords="different",
        compat="equals",
        join="outer",
        combine_attrs="drop_conflicts",
    )
    known = [name for name in STRUCTURES if name in pooled["structure"].to_numpy()]
    others = sorted(set(pooled["structure"].to_numpy().astype(str)) - set(STRUCTURES))
    return pooled.sel(structure=[*known, *others])


def _named(ds: xr.Dataset) -> xr.Dataset:
    unnamed = [name for name in ("tool", "icv_tool") if name not in ds.coords]
    dropped = ds.drop_vars([variable.name for variable in DERIVED], errors="ignore")
    return dropped.assign_coords({name: ("scan", np.full(ds.sizes["scan"], OURS)) for name in unnamed})


def _mixtures(datasets: Sequence[xr.Dataset]) -> list[str]:
    """What the done scans differ in, such as ``tool (FastSurfer HypVINN, hypodask)``."""
    mixed = []
    for name in ("tool", "protocol", "icv_tool"):
        found = {
            value for ds in datasets for value in ds[name].to_numpy()[ds["status"].to_numpy() == "done"].astype(str)
        }
        if len(found - {""}) > 1:
            mixed.append(f"{name} ({', '.join(sorted(found - {''}))})")
    return mixed


def _alike(datasets: Sequence[xr.Dataset]) -> list[xr.Dataset]:
    """The same covariates in each: text that a dataset lacks is empty, a number NaN."""
    dtypes = {str(name): ds[name].dtype for ds in datasets for name in ds.coords if ds[name].dims == ("scan",)}
    return [
        ds.assign_coords({name: ("scan", _blank(dtypes[name], ds)) for name in dtypes if name not in ds.coords})
        for ds in datasets
    ]


def _blank(dtype: "np.dtype[Any]", ds: xr.Dataset) -> ndarray:
    text = dtype.kind in "UTO"
    return np.full(ds.sizes["scan"], "" if text else np.nan)
