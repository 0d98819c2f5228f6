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
    """What the warnings say of a suspicious value, with ``{value}`` and ``{structure}``; the usual range follows."""
    shown: str = "{:.2f}"
    """How values are written in the sentence."""
    logarithmic: bool = False
    """Whether distances are differences of logarithms."""
    of_ratio: bool = False
    """Whether the measure is the logarithm of a ratio, and the sentence shows the ratio."""
    per_voxel_mm: float = 0.0
    """How much the measure changes on good-quality scans for each mm of the longest side of a voxel above 1 mm; this is
    subtracted first. From the means of 23 scans of 0.7 to 1 mm and of 14 of 2 mm."""
    incomplete: bool = False
    """Whether a value more than one step outside means that a part of the structure is missing: the row is flagged."""


def _of_place(name: str, what: str, step: float, *, of: str = "{structure}", digits: int = 1) -> Measure:
    return Measure(name, "both", step, f"The {of} {what} {{value}}", f"{{:.{digits}f}} mm")


MEASURES = (
    Measure(
        "border_entropy",
        "high",
        0.05,
        "The boundary of the {structure} is uncertain: its entropy is {value}",
        "{:.3f} bits",
        per_voxel_mm=0.083,
    ),
    Measure("member_spread", "high", 0.03, "The networks of the ensemble disagree on the volume by {value}", "{:.1%}"),
    Measure(
        "member_overlap",
        "low",
        0.03,
        "The networks of the ensemble disagree on the segmentation: their Dice overlap is {value}",
        "{:.3f}",
        per_voxel_mm=-0.021,
    ),
    Measure(
        "asymmetry",
        "both",
        0.10,
        "The left {structure} is {value} times as large as the right one",
        of_ratio=True,
        incomplete=True,
    ),
    Measure(
        "mirror_mm",
        "high",
        0.8,
        "The two sides of the {structure} are not mirror images: their centres differ by {value}",
        "{:.1f} mm",
    ),
    _of_place("centroid_x_mm", "lies beside the midsagittal plane, at x =", 0.8),
    _of_place("centroid_y_mm", "lies at y =", 1.5),
    _of_place("centroid_z_mm", "lies at z =", 1.5),
    _of_place("extent_x_mm", "has an unusual width: the SD is", 0.8, digits=2),
    _of_place("extent_y_mm", "has an unusual length: the SD is", 0.8, digits=2),
    _of_place("extent_z_mm", "has an unusual height: the SD is", 0.8, digits=2),
    Measure(
        "back_mm", "high", 1.0, "The {structure} begins too far in front, at y = {value}", "{:.1f} mm", incomplete=True
    ),
    Measure(
        "front_mm", "low", 1.0, "The {structure} ends too far behind, at y = {value}", "{:.1f} mm", incomplete=True
    ),
    Measure("bottom_mm", "high", 1.0, "The {structure} begins too high, at z = {value}", "{:.1f} mm", incomplete=True),
    Measure("top_mm", "low", 1.0, "The {structure} ends too low, at z = {value}", "{:.1f} mm", incomplete=True),
    *(
        Measure(
            f"part_{label.structure}",
            "low",
            0.5,
            f"Hardly anything of the {label.structure.replace('_', ' ')} part of the {{structure}} was found: "
            "{value} of its side",
            "{:.1%}",
            logarithmic=True,
            incomplete=True,
        )
        for label in MAIN.label_tables[0]
    ),
    Measure(
        "for_head",
        "both",
        0.5,
        "The volume of the {structure} for the size of the head is {value} times the middle of the usual range",
        logarithmic=True,
        incomplete=True,
    ),
    Measure(
        "islands",
        "high",
        0.03,
        "Parts that lay apart from the {structure} were removed: {value} of the segmentation",
        "{:.1%}",
    ),
    Measure(
        "faces",
        "high",
        1.0,
        "The number of faces of its network's box that the {structure} touches is {value}",
        "{:.0f}",
    ),
    Measure(
        "margin_mm",
        "low",
        3.0,
        "The distance of the {structure} from the edge of the field of view is {value}",
        "{:.1f} mm",
    ),
    Measure("unseen", "high", 0.03, "{value} of the {structure} was not imaged and is inferred", "{:.1%}"),
    Measure(
        "cavity_unseen", "high", 0.03, "{value} of the intracranial volume was not imaged and is inferred", "{:.1%}"
    ),
    Measure("icv_ml", "both", 0.15, "The intracranial volume is unusual: {value}", "{:.0f} ml", logarithmic=True),
    Measure("cavity_length", "both", 0.05, "Length over width of the intracranial volume is {value}", logarithmic=True),
    Measure("cavity_height", "both", 0.05, "Height over width of the intracranial volume is {value}", logarithmic=True),
    _of_place("cavity_x_mm", "lies beside the midsagittal plane, at x =", 2.0, of="intracranial volume"),
    _of_place("cavity_y_mm", "lies at y =", 4.0, of="intracranial volume"),
    _of_place("cavity_z_mm", "lies at z =", 4.0, of="intracranial volume"),
    Measure("alignment_score", "low", 0.05, "The brain matches the template poorly: the correlation is {value}"),
    Measure("alignment_error_mm", "high", 0.3, "The position of the commissures is uncertain by {value}", "{:.2f} mm"),
    Measure("acpc_mm", "both", 2.0, "The distance of the commissures is unusual: {value}", "{:.1f} mm"),
    Measure(
        "stretch",
        "high",
        0.05,
        "Compared with the template, the head is stretched along one direction by a factor of {value}",
        logarithmic=True,
    ),
    Measure("flagged", "high", 0.7, "The pose is doubtful"),
    Measure(
        "noise", "high", 0.2, "The image is noisy: the noise is {value} of the contrast", "{:.1%}", logarithmic=True
    ),
    Measure(
        "edge_mm", "high", 0.2, "The image is blurred: the width of edges is {value}", "{:.1f} mm", logarithmic=True
    ),
    Measure("voxel_mm", "high", 0.5, "Voxels are long: {value}", "{:.1f} mm", logarithmic=True),
    Measure(
        "separability",
        "low",
        0.03,
        "Grey matter, white matter and fluid are hard to tell apart: their separability is {value}",
        "{:.3f}",
    ),
    Measure("fluid", "both", 0.2, "Fluid has an unusual brightness: {value} of that of white matter"),
    Measure(
        "sides",
        "both",
        0.2,
        "The contrast left of the midsagittal plane is {value} times that right of it",
        of_ratio=True,
    ),
    Measure(
        "air", "high", 0.7, "Air is bright: {value} times as bright as noise alone would make it", logarithmic=True
    ),
)
"""All measures. Their ranges are measured (``hypodask/weights/reference.json``). Their steps were chosen, and some were
changed once after seeing the very runs that ``docs/quality.md`` reports."""

_MEAN_ICV_MM3 = 1.5e6
"""Intracranial volume of an average adult."""

_INCOMPLETE_STEPS = 1.0
"""A measure of completeness that is so many steps outside of its range flags the row."""

_UNTOLD_SCORE = 0.8
"""The measures that the reasons leave out would together leave at least this score: whatever lowers it further is
told, also where only several small distances together do."""


@dataclass(frozen=True)
class Quality:
    """How far the result of a scan can be trusted, and why not."""

    score: float
    """From 0 (worthless) to 1 (nothing unusual); 1/2 where one measure is one step outside of its range."""
    reasons: tuple[str, ...]
    """A sentence about each measure that lowers the score, the worst first, until the rest would leave 0.8. Each has
    the value and the usual range."""
    missing: tuple[str, ...] = ()
    """Those of the reasons that say that a part of the structure is missing: then the row is flagged."""


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
    box = image.box_about_hypothalamus(scan.grid, alignment.acpc_from_scanner)
    near = scan.data[box][icv_map[box] > 0]
    levels = image.levels(near) if near.size else image.Levels(0.0, float(scan.data.max()))
    main = volumes[MAIN.name]
    return {
        **examine_segmentation(main, volumes[HEAD_SIZE.name], alignment),
        **_of_field_of_view(scan, alignment, main, levels),
        **_of_icv(scan, volumes[HEAD_SIZE.name], icv_map),
        **_of_pose(alignment),
        **_of_image(scan, alignment, icv_map, levels),
    }


def examine_segmentation(main: Volumes, icv: Volumes, alignment: Alignment) -> Measures:
    """Those measures of :func:`examine` that are about the segmentation of the main structure and not about the image.

    Parameters
    ----------
    main, icv
        Cleaned segmentations and volumes of the main structure and of the head's size.
    alignment
        Where the commissures are.
    """
    return _of_segmentation(main, alignment) | _of_completeness(main, icv, alignment)


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


def _of_completeness(main: Volumes, icv: Volumes, alignment: Alignment) -> Measures:
    """Whether the main structure has both ends and all of its parts, and a volume that a head of this size can have.

    Where a structure ends, and what share each part has, depends on the label protocol: not-a-number for protocols
    other than that of the ranges.
    """
    found = main.cleaned
    ends = shape.ends_mm(1 - found.posteriors[0], main.to_acpc(alignment) @ found.grid.space_from_vox)
    if not (known := found.labels.protocol == MAIN.label_tables[0].protocol):
        ends = np.full((2, 3), np.nan)
    (_, back, bottom), (_, front, top) = ends
    low, high = MAIN.usual_volume_mm3(found.labels.protocol)
    heads = icv.soft_mm3[HEAD_SIZE.name] / _MEAN_ICV_MM3
    volume = main.to_publish()
    return {
        "back_mm": float(back),
        "front_mm": float(front),
        "bottom_mm": float(bottom),
        "top_mm": float(top),
        **{
            f"part_{label.structure}": volume[label.structure] / max(volume[f"{MAIN.name}_{label.hemisphere}"], 1e-6)
            if known and label.structure in volume
            else np.nan
            for label in MAIN.label_tables[0]
        },
        "for_head": volume[MAIN.name] / heads / np.sqrt(low * high),
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
    x_mm = np.argwhere(inside) @ acpc_from_some[0, :3] + acpc_from_some[0, 3]
    spacing, noise = np.array(scan.grid.spacing_mm), image.noise_sd(box)
    coarse_mm = tuple((spacing * steps).tolist())
    flat = image.without_shading(data, inside, coarse_mm)
    return {
        "noise": noise / levels.contrast,
        "edge_mm": image.edge_mm(box, scan.grid.spacing_mm, levels.contrast),
        "voxel_mm": float(spacing.max()),
        "separability": image.separability(flat),
        "fluid": levels.fluid / levels.white if levels.white > 0 else np.nan,
        "sides": image.sides_log_ratio(flat, x_mm),
        "air": image.air_over_noise(data, coarse_mm, levels.white, noise),
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
    Quality(score=1.0, reasons=(), missing=())
    >>> judge(usual | {"voxel_mm": 9.0}).reasons[0].partition(" (usual: ")[0]
    'Voxels are long: 9.0 mm'
    """
    reference = reference or load_reference()
    steps = {m: steps_outside(m, comparable_value(m, measures), reference) for m in MEASURES}
    worst = sorted((m for m in MEASURES if steps[m] > 0), key=lambda m: -steps[m])
    squares = np.square([steps[m] for m in worst])
    # What remains of the score when the first n are told: after the last one, nothing lowers it.
    left = [2.0 ** -np.sqrt(squares[n:].sum()) for n in range(len(worst) + 1)]
    told = worst[: next(n for n, score in enumerate(left) if score >= _UNTOLD_SCORE)]
    sentences = {m: _sentence(m, measures, reference) for m in told}
    missing = tuple(sentences[m] for m in told if m.incomplete and steps[m] >= _INCOMPLETE_STEPS)
    return Quality(float(left[0]), tuple(sentences.values()), missing)


def comparable_value(measure: Measure, measures: Mapping[str, float]) -> float:
    """The value of a measure that voxels of 1 mm would have given; not-a-number where it is missing."""
    return measures.get(measure.name, np.nan) - _due_to_voxels(measure, measures)


def _due_to_voxels(measure: Measure, measures: Mapping[str, float]) -> float:
    """How much of a value is due to voxels larger than 1 mm."""
    return measure.per_voxel_mm * max(measures.get("voxel_mm", 1.0) - 1, 0.0)


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


def _sentence(measure: Measure, measures: Mapping[str, float], reference: Reference) -> str:
    """What the warnings say of a measure: its value, and what is usual for voxels of this size."""
    limits, shift = reference.ranges[measure.name], _due_to_voxels(measure, measures)
    value, low, high = (
        # Beyond 9 a ratio says nothing more, and larger ones would overflow.
        measure.shown.format(np.exp(np.clip(v, -9, 9)) if measure.of_ratio else v)
        for v in (measures[measure.name], limits.low + shift, limits.high + shift)
    )
    usual = {"high": f"at most {high}", "low": f"at least {low}", "both": f"{low} to {high}"}[measure.suspicious]
    sentence = measure.sentence.format(value=value, structure=MAIN.title.lower())
    return f"{sentence} (usual: {usual})." if "{value}" in measure.sentence else f"{sentence}."
