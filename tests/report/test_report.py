import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from datasets import make_results, paper_results
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from hypodask import report, stats
from hypodask.core.errors import ResultsError, StoreError
from hypodask.core.grid import Grid, box_grid, transform_points
from hypodask.core.structures import (
    HYPOTHALAMUS,
    HYPOTHALAMUS_SEED,
    HYPOTHALAMUS_SIDES,
    ICV,
    STRUCTURES,
    THIRD_VENTRICLE,
)
from hypodask.report import tables
from hypodask.report.figures import _bracket_levels
from hypodask.report.page import _choose_scans
from hypodask.report.pictures import _HEAD_MM, Pictures, cut_planes, cut_slices
from hypodask.scan import Scan
from hypodask.storage.store import mark_done, write_label_map, write_record, write_scan
from hypodask.study.results import finalise, wide_table

NORMALIZED = "normalized_volume_mm3"
GROUPS = {"group": ["control"] * 6 + ["PLS"] * 6}
VOLUMES = [850, 860, 870, 880, 890, 900, 780, 790, 800, 815, 830, 840]


def tilted_head() -> Grid:
    """A coarse oblique grid in AC-PC space that covers the head box."""
    turned = np.eye(4)
    turned[:3, :3] = Rotation.from_euler("xyz", [12, -7, 20], degrees=True).as_matrix() @ np.diag([-6.0, 6, 7])
    turned[:3, 3] = -turned[:3, :3] @ [24.5, 24.5, 24.5]
    return Grid((50, 50, 50), turned, "acpc")


def coordinate(grid: Grid, axis: int) -> np.ndarray:
    """Image whose intensity is a coordinate in mm."""
    index = np.stack(np.meshgrid(*map(np.arange, grid.shape), indexing="ij"), axis=-1)
    return transform_points(grid.space_from_vox, index)[..., axis].astype(np.float32)


def small_slab() -> tuple[np.ndarray, Grid]:
    """Left box 2 to 8 mm from the midline, right box 2 to 5 mm, 5 to 12 mm below the AC."""
    slab = box_grid((64, 25, 64), (1.0, 1.0, 1.0), (0.0, -4.5, 0.0))
    x, y, z = (coordinate(slab, axis) for axis in range(3))
    body = (abs(y + 4) < 5) & (z < -5) & (z > -12)
    label_map = np.zeros(slab.shape, dtype=np.uint8)
    label_map[body & (x < -2) & (x > -8)] = HYPOTHALAMUS["posterior_left"].index
    label_map[body & (x > 2) & (x < 5)] = HYPOTHALAMUS["posterior_right"].index
    return label_map, slab


@pytest.fixture(scope="module")
def slices():
    return cut_slices(coordinate(tilted_head(), 2), tilted_head(), *small_slab())


@pytest.fixture(scope="module")
def pictures(slices):
    head = tilted_head()
    ball = (np.linalg.norm([coordinate(head, axis) for axis in range(3)], axis=0) < 60).astype(np.uint8)
    return Pictures(slices, cut_planes(coordinate(head, 1), head, ball, head))


def outlines(axes):
    """Corner points of the drawn contours, by colour."""
    found = {}
    for drawn in axes.collections:
        vertices = np.concatenate([path.vertices for path in drawn.get_paths()])
        found[tuple(drawn.get_edgecolor()[0].round(3))] = vertices
    return found


# pictures


def test_slices_show_the_scan_where_the_labels_are(slices):
    """The image is the z coordinate itself: it must be that of each pixel, however the head was tilted."""
    n = slices.image.shape[2]
    low, high = slices.image_extent_mm[2:]
    z_mm = low + (high - low) * (np.arange(n) + 0.5) / n
    np.testing.assert_allclose(slices.image, np.broadcast_to(z_mm, slices.image.shape), atol=1e-3)


def test_slices_run_from_front_to_back_through_the_labels(slices):
    assert (np.diff(slices.y_mm) < 0).all()
    assert slices.label_map.any(axis=(1, 2)).all()
    assert -9 < slices.y_mm.min() < slices.y_mm.max() < 1


def test_slices_without_any_label_span_the_slab():
    label_map, slab = small_slab()
    empty = cut_slices(coordinate(tilted_head(), 0), tilted_head(), 0 * label_map, slab)
    assert len(empty.y_mm) == 6
    assert report.slice_figure(empty).axes


def test_planes_are_cut_in_acpc_space(pictures):
    axial, coronal, sagittal = pictures.planes
    assert [plane.name for plane in pictures.planes] == ["axial", "coronal", "sagittal"]
    inside = axial.image[40:130, 40:150]
    np.testing.assert_allclose(
        inside, np.broadcast_to(_HEAD_MM[1][0] + 0.5 + np.arange(40, 150), inside.shape), atol=1e-3
    )
    np.testing.assert_allclose(coronal.image[88, 80], coronal.at_mm, atol=1e-3)
    assert sagittal.mask.sum() == pytest.approx(np.pi * (60**2 - 3**2), rel=0.05)


def stored(url, head, labels=HYPOTHALAMUS, further=None):
    label_map, slab = small_slab()
    write_scan(url, Scan(coordinate(head, 2).astype(np.int16), head))
    write_label_map(url, "hypothalamus_slab", label_map, slab, labels)
    write_label_map(url, "icv_scan", np.ones(head.shape, np.uint8), head, ICV)
    if further is not None:
        write_label_map(url, "third_ventricle_slab", further, slab, THIRD_VENTRICLE)
    write_record(url, "alignment", {"acpc_from_scanner": np.eye(4).tolist()})
    mark_done(url, {})


def test_pictures_are_read_from_the_store(tmp_path):
    head = Grid((50, 50, 50), tilted_head().space_from_vox, "scanner")
    stored(str(tmp_path / "one.nii.zarr"), head)
    seen = report.read_pictures(str(tmp_path / "one.nii.zarr"))
    assert seen.slices.label_map.any()
    assert seen.slices.image[0, 128, 200] == pytest.approx(18, abs=1)
    assert len(seen.planes) == 3


@pytest.mark.parametrize("labels", [HYPOTHALAMUS_SEED, replace(HYPOTHALAMUS_SIDES, protocol="of my own"), HYPOTHALAMUS])
def test_labels_are_named_as_the_store_has_them_whatever_the_protocol(tmp_path, labels):
    head = Grid((50, 50, 50), tilted_head().space_from_vox, "scanner")
    stored(str(tmp_path / "one.nii.zarr"), head, labels)
    slices = report.read_pictures(str(tmp_path / "one.nii.zarr")).slices
    assert slices.labels == labels
    named = [text.get_text() for text in report.slice_figure(slices).legends[0].get_texts()]
    assert named == [label.structure.replace("_", " ") for label in labels]


def test_every_byte_of_a_store_is_checked_before_it_is_drawn(tmp_path):
    url = str(tmp_path / "one.nii.zarr")
    stored(url, Grid((50, 50, 50), tilted_head().space_from_vox, "scanner"))
    # The list of label maps is for other readers.
    for path in [path for path in Path(url).rglob("*") if path.is_file() and path.parent.name != "labels"]:
        content = path.read_bytes()
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        with pytest.raises(StoreError, match=r"damaged|digest"):
            report.read_pictures(url)
        path.write_bytes(content)


# slice figures


@pytest.mark.parametrize(("convention", "right_is_left"), [("radiological", True), ("neurological", False)])
def test_the_subjects_right_is_where_the_picture_says(slices, convention, right_is_left):
    figure = report.slice_figure(slices, convention=convention)
    panel = figure.axes[0]
    x_left, x_right = panel.get_xlim()
    assert (x_left > x_right) == right_is_left
    letters = {text.get_text(): text.get_position()[0] for text in panel.texts}
    assert (letters["R"] < letters["L"]) == right_is_left
    side = "left" if right_is_left else "right"
    assert any(f"subject's right on the {side}" in text.get_text() for text in figure.texts)


def test_outlines_lie_where_the_labels_are_in_mm(slices):
    found = outlines(report.slice_figure(slices).axes[2])
    assert len(found) == 2
    spans = sorted((x.min(), x.max()) for x in (vertices[:, 0] for vertices in found.values()))
    assert spans == [pytest.approx((-8, -2), abs=0.51), pytest.approx((2, 5), abs=0.51)]
    heights = np.concatenate(list(found.values()))[:, 1]
    assert (heights.min(), heights.max()) == pytest.approx((-12, -5), abs=0.51)


def test_colours_and_names_are_those_of_the_label_table(slices):
    figure = report.slice_figure(slices, HYPOTHALAMUS_SIDES)
    legend = figure.legends[0]
    assert [text.get_text() for text in legend.get_texts()] == ["hypothalamus left", "hypothalamus right"]
    assert [line.get_color() for line in legend.get_lines()] == [label.colour for label in HYPOTHALAMUS_SIDES]


def test_every_slice_says_where_it_is_and_one_has_the_scale(slices):
    panels = report.slice_figure(slices, columns=4).axes
    written = [[text.get_text() for text in panel.texts] for panel in panels]
    assert all(f"y = {y:+.1f} mm" in texts for y, texts in zip(slices.y_mm, written, strict=False))
    assert sum("10 mm" in texts for texts in written) == 1


def test_the_icv_mask_is_outlined_in_every_plane(pictures):
    figure = report.plane_figure(pictures.planes)
    radii = [np.hypot(*next(iter(outlines(axes).values())).T) for axes in figure.axes]
    for radius, plane in zip(radii, pictures.planes, strict=True):
        assert radius.mean() == pytest.approx(np.sqrt(60**2 - plane.at_mm**2), abs=2)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["ICV"]


# group figure


def test_the_group_figure_names_groups_numbers_and_p():
    found = stats.paper(paper_results())
    axes = report.group_figure(found.dataset, NORMALIZED, "hypothalamus", found.comparisons, reference="control").axes[
        0
    ]
    counts = found.summaries[found.summaries.variable == NORMALIZED].set_index("group")["n"]
    expected = [f"{name}\nn = {counts[name]}" for name in ("control", "ALS", "PLS")]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == expected
    assert len(axes.texts) == 3
    assert any(text.get_text().startswith("n.s.") for text in axes.texts)
    assert axes.get_ylabel() == "Hypothalamus: ICV-normalized volume (mm³)"


def test_a_group_without_volumes_leaves_an_empty_place():
    ds = make_results(VOLUMES, covariates=GROUPS, failed=range(6, 12))
    axes = report.group_figure(ds, "volume_mm3", "hypothalamus").axes[0]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["PLS\nn = 0", "control\nn = 6"]


def test_excluded_scans_are_crosses_that_the_figure_explains():
    ds = stats.find_outliers(make_results([*VOLUMES[:5], 2000, *VOLUMES[6:]], covariates=GROUPS))
    figure = report.group_figure(ds, "volume_mm3", "hypothalamus")
    assert "excluded" in figure.get_supxlabel()
    assert figure.axes[0].get_xticklabels()[1].get_text() == "control\nn = 5"


@given(st.integers(2, 7), st.integers(0, 99))
def test_brackets_never_cross(n, seed):
    names = [chr(97 + i) for i in range(n)]
    pairs = [
        (b, a, p) for a, b, p in zip(names * n, np.repeat(names, n), np.linspace(0, 1, n * n), strict=True) if a < b
    ]
    shuffled = np.random.default_rng(seed).permutation(len(pairs))
    table = pd.DataFrame([pairs[i] for i in shuffled], columns=["group_a", "group_b", "p_recommended"])
    placed = _bracket_levels(table, names)
    assert len(placed) >= n - 1
    for i, (left, right, level, _) in enumerate(placed):
        assert not any(
            lv == level and left < other_right and other_left < right for other_left, other_right, lv, _ in placed[:i]
        )


# the page


class Page(HTMLParser):
    """Tags, addresses and text of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.tags: list[str] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def study():
    covariates = {**GROUPS, "age": range(50, 62), "sex": ["M", "F"] * 6}
    return make_results(VOLUMES, covariates=covariates, failed=[5])


@pytest.fixture(scope="module")
def page(study, pictures):
    return Page(report.render(study, {"sub-000": pictures, "sub-001": "no pictures: the store is damaged"}))


def test_the_page_asks_for_nothing_outside_itself(page):
    assert all(address.startswith(("#", "data:")) for address in page.addresses)
    assert not {"script", "link", "iframe"} & set(page.tags)


def shipped_card(name):
    return json.loads(files("hypodask").joinpath("weights", f"{name}.json").read_text(encoding="utf-8"))


def model_of(*names):
    return "+".join(shipped_card(name)["sha256"][:12] for name in names)


def methods_of(study, model):
    text = Page(report.render(study.assign(model=("scan", [model] * study.sizes["scan"])), {})).text
    return text[text.index("Accuracy of the networks") :]


def test_cards_are_those_of_the_weights_that_were_used(study):
    text = methods_of(study, f"hypothalamus:{model_of('hypothalamus')} icv:{model_of('icv', 'icv-border')}")
    for name in ("hypothalamus", "icv", "icv-border"):
        assert shipped_card(name)["training_data"][:60] in text
    assert "no model card" not in text


def test_a_network_of_the_same_name_is_not_credited_with_the_figures_of_ours(study):
    text = methods_of(study, f"hypothalamus:0123456789ab icv:{model_of('icv', 'icv-border')}")
    assert shipped_card("hypothalamus")["training_data"][:60] not in text
    assert "hypodask has no model card of hypothalamus (0123456789ab)" in text
    extended = methods_of(study, f"hypothalamus-seed:{model_of('hypothalamus')}")
    assert "hypodask has no model card of hypothalamus-seed" in extended


@pytest.mark.parametrize("name", [r"$\\frac$", r"$\frac{$", "$", "a$b$c"])
def test_a_group_may_be_called_like_a_formula(study, name):
    groups = [name if group == "PLS" else group for group in study["group"].to_numpy()]
    html = report.render(study.assign_coords(group=("scan", groups)), {}, reference="control")
    assert name in Page(html).text
    report.forest_figure(*sites_table(name)).canvas.draw()


def sites_table(name):
    columns = {
        "site": [name],
        "n": [9],
        "estimate": [1.0],
        "low": [0.5],
        "high": [1.5],
        "weight_percent": [100.0],
        "reason": [""],
    }
    together = {"estimate": [1.0], "low": [0.5], "high": [1.5], "prediction_low": [0.0], "prediction_high": [2.0]}
    return pd.DataFrame(columns), pd.DataFrame(together | {"sites": [1]})


def test_contents_lead_to_sections_that_exist(study):
    html = report.render(study, {})
    assert set(re.findall(r'href="#(\w+)"', html)) == set(re.findall(r'<h2 id="(\w+)"', html))


def test_comparisons_stand_beside_other_adjustments_and_rules_of_exclusion():
    ds = paper_results()
    text = Page(report.render(ds, {}, reference="control")).text
    found = stats.paper(ds).dataset
    adjustments = stats.compare_icv_adjustments(found, reference="control")
    rules = stats.compare_exclusions(found, NORMALIZED, structure="hypothalamus", reference="control")
    for row in [*adjustments.itertuples(), *rules.itertuples()]:
        assert f"{row.difference:.1f} ({row.difference_low:.1f} to {row.difference_high:.1f})".replace("-", "−") in text
    tests = [tables._TEST_NAMES[name] for name in stats.check_exclusions(found)["test"]]
    for name in [*adjustments["method"], *rules["rule"], *tests]:
        assert name in text


def test_what_is_to_be_said_of_rows_is_said_once_beneath_the_table():
    adjustments = stats.compare_icv_adjustments(stats.paper(paper_results()).dataset, reference="control")
    pairs = adjustments["group_a"] + " − " + adjustments["group_b"]
    adjustments["reason"] = np.where(pairs == "PLS − control", "the methods disagree", "")
    table = tables.adjustment_table(adjustments)
    assert table.notes == ("PLS − control: the methods disagree",)
    assert not any("disagree" in cell for row in table.rows for cell in row)


def test_a_test_that_could_not_be_made_has_no_name():
    ds = make_results([800, 810, 700, 710], covariates={"group": list("aabb")})
    table = tables.comparison_table(stats.compare_groups(ds, "volume_mm3", structure="hypothalamus"))
    assert table.rows[0][table.columns.index("Test")] == "–"
    assert table.notes[0].startswith("a − b: ")


def test_one_group_is_compared_in_no_way():
    text = Page(report.render(make_results(VOLUMES), {})).text
    assert "rules of exclusion" not in text
    assert "size of the head" not in text


def with_third_ventricle(ds, volumes_mm3):
    """The same results with a volume of a further structure, which has a record and no shipped network."""
    wider = ds.reindex(structure=[*ds["structure"].to_numpy(), "third_ventricle"], fill_value={"volume_mm3": np.nan})
    wider["volume_mm3"].loc[{"structure": "third_ventricle"}] = volumes_mm3
    return wider


@pytest.fixture
def three_structures(study):
    return with_third_ventricle(study, [1000, 1010, 1020, 1030, 1040, 1050, 2000, 2010, 2020, 2030, 2040, 1234.5])


def test_a_further_structure_has_its_volumes_beside_the_others(three_structures):
    table = tables.scan_table(three_structures, "group")
    assert "Third ventricle (mm³)" in table.columns
    assert table.rows[0][table.columns.index("Third ventricle (mm³)")] == "1 000"
    assert table.rows[0][: table.columns.index("Third ventricle (mm³)")][-2:] == ("1 500", "–")
    assert wide_table(three_structures)["third_ventricle_volume_mm3"].iloc[-1] == 1234.5


def test_a_further_structure_is_compared_between_the_groups_like_the_main_one(three_structures):
    text = " ".join(Page(report.render(three_structures, {}, reference="control")).text.split())
    found = stats.paper(three_structures).dataset
    (row,) = stats.compare_groups(found, NORMALIZED, structure="third_ventricle", reference="control").itertuples()
    section = text.partition("Holm adjusts p for each structure on its own.")[2].partition("Exclusions")[0]
    assert "Third ventricle PLS − control" in section.replace("ventriclePLS", "ventricle PLS")
    shown = f"{row.difference:,.1f} ({row.difference_low:,.1f} to {row.difference_high:,.1f})".replace(",", " ")
    assert row.difference > 700
    assert shown in section


def test_without_a_volume_of_it_a_further_structure_is_not_mentioned(study):
    empty = report.render(with_third_ventricle(study, np.nan), {})
    assert "ventricle" not in Page(empty).text
    assert "Other structures" not in empty
    assert "Third ventricle (mm³)" in Page(report.render(with_third_ventricle(make_results(VOLUMES), 900.0), {})).text


@pytest.mark.parametrize("on_slab", [True, False])
def test_structures_on_the_slab_are_outlined_together_with_labels_of_their_own(tmp_path, monkeypatch, on_slab):
    further = replace(STRUCTURES["third_ventricle"], on_slab=on_slab)
    monkeypatch.setattr("hypodask.report.pictures.STRUCTURES", {**STRUCTURES, further.name: further})
    url, head = str(tmp_path / "one.nii.zarr"), Grid((50, 50, 50), tilted_head().space_from_vox, "scanner")
    label_map, slab = small_slab()
    ventricle = ((coordinate(slab, 2) < -5) & (abs(coordinate(slab, 0)) < 4)).astype(np.uint8)
    stored(url, head, further=ventricle)
    slices = report.read_pictures(url).slices
    names = [text.get_text() for text in report.slice_figure(slices).legends[0].get_texts()]
    assert names == [label.structure.replace("_", " ") for label in HYPOTHALAMUS] + ["third ventricle"] * on_slab
    at = np.round(slices.y_mm - transform_points(slab.space_from_vox, np.zeros(3))[1]).astype(int)
    hypothalamus = label_map[:, at].transpose(1, 0, 2)
    np.testing.assert_array_equal(slices.label_map[hypothalamus > 0], hypothalamus[hypothalamus > 0])
    beside = (ventricle[:, at].transpose(1, 0, 2) > 0) & (hypothalamus == 0)
    assert set(slices.label_map[beside]) == {len(HYPOTHALAMUS) + 1 if on_slab else 0}


def test_every_scan_is_accounted_for_with_its_reason(page, study):
    assert "12scans in" in page.text
    assert "11done" in page.text
    assert "1failed" in page.text
    assert "the file ends at byte 1024 of 5000: copy it again" in page.text
    assert all(scan in page.text for scan in study.scan.to_numpy())


def test_comparisons_table_1_and_methods_are_there(page):
    assert "PLS − control" in page.text
    assert "control (N = 6)" in page.text
    assert "billot2020-consensus" in page.text
    assert "hypodask 0.1.0" in page.text
    assert "Research software" in page.text


def test_scans_of_low_quality_are_listed_the_worst_first_and_failed_ones_are_not(study):
    quality = np.array([0.9, 0.4, 0.95, 0.1, 0.8, 0.0, *[1.0] * 6])
    ds = study.assign(
        quality=("scan", quality), warnings=("scan", np.where(quality == 0.1, "The image is noisy.", "").astype(object))
    )
    text = " ".join(Page(report.render(ds, {})).text.split())
    assert "2of low quality" in text
    listed = text.partition("without knowledge of their group")[2]
    assert re.search(r"sub-003 ?0\.10 ?The image is noisy\. ?sub-001 ?0\.40", listed)
    assert "0of low quality" in Page(report.render(study, {})).text


def test_scans_of_low_quality_are_shown_before_ordinary_ones():
    ds = make_results([800.0 + n for n in range(8)])
    ds = ds.assign(quality=("scan", np.where(np.arange(8) == 6, 0.2, 1.0)))
    assert "sub-006" in _choose_scans(ds, 2)


def test_pictures_and_why_there_are_none_are_shown(page):
    assert page.tags.count("img") == 3
    assert "no pictures: the store is damaged" in page.text


def test_the_same_results_give_the_same_page(study, pictures):
    assert report.render(study, {"sub-000": pictures}) == report.render(study, {"sub-000": pictures})


def test_what_comes_from_outside_is_escaped(study, pictures):
    wicked = "<script>alert(1)</script>"
    text = np.where(study.status == "failed", wicked, "")
    ds = study.assign(reason=("scan", text), warnings=("scan", text))
    ds = ds.assign_coords(
        scan=[wicked, *study.scan.to_numpy()[1:]], group=("scan", [f"{g}<b>" for g in study.group.to_numpy()])
    )
    html = report.render(ds, {wicked: pictures, "sub-001": wicked})
    assert "<script" not in html
    assert "<b>&lt;" not in html
    assert html.count("&lt;script&gt;alert(1)") >= 4


@pytest.mark.parametrize(
    ("groups", "failed", "said"),
    [
        (None, [], "the cohort's table has no groups"),
        (["a"] * 4, [], "Table 1"),
        (["a", "a", "b", "c"], [], "a has 2 usable scans, a test needs 3"),
        (["a", "a", "b", "b"], [0, 1, 2, 3], "The group statistics could not be made: no usable ICV"),
        (None, [0, 1, 2, 3], "could not be made"),
        (["", "", "", ""], [], "the cohort's table has no groups"),
    ],
)
def test_small_and_failed_cohorts_still_have_a_page(groups, failed, said):
    covariates = {"age": [50, 60, 70, 80]} | ({"group": groups} if groups else {})
    ds = make_results([800, 810, 820, 830], covariates=covariates, failed=failed)
    assert said in Page(report.render(ds, {})).text


def test_an_impossible_score_costs_the_statistics_not_the_page(study):
    wrong = study.assign_coords(alsfrs_r=("scan", [60.0] * 12), disease_duration_years=("scan", [1.0] * 12))
    page = Page(report.render(wrong, {}))
    assert "alsfrs_r outside 0 to 48" in page.text
    assert "12scans in" in page.text


def test_the_reference_is_what_was_asked_for_then_what_was_normalized_to_then_control(study):
    assert "of control (" in Page(report.render(study, {})).text.replace("\n", " ")
    by_pls = stats.normalize_icv(study, reference="PLS")
    assert "control − PLS" in Page(report.render(by_pls, {})).text
    assert "PLS − control" in Page(report.render(by_pls, {}, reference="control")).text
    with pytest.raises(ResultsError, match="healthy"):
        report.render(study, {}, reference="healthy")


def test_thousands_of_scans_keep_the_table_short():
    ds = make_results(np.linspace(700, 900, 2100), covariates={"group": ["a", "b"] * 1050})
    html = report.render(ds, {})
    assert "The other 100 scans are in volumes.tsv" in html
    assert len(html) < 2e6


def test_deviant_and_first_scans_are_shown():
    ds = make_results([800, 810, 820, 1900, 805, 100, 815, 790], covariates={"group": ["a"] * 8}, failed=[0])
    ds = ds.assign(flagged=("scan", np.arange(8) == 6))
    assert _choose_scans(ds, 4) == ["sub-001", "sub-002", "sub-003", "sub-006"]
    assert len(_choose_scans(ds, 60)) == 7
    assert _choose_scans(ds, 0) == []


def test_the_report_is_written_from_the_output_alone(study, tmp_path):
    ds = study.assign(store=("scan", np.where(np.arange(12) < 2, [f"scans/{i}.nii.zarr" for i in range(12)], "")))
    stored(str(tmp_path / "scans" / "0.nii.zarr"), Grid((50, 50, 50), tilted_head().space_from_vox, "scanner"))
    finalise(str(tmp_path), ds)
    written = report.write_report(str(tmp_path), pictures=3)
    assert written == str(tmp_path / "report.html")
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert page.tags.count("img") == 3
    assert "there is no finished store at" in page.text


def test_public_names_are_what_is_exported():
    assert sorted(report.__all__) == report.__all__
    assert all(hasattr(report, name) for name in report.__all__)
