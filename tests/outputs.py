"""Outputs with the files that runs leave, made without running anything."""

import base64
import shutil
from pathlib import Path

import numpy as np
import pandas as pd

from hypodask.core.grid import Grid
from hypodask.core.row import Row
from hypodask.files.digests import write_sealed
from hypodask.files.location import Location
from hypodask.scan import Scan
from hypodask.storage.journal import Journal, read_journal
from hypodask.storage.store import mark_done, write_scan
from hypodask.study.results import assemble, finalise, save_cohort

SCANS = ("sub-07_ses-1", "sub-07_ses-2", "sub-70_ses-1", "sub-8")

PICTURE = np.random.default_rng(7).integers(0, 255, (5, 5, 5)).astype(np.uint8)
TELLING = ["sub-07", "/bids/secret", "7" * 64, "aged 77"]
"""Id, path, digest and covariate of the person who leaves; none of them is a part of what others have."""


def make_output(url: str) -> None:
    """An output of four scans of three people, one of them failed, with a log, a report and a stray store."""
    cohort = pd.DataFrame({"scan": SCANS, "path": [f"/bids/{scan}.nii" for scan in SCANS]})
    cohort["participant_id"] = [scan.partition("_")[0] for scan in SCANS]
    save_cohort(url, cohort)
    with Journal(url) as journal:
        for scan in SCANS[:3]:
            store = f"scans/Ulm/{scan}.nii.zarr"
            write_scan(f"{url}/{store}", Scan(np.full((4, 4, 4), 7, np.uint8), Grid((4, 4, 4), np.eye(4), "scanner")))
            mark_done(f"{url}/{store}", {})
            journal.append(Row(scan, "done", volume_mm3={"icv": 1.5e6}, store=store, seconds=9.0).as_dict())
        journal.flush()
        journal.append(
            Row("sub-8", "failed", stage="read", error="NonFiniteError", reason="3 voxels are NaN").as_dict()
        )
    finalise(url, assemble(cohort, read_journal(url)))
    write_sealed(Location(url).child("logs", "sub-07_ses-1.log"), b"sub-07 was dark")
    write_sealed(Location(url).child("report.html"), b"a picture of sub-07")


def study_with_somebody(folder: Path) -> str:
    """An output with everything in it that a person may be named in, also what killed processes leave."""
    url = str(folder)
    scans = ["sub-07_ses-1", "sub-07_acq-hires_run-2", "sub-8"]
    paths = ["/bids/secret-1.nii", "/bids/secret-2.nii", "/bids/b.nii"]
    people = ["sub-07", "sub-07", "sub-8"]
    notes = ["aged 77", "aged 77", ""]
    cohort = pd.DataFrame({"scan": scans, "path": paths, "participant_id": people, "note": notes})
    save_cohort(url, cohort)
    for results in (1, 2):
        with Journal(url) as journal:
            for scan, person in zip(scans, people, strict=True):
                digest = ("7" if person == "sub-07" else "8") * 64
                store = f"scans/{'Ulm' if person == 'sub-07' else 'Bern'}/{scan}.nii.zarr"
                voxels = PICTURE if person == "sub-07" else PICTURE[::-1]
                write_scan(f"{url}/{store}", Scan(voxels, Grid(voxels.shape, np.eye(4), "scanner"), sha256=digest))
                row = Row(scan, "done", volume_mm3={"icv": 1.5e6 + results}, store=store, sha256=digest).as_dict()
                mark_done(f"{url}/{store}", {"row": row})
                journal.append(row)
                journal.flush()
        finalise(url, assemble(cohort, read_journal(url)))
    place = Location(url)
    write_sealed(place.child("logs", "sub-07_ses-1.log"), b"sub-07 was dark")
    write_sealed(place.child("report.html"), b"sub-07" + base64.b64encode(PICTURE.tobytes()))
    # What has neither a row nor a place in the table, and what was never finished.
    place.child("logs", "sub-07_ses-9.log").write(b"sub-07 was never done")
    shutil.copytree(folder / "scans/Ulm/sub-07_ses-1.nii.zarr", folder / "scans/sub-07_ses-9.nii.zarr")
    for name in (f".volumes.tsv.{'0' * 32}", "journal/.00000003.parquet.0123", f"logs/.hypodask-{'0' * 32}"):
        place.child(name).write(b"sub-07")
    place.child("locks", "scan-sub-07_ses-1.00000001.json").write(b"{}")
    return url
