"""Scans per hour of a whole cohort."""

from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp
from time import perf_counter

import hypodask
from hypodask import phantom

SCANS = 4


class Study:
    """A simulated study of four heads with 1 mm voxels, on new workers of this machine.

    The start of the workers and the compilation in each of them count, so the rate of a large study is higher.
    """

    params = (1, 2)
    param_names = ("workers",)
    timeout = 600
    unit = "scans/hour"

    def setup_cache(self) -> str:
        """The study, made once."""
        return str(phantom.simulate_cohort(Path(mkdtemp(prefix="hypodask-bench-")), SCANS))

    def track_scans_per_hour(self, folder: str, workers: int) -> float:
        """From the first call to the finished results dataset."""
        cohort = hypodask.Cohort.from_bids(folder)
        with TemporaryDirectory(prefix="hypodask-bench-") as out:
            start = perf_counter()
            results = hypodask.process(cohort, out, workers=workers, progress=False)
            hours = (perf_counter() - start) / 3600
        done = int((results["status"] == "done").sum())
        if done != SCANS:
            raise RuntimeError(f"{done} of {SCANS} scans are done: {results['reason'].to_numpy().tolist()}")
        return done / hours
