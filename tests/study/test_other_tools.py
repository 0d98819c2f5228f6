import numpy as np
import pandas as pd
import pytest
from datasets import make_results

from hypodask import stats
from hypodask.core.errors import ResultsError
from hypodask.study.other_tools import add_icv, pool, read_volumes
from hypodask.study.results import finalise, open_results, save_cohort

SUBUNITS = (50.125, 20.25, 110.5, 130.0, 100.0), (51.125, 21.25, 111.5, 131.0, 101.0)
HEADER = (
    "subject,left anterior-inferior,left anterior-superior,left posterior,left tubular inferior,left tubular superior,"
    "right anterior-inferior,right anterior-superior,right posterior,right tubular inferior,right tubular superior,"
    "whole left,whole right\r\n"
)
SUBUNIT_STATS = ("Anterior-Inferior", "Anterior-Superior", "Posterior", "Tubular-Inferior", "Tubular-Superior")

ASEG = """# Title Segmentation Statistics
#
# generating_program mri_segstats
# subjectname sub-07
# Measure BrainSeg, BrainSegVol, Brain Segmentation Volume, 1221128.310000, mm^3
# Measure EstimatedTotalIntraCranialVol, eTIV, Estimated Total Intracranial Volume, 1512345.500000, mm^3
# NTableCols 10
# ColHeaders  Index SegId NVoxels Volume_mm3 StructName normMean normStdDev normMin normMax normRange
  1   4     10350    10350.2  Left-Lateral-Ventricle            33.2     12.1     5.0    92.0    87.0
  2  14      1219     1219.4  3rd-Ventricle                     35.1     11.7     9.0    89.0    80.0
  3  53      4201     4201.7  Right-Hippocampus                 71.4      9.9    30.0   110.0    80.0
"""

HYPVINN = """# Title Segmentation Statistics
#
# generating_program segstats.py
# ColHeaders  Index SegId NVoxels Volume_mm3 StructName normMean normStdDev normMin normMax normRange
  1 961       410      210.500  R-N.opticus           60.1  10.2  20.0  90.0  70.0
  2 963       200      102.400  R-C.mammilare         90.1   8.2  50.0 110.0  60.0
  3 966       201      103.400  L-C.mammilare         90.3   8.1  50.0 110.0  60.0
  4 976       300      150.000  Tuberal-Region        80.3   8.1  50.0 110.0  60.0
  5 977       100       40.000  L-Med-Hypothalamus    80.3   8.1  50.0 110.0  60.0
  6 978       100       45.000  L-Lat-Hypothalamus    80.3   8.1  50.0 110.0  60.0
  7 979       200      110.000  L-Ant-Hypothalamus    80.3   8.1  50.0 110.0  60.0
  8 980       300      160.000  L-Post-Hypothalamus   80.3   8.1  50.0 110.0  60.0
  9 981       100       41.000  R-Med-Hypothalamus    80.3   8.1  50.0 110.0  60.0
 10 982       100       46.000  R-Lat-Hypothalamus    80.3   8.1  50.0 110.0  60.0
 11 983       200      111.000  R-Ant-Hypothalamus    80.3   8.1  50.0 110.0  60.0
"""

SYNTHSEG = (
    "subject,total intracranial,left cerebral white matter,left hippocampus,right ventral DC,ctx-rh-cuneus\n"
    "sub-01_T1w,1498765.1,231000.5,4100.25,3700.5,3100.0\nsub-02_T1w,1398765.1,221000.5,3900.25,3600.5,3000.0\n"
)


def subunit_row(subject, scale=1.0, whole=None):
    left, right = (np.round(scale * np.array(side), 3) for side in SUBUNITS)
    return ",".join([subject, *(f"{v:.3f}" for v in (*left, *right, whole or left.sum(), right.sum()))]) + "\r\n"


def written(folder, name, text):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode())
    return path


@pytest.fixture
def subunits(tmp_path):
    text = HEADER + subunit_row("sub-01") + subunit_row("sub-02", 1.1)
    return read_volumes(written(tmp_path, "hypothalamic_subunits_volumes_all.v1.csv", text))


def volume(ds, scan, structure):
    return ds.volume_mm3.sel(scan=scan, structure=structure).item()


def test_subunits_of_freesurfer_keep_their_sides_and_sum_to_the_whole(subunits):
    assert volume(subunits, "sub-01", "anterior_superior_left") == 20.25
    assert volume(subunits, "sub-01", "tubular_inferior_right") == 131.0
    assert volume(subunits, "sub-01", "hypothalamus_left") == sum(SUBUNITS[0])
    assert volume(subunits, "sub-01", "hypothalamus") == sum(SUBUNITS[0]) + sum(SUBUNITS[1])
    assert np.isnan(volume(subunits, "sub-01", "icv"))
    assert set(subunits.protocol.to_numpy()) == {"billot2020"}
    assert subunits.volume_mm3.attrs["units"] == "mm3"


def test_the_stats_file_of_freesurfer_says_the_same_as_its_csv(tmp_path, subunits):
    values = [v for side in SUBUNITS for v in side] + [sum(side) for side in SUBUNITS]
    names = [f"{side}-{name}" for side in ("Left", "Right") for name in SUBUNIT_STATS] + ["Whole-Left", "Whole-Right"]
    names[6] = "Right-Anterior-Ssuperior"  # as FreeSurfer spells it
    lines = [f"{i + 1:2d}  {i + 1:2d}  0  {v:7.3f}  {n}" for i, (v, n) in enumerate(zip(values, names, strict=True))]
    text = "\n".join(["# Hypothalamic Subunit Volumetric Stats", *lines, ""])
    path = written(tmp_path, "sub-01/stats/hypothalamic_subunits_volumes.v1.stats", text)
    np.testing.assert_array_equal(read_volumes(path).volume_mm3[0], subunits.volume_mm3.sel(scan="sub-01"))


def test_aseg_gives_the_icv_and_a_path_or_its_header_the_subject(tmp_path):
    by_folder = read_volumes(written(tmp_path, "sub-01/stats/aseg.stats", ASEG))
    assert volume(by_folder, "sub-01", "icv") == 1512345.5
    assert volume(by_folder, "sub-01", "aseg_hippocampus_right") == 4201.7
    assert volume(by_folder, "sub-01", "aseg_3rd_ventricle") == 1219.4
    assert read_volumes(written(tmp_path, "aseg.stats", ASEG)).scan.item() == "sub-07"


@pytest.mark.parametrize("delimiter", ["\t", ",", ";", " "])
def test_a_table_of_asegstats2table_has_no_ratios_and_counts(tmp_path, delimiter):
    names = ["Measure:volume", "Left-Hippocampus", "CSF", "BrainSegVol", "BrainSegVol-to-eTIV", "lhSurfaceHoles"]
    rows = [
        [*names, "EstimatedTotalIntraCranialVol"],
        ["sub-01", "4000.1", "1100.0", "1200000.0", "0.79", "23", "1500000.0"],
    ]
    text = "\n".join(delimiter.join(row) for row in rows) + "\n"
    ds = read_volumes(written(tmp_path, "aseg.table", text))
    assert ds.structure.to_numpy().tolist() == ["hypothalamus", "icv", "aseg_csf", "aseg_hippocampus_left"]
    assert volume(ds, "sub-01", "icv") == 1500000.0


def test_hypvinn_subunits_are_its_own_and_an_absent_label_is_zero(tmp_path):
    ds = read_volumes(written(tmp_path, "sub-01/stats/hypothalamus.HypVINN.stats", HYPVINN))
    assert volume(ds, "sub-01", "hypvinn_anterior_right") == 111
    assert volume(ds, "sub-01", "hypvinn_posterior_right") == 0
    assert volume(ds, "sub-01", "hypothalamus") == pytest.approx(102.4 + 103.4 + 150 + 355 + 198)
    assert volume(ds, "sub-01", "hypvinn_n_opticus_right") == 210.5
    assert "posterior_left" not in ds.structure.to_numpy()


def test_synthseg_names_of_scans_are_made_those_of_the_cohort(tmp_path):
    cohort = pd.DataFrame({"scan": ["sub-02", "sub-01", "sub-03"], "group": ["PLS", "control", "PLS"]})
    path = written(tmp_path, "volumes.csv", SYNTHSEG)
    ds = read_volumes(path, cohort=cohort, scan_of=lambda name: name.removesuffix("_T1w"))
    assert ds.status.to_numpy().tolist() == ["done", "done", "skipped"]
    assert ds.group.to_numpy().tolist() == ["PLS", "control", "PLS"]
    assert volume(ds, "sub-01", "icv") == 1498765.1
    assert volume(ds, "sub-01", "synthseg_ctx_cuneus_right") == 3100
    with pytest.raises(ResultsError, match=r"2 scans .* not in the cohort .*scan_of="):
        read_volumes(path, cohort=cohort)


def test_a_scan_without_an_outline_failed_and_does_not_count(tmp_path):
    empty = "sub-03," + ",".join(["0.000"] * 12) + "\r\n"
    ds = read_volumes(written(tmp_path, "all.csv", HEADER + subunit_row("sub-01") + empty))
    assert ds.status.to_numpy().tolist() == ["done", "failed"]
    assert "0 mm3" in ds.reason.to_numpy()[1]
    assert stats.summarize_groups(ds, "volume_mm3", structure="hypothalamus", by=None)["n"].item() == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "found the columns"),
        ("subject,age\nsub-01,60\n", r"found the columns \['subject', 'age'\]"),
        (HEADER, "no subject below it"),
        (HEADER + subunit_row("sub-01")[:40] + "\r\n", "has 6 columns, needed 13"),
        (HEADER + subunit_row("sub-01") * 2, "more than once"),
        (HEADER + subunit_row("sub-01", whole=300.0), "whole left is 300 mm3 but its subunits sum to 410.875"),
        (HEADER.replace(",left posterior", "", 1) + "sub-01" + ",1.0" * 11, r"needed also \['left posterior'\]"),
        (HEADER + subunit_row("sub-01").replace("50.125", "nan"), "found 'nan'"),
        (HEADER + subunit_row("sub-01").replace("50.125", "-50.125"), "found '-50.125'"),
        (ASEG.replace("5500000, mm^3", "5500000, ml").replace("345.500000, mm^3", "345.500000, ml"), "is in 'ml'"),
        (ASEG.replace("# Measure Estimated", "# Estimated"), "EstimatedTotalIntraCranialVol"),
        (ASEG.replace("Volume_mm3", "Volume_ml"), "needed Index SegId NVoxels Volume_mm3"),
        (ASEG.rpartition("  3  53")[0] + "  3  53  42\n", "five columns"),
        (HYPVINN, "nothing says whose it is"),
        ("Measure:mean\tLeft-Hippocampus\nsub-01\t70\n", "--meas volume"),
    ],
)
def test_a_malformed_file_is_refused_by_name_with_what_was_needed(tmp_path, text, message):
    path = written(tmp_path, "bad.txt", text)
    with pytest.raises(ResultsError, match=message) as caught:
        read_volumes(path)
    assert "bad.txt" in str(caught.value) or "more than once" in message


def test_a_file_that_is_not_there_or_no_text_is_refused(tmp_path):
    with pytest.raises(ResultsError, match="no such file"):
        read_volumes(tmp_path / "absent.csv")
    (tmp_path / "image.mgz").write_bytes(bytes(range(255)))
    with pytest.raises(ResultsError, match="no text"):
        read_volumes(tmp_path / "image.mgz")
    with pytest.raises(ResultsError, match="no files"):
        read_volumes([])


def test_files_of_two_tools_are_not_read_as_one(tmp_path):
    paths = [written(tmp_path, "a.csv", SYNTHSEG), written(tmp_path, "sub-01/stats/aseg.stats", ASEG)]
    with pytest.raises(ResultsError, match="one tool at a time"):
        read_volumes(paths)


def test_an_icv_of_another_tool_joins_the_subunits_scan_by_scan(tmp_path, subunits):
    icv = read_volumes(written(tmp_path, "sub-02/stats/aseg.stats", ASEG))
    both = add_icv(subunits, icv)
    assert np.isnan(volume(both, "sub-01", "icv"))
    assert volume(both, "sub-02", "icv") == 1512345.5
    assert both.icv_tool.to_numpy().tolist() == ["", "FreeSurfer aseg"]
    normalized = stats.normalize_icv(both, reference=None).normalized_volume_mm3.sel(structure="hypothalamus")
    assert np.isfinite(normalized.to_numpy()).tolist() == [False, True]
    with pytest.raises(ResultsError, match="already"):
        add_icv(both, icv)
    with pytest.raises(ResultsError, match="0 scans are in both"):
        add_icv(subunits, icv.assign_coords(scan=["sub-09"]))


def test_volumes_of_two_tools_are_pooled_only_when_asked(tmp_path, subunits):
    ours = make_results([800.0, 810.0], covariates={"age": [60, 61]}).pipe(stats.find_outliers, by=None)
    ours = ours.assign_coords(scan=["sub-11", "sub-12"])
    with pytest.raises(ResultsError, match=r"different tool \(FreeSurfer .*, hypodask\) and protocol"):
        pool([ours, subunits])
    both = pool([ours, subunits], allow_mixed_tools=True)
    assert both.scan.to_numpy().tolist() == ["sub-11", "sub-12", "sub-01", "sub-02"]
    assert both.structure.to_numpy()[:4].tolist() == ["hypothalamus", "icv", "hypothalamus_left", "hypothalamus_right"]
    assert np.isnan(volume(both, "sub-11", "posterior_left"))
    assert volume(both, "sub-01", "posterior_left") == 110.5
    assert np.isnan(both.age.to_numpy()).tolist() == [False, False, True, True]
    assert "excluded" not in both
    assert both.volume_mm3.attrs["units"] == "mm3"


def test_a_scan_in_two_datasets_is_refused(subunits):
    with pytest.raises(ResultsError, match="sub-01"):
        pool([subunits, subunits])
    with pytest.raises(ResultsError, match="no datasets"):
        pool([])


def test_imported_results_are_written_and_opened_like_ours(tmp_path, subunits):
    out = str(tmp_path / "out")
    save_cohort(out, pd.DataFrame({"scan": subunits.scan.to_numpy()}))
    finalise(out, subunits)
    np.testing.assert_array_equal(open_results(out).volume_mm3, subunits.volume_mm3)
