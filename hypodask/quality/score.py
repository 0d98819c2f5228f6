"""All measures of a scan, and the quality score that they give.

The score compares every measure with its range on good-quality scans (:mod:`hypodask.quality.reference`). A measure
inside its range costs nothing. Outside, its distance from the range is counted in **steps**: a step is the distance
that alone halves the score. It is chosen for each measure (:attr:`Measure.step`). Where both high and low values are
suspicious and the range is wide, a step is half the width of the range instead, since good-quality scans differ that
much. All distances together give

    score = 2 ** -sqrt(sum of squared distances, in steps)

so that one measure at one step gives 1/2, at two steps 1/4, and several small distances add up.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import UInt8
from numpy import ndarray

from hypodask.alignment.pose import Alignment
from hypodask.core.errors import ModelError
from hypodask.core.structures import HEAD_SIZE, MAIN
from hypodask.quality import image
from hypodask.quality import segmentation as shape
from hypodask.quality.reference import Reference, load_reference
from hypodask.scan.scan import Scan
from hypodask.segmentation.volumes import Volumes, faces_reached

Measures = dict[str, float]
"""Measures of one scan by name; not-a-number where one cannot be taken."""


@dataclass(frozen=True)
class Measure:
    """One measure: which values are suspicious, and the sentence for them."""

    name: str
    suspicious: Literal["high", "low", "both"]
    """Which side of the range is suspicious."""
    step: float
    """Distance outside the range of good-quality scans that halves the score; see the top of this module."""
    sentence: str
    """What the warnings say of a value that is one step outside or more, with ``{value}``, ``{ratio}`` (of a measure
    that is the logarithm of a ratio) and ``{structure}``; empty where other warnings say it."""
    logarithmic: bool = False
    """Whether distances are differences of logarithms."""
    per_voxel_mm: float = 0.0
    """How much the measure changes on good-quality scans for each mm of the longest side of a voxel above 1 mm; this is
    subtracted first. From the means of 23 scans of 0.7 to 1 mm and of 14 of 2 mm."""


MEASURES = (
    Measure("border_entropy", "high", 0.05, "The boundary of the {structure} is uncertain.", per_voxel_mm=0.083),
    Measure("member_spread", "high", 0.03, "The networks of the ensemble disagree on the volume ({value:.1%})."),
    Measure(
        "member_overlap",
        "low",
        0.03,
        "The networks of the ensemble disagree on the segmentation (Dice {value:.2f}).",
        per_voxel_mm=-0.021,
    ),
    Measure("asymmetry", "both", 0.10, "The left {structure} is {ratio:.2f} times as large as the right one."),
    Measure(
        "mirror_mm",
        "high",
        0.8,
        "The two sides of the {structure} are not mirror images: their centres differ by {value:.1f} mm.",
    ),
    Measure("centroid_x_mm", "both", 0.8, "The {structure} lies {value:.1f} mm beside the midsagittal plane."),
    Measure("centroid_y_mm", "both", 1.5, "The {structure} lies at y = {value:.1f} mm, which is unusual."),
    Measure("centroid_z_mm", "both", 1.5, "The {structure} lies at z = {value:.1f} mm, which is unusual."),
    Measure("extent_x_mm", "both", 0.8, "The {structure} has an unusual width (SD {value:.1f} mm)."),
    Measure("extent_y_mm", "both", 0.8, "The {structure} has an unusual length (SD {value:.1f} mm)."),
    Measure("extent_z_mm", "both", 0.8, "The {structure} has an unusual height (SD {value:.1f} mm)."),
    Measure("islands", "high", 0.03, "{value:.0%} of the segmentation lay apart from the {structure} and was removed."),
    Measure("faces", "high", 1.0, ""),
    Measure("margin_mm", "low", 3.0, "The field of view ends {value:.0f} mm from the {structure}."),
    Measure("unseen", "high", 0.03, "{value:.0%} of the {structure} was not imaged and is inferred."),
    Measure("cavity_unseen", "high", 0.03, ""),
    Measure("icv_ml", "both", 0.15, "The intracranial volume of {value:.0f} ml is unusual.", logarithmic=True),
    Measure("cavity_length", "both", 0.05, "The intracranial volume is {value:.2f} times as long as it is wide.", True),
    Measure("cavity_height", "both", 0.05, "The intracranial volume is {value:.2f} times as high as it is wide.", True),
    Measure("cavity_x_mm", "both", 2.0, "The intracranial volume lies {value:.1f} mm beside the midsagittal plane."),
    Measure("cavity_y_mm", "both", 4.0, "The intracranial volume lies at y = {value:.0f} mm, which is unusual."),
    Measure("cavity_z_mm", "both", 4.0, "The intracranial volume lies at z = {value:.0f} mm, which is unusual."),
    Measure("alignment_score", "low", 0.05, "The brain matches the template poorly (correlation {value:.2f})."),
    Measure("alignment_error_mm", "high", 0.3, "The position of the commissures is uncertain by {value:.1f} mm."),
    Measure("acpc_mm", "both", 2.0, "The commissures are {value:.1f} mm apart, which is unusual."),
    Measure(
        "stretch",
        "high",
        0.05,
        "Compared with the template, the head is stretched {value:.2f} times along one direction.",
        logarithmic=True,
    ),
    Measure("flagged", "high", 0.7, ""),
    Measure("noise", "high", 0.2, "The image is noisy: the noise is {value:.1%} of the contrast.", logarithmic=True),
    Measure("edge_mm", "high", 0.2, "The image is blurred: edges are {value:.1f} mm wide.", logarithmic=True),
    Measure("voxel_mm", "high", 0.5, "Voxels are up to {value:.1f} mm long.", logarithmic=True),
    Measure(
        "separability",
        "low",
        0.03,
        "Grey matter, white matter and fluid are hard to tell apart (separability {value:.2f}).",
    ),
    Measure("fluid", "high", 0.1, "Fluid is bright: {value:.2f} times as bright as white matter."),
    Measure("sides", "both", 0.1, "The left half of the head is {ratio:.2f} times as bright as the right one."),
    Measure("air", "high", 0.7, "Air is {value:.1f} times as bright as noise alone would make it.", logarithmic=True),
)
"""All measures. Their ranges are measured (``hypodask/weights/reference.json``). Their steps were chosen, and some were
changed once after seeing the very runs that ``docs/quality.md`` reports."""

_SUSPICIOUS_STEPS = 1.0
"""Measures at least so many steps outside of their range are named in the warnings."""


@dataclass(frozen=True)
class Quality:
    """How far the result of a scan can be trusted, and why not."""

    score: float
    """From 0 (worthless) to 1 (nothing unusual); 1/2 where one measure is one step outside of its range."""
    reasons: tuple[str, ...]
    """A sentence about each measure that is one step outside of its range or more, the worst first."""


def examine(
    scan: Scan, alignment: Alignment, volumes: Mapping[str, Volumes], icv_map: UInt8[ndarray, "i j k"]
) -> Measures:
    """Every measure of one scan; not-a-number where one cannot be taken.

    Parameters
    ----------
    scan, alignment
        The image, and where its commissures are.
    volumes
        By structure: cleaned segmentations and volumes, of the main structure and of the head's size at least.
    icv_map
        ICV mask on the scan's own voxels.
    """
    some = image.coarse_index(scan.grid)
    inside = scan.data[some][icv_map[some] > 0]
    levels = image.levels(inside) if inside.size else image.Levels(0.0, float(scan.data.max()))
    main = volumes[MAIN.name]
    return {
        **_of_segmentation(main, alignment),
        **_of_field_of_view(scan, alignment, main, levels),
        **_of_icv(scan, volumes[HEAD_SIZE.name], icv_map),
        **_of_pose(alignment),
        **_of_image(scan, alignment, icv_map, levels),
    }


def _of_segmentation(main: Volumes, alignment: Alignment) -> Measures:
    """Of the segmentation of the main structure: certainty, agreement, symmetry, place and extent."""
    found = main.cleaned
    acpc_from_vox = main.to_acpc(alignment) @ found.grid.space_from_vox
    whole = 1 - found.posteriors[0]
    left, right = found.side_posterior("left"), found.side_posterior("right")
    everywhere, *sides = (shape.place_of(part, acpc_from_vox) for part in (whole, left, right))
    return {
        "border_entropy": shape.boundary_entropy(whole, found.grid.spacing_mm),
        "member_spread": shape.member_spread(found.member_wholes),
        "member_overlap": shape.member_overlap(found.member_wholes, whole),
        "asymmetry": shape.log_ratio(float(left.sum()), float(right.sum())),
        "mirror_mm": shape.mirror_distance_mm(*sides),
        **{f"centroid_{axis}_mm": float(v) for axis, v in zip("xyz", everywhere.centroid_mm, strict=True)},
        **{f"extent_{axis}_mm": float(v) for axis, v in zip("xyz", everywhere.sd_mm, strict=True)},
        "islands": main.islands_mm3 / main.label_mm3[found.labels.whole],
        "faces": float(len(faces_reached(found.label_map > 0, found.grid, found.grid, np.eye(4)))),
    }


def _of_field_of_view(scan: Scan, alignment: Alignment, main: Volumes, levels: image.Levels) -> Measures:
    """How much of the main structure was imaged, and how much room there is around it."""
    found = main.cleaned
    to_scanner = np.linalg.inv(alignment.acpc_from_scanner) if found.grid.space == "acpc" else np.eye(4)
    indices = shape.indices_in_scan(found.label_map > 0, found.grid, scan.grid, to_scanner)
    return {
        "margin_mm": shape.margin_mm(indices, scan.grid),
        "unseen": shape.unseen_share(indices, scan.data, image.BLACK * levels.white),
    }


def _of_icv(scan: Scan, icv: Volumes, icv_map: UInt8[ndarray, "i j k"]) -> Measures:
    """Size, shape and place of the intracranial volume."""
    found = icv.cleaned
    # Every second voxel is enough for place and shape.
    place = shape.place_of(1 - found.posteriors[0][::2, ::2, ::2], found.grid.space_from_vox @ np.diag([2, 2, 2, 1]))
    width, length, height = place.sd_mm.tolist()
    imaged = np.count_nonzero(icv_map) * scan.grid.voxel_volume_mm3
    return {
        "cavity_unseen": max(0.0, 1 - imaged / icv.label_mm3[HEAD_SIZE.name]),
        "icv_ml": icv.soft_mm3[HEAD_SIZE.name] / 1000,
        "cavity_length": length / width,
        "cavity_height": height / width,
        **{f"cavity_{axis}_mm": float(v) for axis, v in zip("xyz", place.centroid_mm, strict=True)},
    }


def _of_pose(alignment: Alignment) -> Measures:
    """How certain the alignment is, and how the head differs from the template."""
    sizes = np.linalg.svd(alignment.mni_from_scanner[:3, :3], compute_uv=False)
    return {
        "alignment_score": alignment.score,
        "alignment_error_mm": alignment.error_mm,
        "acpc_mm": alignment.acpc_distance_mm,
        "stretch": float(sizes[0] / sizes[-1]),
        "flagged": float(alignment.flagged),
    }


def _of_image(scan: Scan, alignment: Alignment, icv_map: UInt8[ndarray, "i j k"], levels: image.Levels) -> Measures:
    """Noise, resolution, contrast and brightness of the image."""
    some = image.coarse_index(scan.grid)
    data, inside = scan.data[some], icv_map[some] > 0
    steps = np.array([part.step for part in some])
    acpc_from_some = alignment.acpc_from_scanner @ scan.grid.space_from_vox @ np.diag([*steps, 1])
    box = scan.data[image.box_about_hypothalamus(scan.grid, alignment.acpc_from_scanner)]
    x_mm = sum(acpc_from_some[0, a] * n for a, n in enumerate(np.ogrid[tuple(map(slice, data.shape))]))
    spacing, noise = np.array(scan.grid.spacing_mm), image.noise_sd(box)
    return {
        "noise": noise / levels.contrast,
        "edge_mm": image.edge_mm(box, scan.grid.spacing_mm, levels.contrast),
        "voxel_mm": float(spacing.max()),
        "separability": image.separability(data[inside]),
        "fluid": levels.fluid / levels.white if levels.white > 0 else np.nan,
        "sides": image.sides_log_ratio(data, inside, x_mm + acpc_from_some[0, 3]),
        "air": image.air_over_noise(data, tuple(spacing * steps), levels.white, noise),
    }


def judge(measures: Mapping[str, float], reference: Reference | None = None) -> Quality:
    """The quality score of a scan, and why it is low. How it is made stands at the top of this module.

    Parameters
    ----------
    measures
        As :func:`examine` gives them; one that is missing or not-a-number costs nothing.
    reference
        Ranges on good-quality scans; by default those that come with hypodask.

    Raises
    ------
    ModelError
        If a measure was taken that the reference has no range for.

    Examples
    --------
    >>> usual = {name: range_.low for name, range_ in load_reference().ranges.items()}
    >>> judge(usual)
    Quality(score=1.0, reasons=())
    >>> judge(usual | {"noise": 0.5}).reasons
    ('The image is noisy: the noise is 50.0% of the contrast.',)
    """
    reference = reference or load_reference()
    steps = {m: steps_outside(m, comparable_value(m, measures), reference) for m in MEASURES}
    worst = sorted((m for m in MEASURES if m.sentence and steps[m] >= _SUSPICIOUS_STEPS), key=lambda m: -steps[m])
    total = float(np.linalg.norm(list(steps.values())))
    return Quality(2.0**-total, tuple(_sentence(m, measures[m.name]) for m in worst))


def comparable_value(measure: Measure, measures: Mapping[str, float]) -> float:
    """The value of a measure that voxels of 1 mm would have given; not-a-number where it is missing."""
    voxel_mm = measures.get("voxel_mm", 1.0)
    return measures.get(measure.name, np.nan) - measure.per_voxel_mm * max(voxel_mm - 1, 0.0)


def steps_outside(measure: Measure, value: float, reference: Reference) -> float:
    """How many steps a value lies outside of the range of good-quality scans; 0 inside, or where it was not measured.

    Raises
    ------
    ModelError
        If the measure was taken and the reference has no range for it.
    """
    if not np.isfinite(value):
        return 0.0
    if measure.name not in reference.ranges:
        raise ModelError(
            f"the reference ranges of quality have none for {measure.name!r}; they have {', '.join(reference.ranges)}: "
            "measure them anew after adding a measure (CONTRIBUTING.md)"
        )
    limits = reference.ranges[measure.name]
    low, high, at = limits.low, limits.high, value
    if measure.logarithmic:
        low, high, at = (float(np.log(max(v, 1e-6))) for v in (low, high, at))
    outside = {"high": at - high, "low": low - at, "both": max(at - high, low - at)}[measure.suspicious]
    # Where one side is suspicious, the range may be wide for harmless reasons, such as air that was masked.
    half_width = (high - low) / 2 if measure.suspicious == "both" else 0.0
    return max(outside, 0.0) / max(measure.step, half_width)


def _sentence(measure: Measure, value: float) -> str:
    """What the warnings say of a measure."""
    # Asymmetries are logarithms of ratios; beyond 9 the ratio would overflow and says nothing more.
    ratio = np.exp(np.clip(value, -9, 9))
    return measure.sentence.format(value=value, ratio=ratio, structure=MAIN.title.lower())
