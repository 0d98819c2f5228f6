"""Volumes of other programs are read from what they write, and compared by ratio and with the truth."""

import stat

import numpy as np
import pandas as pd
import pytest

from benchmarks.validation.icv_peers import AS_IT_IS, against_truth, by_deepbet, by_samseg, compared

SAMSEG = '#!/bin/sh\ntest "$3" = --output && echo "# Measure Intra-Cranial, 1602933.017229, mm^3" > "$4/sbtiv.stats"\n'
DEEPBET = '#!/bin/sh\ntest "$5" = -v && printf ",tiv_cm3\\n0,1560.648\\n" > "$6"\n'


@pytest.fixture
def program(tmp_path):
    def written(script):
        path = tmp_path / "program"
        path.write_text(script)
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        return str(path)

    return written


@pytest.mark.parametrize(
    ("measure", "script", "volume_ml"), [(by_samseg, SAMSEG, 1602.933017229), (by_deepbet, DEEPBET, 1560.648)]
)
def test_a_volume_is_read_from_what_a_program_writes(program, tmp_path, measure, script, volume_ml):
    assert measure(program(script), tmp_path / "scan.nii.gz") == pytest.approx(volume_ml)


@pytest.mark.parametrize("measure", [by_samseg, by_deepbet])
def test_a_program_that_fails_gives_no_volume_and_is_told(program, tmp_path, capsys, measure):
    assert np.isnan(measure(program("#!/bin/sh\necho too dark >&2\nexit 3\n"), tmp_path / "scan.nii.gz"))
    assert "too dark" in capsys.readouterr().out


def test_two_tools_are_compared_by_their_ratio_on_the_scans_of_both():
    volumes = {
        ("a", "one"): 1100.0,
        ("a", "two"): 1000.0,
        ("b", "one"): 1331.0,
        ("b", "two"): 1100.0,
        ("c", "one"): 9.0,
    }
    rows = [(file, tool, volume, AS_IT_IS, np.nan) for (file, tool), volume in volumes.items()]
    (row,) = compared(pd.DataFrame(rows, columns=["file", "tool", "icv_ml", "brain", "true_ml"])).to_dict("records")
    # Ratios of 1.1 and 1.21: their geometric mean, and the standard deviation of their logarithms.
    assert row["tools"] == "one / two"
    assert (row["scans"], row["mean %"], row["SD %"]) == (2, 15.4, 6.7)


def test_errors_and_drifts_are_those_of_the_images_with_a_truth():
    rows = [
        ("a", "one", 1010.0, AS_IT_IS, 1000.0),
        ("b", "one", 1980.0, AS_IT_IS, 2000.0),
        ("a-", "one", 1030.0, "contracted", 1000.0),
        ("b-", "one", 1980.0, "contracted", 2000.0),
        ("a-", "one", 1000.0, "peeled", 1000.0),
        ("c", "one", 1500.0, AS_IT_IS, np.nan),
    ]
    (row,) = against_truth(pd.DataFrame(rows, columns=["file", "tool", "icv_ml", "brain", "true_ml"])).to_dict(
        "records"
    )
    assert (row["maps"], row["mean absolute %"], row["bias %"], row["SD %"]) == (2, 1.0, 0.0, 1.41)
    assert (row["contracted: mean %"], row["contracted: largest %"]) == (1.0, 2.0)
    assert (row["peeled: mean %"], row["peeled: largest %"]) == (-1.0, 1.0)
