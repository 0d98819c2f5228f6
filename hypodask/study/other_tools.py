"""Volumes that other tools measured, as results datasets that the statistics take.

:mod:`hypodask.study.tool_files` lists the kinds of files that are read. Two tools mean different things by the name of
one structure. So each dataset names the ``tool`` and the label ``protocol`` of every scan, and :func:`pool` refuses to
mix them unless it is asked to.
"""

from collections.abc import Callable, Iterable, Sequence
from os import PathLike, fspath
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from hypodask.core.errors import ResultsError
from hypodask.core.structures import HEAD_SIZE, MAIN, in_order
from hypodask.core.variables import DERIVED
from hypodask.study.results import assemble
from hypodask.study.tool_files import Tool, Volumes, read_tool_file

_OURS = "hypodask"
"""Tool of a dataset without the coordinate ``tool``."""


def read_volumes(
    paths: str | PathLike[str] | Iterable[str | PathLike[str]],
    *,
    cohort: pd.DataFrame | None = None,
    scan_of: Callable[[str], str] = str,
) -> xr.Dataset:
    r"""Results of another tool, from files of a kind that :mod:`hypodask.study.tool_files` lists.

    Parameters
    ----------
    paths
        One or more files or URLs, all of one tool. The subject of a ``.stats`` file is the name of the folder that
        holds its ``stats`` folder.
    cohort
        Table with the column ``scan`` and covariates: the results have exactly these scans, and those without volumes
        are ``skipped``. By default the results have the scans of the files.
    scan_of
        The tool's name of a subject -> ``scan``, such as ``lambda name: name.removesuffix("_T1w")``.

    Returns
    -------
    Dataset
        As :func:`hypodask.open_results` gives it, with ``volume_mm3``; the coordinates ``tool`` and ``icv_tool`` on
        ``scan`` name the tools that measured hypothalamus and ICV. A scan in which the tool found nothing is
        ``failed``.

    Raises
    ------
    ResultsError
        If a file is of no known kind, of another tool than the first, damaged or incomplete; if a scan is there twice,
        or is not in the cohort.

    Examples
    --------
    >>> table = b"subject,total intracranial,left hippocampus\nsub-01,1500000.0,4100.0\n"
    >>> from hypodask.files.location import Location
    >>> Location("memory://synthseg.csv").write(table)
    >>> read_volumes("memory://synthseg.csv").volume_mm3.sel(structure="icv").item()
    1500000.0
    """
    files = [paths] if isinstance(paths, str | PathLike) else list(paths)
    read = [read_tool_file(fspath(file)) for file in files]
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
    empty = [name for name in (MAIN.name, HEAD_SIZE.name) if volumes.get(name) == 0]
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
    return bool(np.isfinite(ds["volume_mm3"].sel(structure=HEAD_SIZE.name).to_numpy()).any())


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
    >>> from hypodask.files.location import Location
    >>> Location("memory://aseg.tsv").write(b"Measure:volume\tEstimatedTotalIntraCranialVol\nsub-01\t1500000\n")
    >>> icv = read_volumes("memory://aseg.tsv")
    >>> add_icv(icv.assign(volume_mm3=icv.volume_mm3 * np.nan), icv).volume_mm3.sel(structure="icv").item()
    1500000.0
    """
    if _has_icv(ds):
        raise ResultsError("the results have an ICV already, needed ones without: a second would replace measurements")
    shared = np.intersect1d(ds["scan"].to_numpy().astype(str), other["scan"].to_numpy().astype(str))
    theirs = other["volume_mm3"].sel(structure=HEAD_SIZE.name).where(other["status"] == "done")
    if not len(shared) or not np.isfinite(theirs.sel(scan=shared).to_numpy()).any():
        raise ResultsError(
            f"{len(shared)} scans are in both and none of them has an ICV, needed the same scans: "
            "name them alike with scan_of= of read_volumes"
        )
    icv = theirs.reindex(scan=ds["scan"]).drop_vars("structure").reset_coords(drop=True)
    tool = np.where(
        np.isfinite(icv.to_numpy()), _named(other)["icv_tool"].reindex(scan=ds["scan"], fill_value="").astype(str), ""
    )
    return ds.assign(volume_mm3=ds["volume_mm3"].where(ds["structure"] != HEAD_SIZE.name, icv)).assign_coords(
        icv_tool=("scan", tool.astype(str))
    )


def pool(datasets: Sequence[xr.Dataset], *, allow_mixed_tools: bool = False) -> xr.Dataset:
    r"""One dataset of several, such as the scans of several sites.

    Parameters
    ----------
    datasets
        Results of different scans. Variables that analyses added, such as outliers and adjusted volumes, are dropped.
    allow_mixed_tools
        Pool volumes although tools or label protocols differ. A difference between groups may then be a difference
        between tools; the coordinates ``tool`` and ``icv_tool`` tell the tools apart.

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
    >>> from hypodask.files.location import Location
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
            f"the volumes are of different {' and '.join(mixed)}, needed one: their segmentations differ, so pool them "
            "only with allow_mixed_tools=True and an analysis that knows the tool"
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
    return pooled.sel(structure=in_order(pooled["structure"].to_numpy().astype(str)))


def _named(ds: xr.Dataset) -> xr.Dataset:
    unnamed = [name for name in ("tool", "icv_tool") if name not in ds.coords]
    dropped = ds.drop_vars([variable.name for variable in DERIVED], errors="ignore")
    return dropped.assign_coords({name: ("scan", np.full(ds.sizes["scan"], _OURS)) for name in unnamed})


def _mixtures(datasets: Sequence[xr.Dataset]) -> list[str]:
    """In what the done scans differ, such as ``tool (FastSurfer HypVINN, hypodask)``."""
    mixed = []
    for name in ("tool", "protocol", "icv_tool"):
        found = {
            value for ds in datasets for value in ds[name].to_numpy()[ds["status"].to_numpy() == "done"].astype(str)
        }
        if len(found - {""}) > 1:
            mixed.append(f"{name} ({', '.join(sorted(found - {''}))})")
    return mixed


def _alike(datasets: Sequence[xr.Dataset]) -> list[xr.Dataset]:
    """The datasets with the same covariates: where a dataset lacks one, text is empty and a number is NaN."""
    dtypes = {str(name): ds[name].dtype for ds in datasets for name in ds.coords if ds[name].dims == ("scan",)}
    alike = []
    for ds in datasets:
        blank = {name: "" if dtype.kind in "UTO" else np.nan for name, dtype in dtypes.items() if name not in ds.coords}
        alike.append(ds.assign_coords({name: ("scan", np.full(ds.sizes["scan"], blank[name])) for name in blank}))
    return alike
