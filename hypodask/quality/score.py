"""All measures of a scan, and what they say against their ranges on sound scans."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float, UInt8
from numpy import ndarray

from hypodask.alignment import Alignment
from hypodask.quality import image, outline
from hypodask.reference import Reference, load_reference
from hypodask.scan import Scan
from hypodask.volumes import Volumes, faces_reached

Measures = dict[str, float]


@dataclass(frozen=True)
class Measure:
    """One thing to look at: when it is suspicious, and how to say so."""

    name: str
    suspicious: Literal["high", "low", "both"]
    step: float
    """Least distance beyond the range of sound scans that halves the score, where that range is narrow."""
    sentence: str
    """What is said of a value that is far out; empty for what the pipeline says anyway."""
    logarithmic: bool = False
    """Whether distances are those of logarithms."""
    per_voxel_mm: float = 0.0
    """What each mm of the longest voxel above 1 mm adds on sound scans; taken off before it is compared. Means of 23
    scans of 0.7 to 1 mm and of 14 of 2 mm."""


MEASURES = (
    Measure("border_entropy", "high", 0.05, "The border of the hypothalamus is uncertain.", per_voxel_mm=0.083),
    Measure("member_spread", "high", 0.03, "The networks of the ensemble disagree on the volume ({value:.1%})."),
    Measure(
        "member_overlap",
        "low",
        0.03,
        "The networks of the ensemble disagree on the outline (Dice {value:.2f}).",
        per_voxel_mm=-0.021,
    ),
    Measure("asymmetry", "both", 0.10, "The left hypothalamus is {ratio:.2f} times as large as the right one."),
    Measure("mirror_mm", "high", 0.8, "The two sides of the hypothalamus lie {value:.1f} mm from mirror images."),
    Measure("centroid_x_mm", "both", 0.8, "The hypothalamus lies {value:.1f} mm beside the midsagittal plane."),
    Measure("centroid_y_mm", "both", 1.5, "The hypothalamus lies at y = {value:.1f} mm, which is unusual."),
    Measure("centroid_z_mm", "both", 1.5, "The hypothalamus lies at z = {value:.1f} mm, which is unusual."),
    Measure("extent_x_mm", "both", 0.8, "The hypothalamus has an unusual width (SD {value:.1f} mm)."),
    Measure("extent_y_mm", "both", 0.8, "The hypothalamus has an unusual length (SD {value:.1f} mm)."),
    Measure("extent_z_mm", "both", 0.8, "The hypothalamus has an unusual height (SD {value:.1f} mm)."),
    Measure("islands", "high", 0.03, "{value:.0%} of the outline lay apart from the hypothalamus and was dropped."),
    Measure("faces", "high", 1.0, ""),
    Measure("margin_mm", "low", 3.0, "The field of view ends {value:.0f} mm from the hypothalamus."),
    Measure("unseen", "high", 0.03, "{value:.0%} of the hypothalamus was not imaged and is inferred."),
    Measure("cavity_unseen", "high", 0.03, ""),
    Measure("icv_ml", "both", 0.15, "The intracranial volume of {value:.0f} ml is unusual.", logarithmic=True),
    Measure("cavity_length", "both", 0.05, "The cranial cavity is {value:.2f} times as long as it is wide.", True),
    Measure("cavity_height", "both", 0.05, "The cranial cavity is {value:.2f} times as high as it is wide.", True),
    Measure("cavity_x_mm", "both", 2.0, "The cranial cavity lies {value:.1f} mm beside the midsagittal plane."),
    Measure("cavity_y_mm", "both", 4.0, "The cranial cavity lies at y = {value:.0f} mm, which is unusual."),
    Measure("cavity_z_mm", "both", 4.0, "The cranial cavity lies at z = {value:.0f} mm, which is unusual."),
    Measure("alignment_score", "low", 0.05, "The brain resembles the template little ({value:.2f})."),
    Measure("alignment_error_mm", "high", 0.3, "The commissures are uncertain by {value:.1f} mm."),
    Measure("acpc_mm", "both", 2.0, "The commissures are {value:.1f} mm apart."),
    Measure("stretch", "high", 0.05, "The head is stretched {value:.2f} times against the template.", logarithmic=True),
    Measure("flagged", "high", 0.7, ""),
    Measure("noise", "high", 0.2, "The image is noisy: {value:.1%} of its contrast.", logarithmic=True),
    Measure("edge_mm", "high", 0.2, "Edges are blurred over {value:.1f} mm.", logarithmic=True),
    Measure("voxel_mm", "high", 0.5, "Voxels are up to {value:.1f} mm long.", logarithmic=True),
    Measure("separability", "low", 0.03, "Grey matter, white matter and fluid stand little apart ({value:.2f})."),
    Measure("fluid", "high", 0.1, "Fluid is bright: {value:.2f} of white matter."),
    Measure("sides", "both", 0.1, "The left half of the head is {ratio:.2f} times as bright as the right one."),
    Measure("air", "high", 0.7, "Air is {value:.1f} times as bright as noise makes it.", logarithmic=True),
)
"""What is looked at. The ranges are measured (``hypodask/weights/reference.json``); the steps were chosen, and some
changed once, in view of the very runs that ``docs/quality.md`` tells of."""

SUSPICIOUS = 1.0
"""Steps beyond its range at which a measure is told in the warnings: alone it has halved the score by then."""


@dataclass(frozen=True)
class Quality:
    """How far the result of a scan can be trusted, and why not."""

    score: float
    """From 0, worthless, to 1, nothing unusual; 1/2 where one measure is one step beyond its range."""
    reasons: tuple[str, ...]
    """A sentence about each measure far beyond its range, the worst first."""


def examine(
    scan: Scan,
    alignment: Alignment,
    hypothalamus: Volumes,
    icv: Volumes,
    cavity: UInt8[ndarray, "i j k"],
) -> Measures:
    """Every measure of one scan; not-a-number where one cannot be taken.

    Parameters
    ----------
    scan, alignment
        The image, and where its commissures are.
    hypothalamus, icv
        Tidied outlines of both networks.
    cavity
        Label map of the cranial cavity on the scan's own voxels.
    """
    levels = _levels(scan, cavity)
    return {
        **_of_outline(hypothalamus, alignment),
        **_of_field_of_view(scan, alignment, hypothalamus, levels),
        **_of_cavity(scan, icv, cavity),
        **_of_pose(alignment),
        **_of_image(scan, alignment, cavity, levels),
    }


def _levels(scan: Scan, cavity: UInt8[ndarray, "i j k"]) -> image.Levels:
    some = image.coarse(scan.grid)
    inside = scan.data[some][cavity[some] > 0]
    return image.levels(inside) if inside.size else image.Levels(0.0, float(scan.data.max()))


def _of_outline(hypothalamus: Volumes, alignment: Alignment) -> Measures:
    found = hypothalamus.tidied
    acpc_from_grid = np.eye(4) if found.grid.space == "acpc" else alignment.acpc_from_scanner
    acpc_from_vox = acpc_from_grid @ found.grid.space_from_vox
    whole = 1 - found.posteriors[0]
    left, right = (_side(hypothalamus, side) for side in ("left", "right"))
    everywhere, *sides = (outline.place(part, acpc_from_vox) for part in (whole, left, right))
    return {
        "border_entropy": outline.border_entropy(whole, found.grid.spacing_mm),
        "member_spread": outline.member_spread(found.member_wholes),
        "member_overlap": outline.member_overlap(found.member_wholes, whole),
        "asymmetry": outline.log_ratio(float(left.sum()), float(right.sum())),
        "mirror_mm": outline.mirror_distance_mm(*sides),
        **{f"centroid_{axis}_mm": float(v) for axis, v in zip("xyz", everywhere.centroid_mm, strict=True)},
        **{f"extent_{axis}_mm": float(v) for axis, v in zip("xyz", everywhere.sd_mm, strict=True)},
        "islands": hypothalamus.islands_mm3 / hypothalamus.label_mm3[found.labels.whole],
        "faces": float(len(faces_reached(found.label_map > 0, found.grid, found.grid, np.eye(4)))),
    }


def _side(volumes: Volumes, side: Literal["left", "right"]) -> Float[ndarray, "i j k"]:
    """Posterior of one side."""
    found = volumes.tidied
    channels = [1 + found.labels.structures.index(label.structure) for label in found.labels.of(side)]
    posterior: Float[ndarray, "i j k"] = found.posteriors[channels].sum(axis=0)
    return posterior


def _of_field_of_view(scan: Scan, alignment: Alignment, hypothalamus: Volumes, levels: image.Levels) -> Measures:
    found = hypothalamus.tidied
    to_scanner = np.linalg.inv(alignment.acpc_from_scanner) if found.grid.space == "acpc" else np.eye(4)
    vox = outline.inside_voxels(found.label_map > 0, found.grid, scan.grid, to_scanner)
    return {
        "margin_mm": outline.margin_mm(vox, scan.grid),
        "unseen": outline.share_unseen(vox, scan.data, image.BLACK * levels.white),
    }


def _of_cavity(scan: Scan, icv: Volumes, cavity: UInt8[ndarray, "i j k"]) -> Measures:
    found = icv.tidied
    place = outline.place(1 - found.posteriors[0][::2, ::2, ::2], found.grid.space_from_vox @ np.diag([2, 2, 2, 1]))
    width, length, height = place.sd_mm.tolist()
    imaged = np.count_nonzero(cavity) * scan.grid.voxel_volume_mm3
    return {
        "cavity_unseen": max(0.0, 1 - imaged / icv.label_mm3["icv"]),
        "icv_ml": icv.soft_mm3["icv"] / 1000,
        "cavity_length": length / width,
        "cavity_height": height / width,
        **{f"cavity_{axis}_mm": float(v) for axis, v in zip("xyz", place.centroid_mm, strict=True)},
    }


def _of_pose(alignment: Alignment) -> Measures:
    sizes = np.linalg.svd(alignment.mni_from_scanner[:3, :3], compute_uv=False)
    return {
        "alignment_score": alignment.score,
        "alignment_error_mm": alignment.error_mm,
        "acpc_mm": alignment.acpc_distance_mm,
        "stretch": float(sizes[0] / sizes[-1]),
        "flagged": float(alignment.flagged),
    }


def _of_image(scan: Scan, alignment: Alignment, cavity: UInt8[ndarray, "i j k"], levels: image.Levels) -> Measures:
    some = image.coarse(scan.grid)
    data, inside = scan.data[some], cavity[some] > 0
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
    """One score of all measures: each against its range on sound scans.

    A measure within its range costs nothing. Beyond it, its excess is counted in steps: the measure's own or, where
    both directions are suspicious, half the width of the range if that is more. The score is 2 to the power of minus
    the root of the sum of the squared excesses.

    Examples
    --------
    >>> sound = {name: range_.low for name, range_ in load_reference().ranges.items()}
    >>> judge(sound)
    Quality(score=1.0, reasons=())
    >>> judge(sound | {"noise": 0.5}).reasons
    ('The image is noisy: 50.0% of its contrast.',)
    """
    reference = reference or load_reference()
    excesses = {m: excess(m, compared(m, measures), reference) for m in MEASURES}
    told = sorted((m for m in MEASURES if m.sentence and excesses[m] >= SUSPICIOUS), key=lambda m: -excesses[m])
    total = float(np.linalg.norm(list(excesses.values())))
    return Quality(2.0**-total, tuple(_sentences(told, measures)))


def compared(measure: Measure, measures: Mapping[str, float]) -> float:
    """The value of a measure as it is compared: as voxels of 1 mm would have it."""
    voxel_mm = measures.get("voxel_mm", 1.0)
    return measures.get(measure.name, np.nan) - measure.per_voxel_mm * max(voxel_mm - 1, 0.0)


def excess(measure: Measure, value: float, reference: Reference) -> float:
    """Steps by which a value lies beyond the range of sound scans; 0 where it was not measured."""
    if measure.name not in reference.ranges or not np.isfinite(value):
        return 0.0
    limits = reference.ranges[measure.name]
    low, high, at = (_scaled(measure, v) for v in (limits.low, limits.high, value))
    beyond = {"high": at - high, "low": low - at, "both": max(at - high, low - at)}[measure.suspicious]
    # The range of a one-sided measure is wide for reasons that are none, such as air that was masked.
    half_width = (high - low) / 2 if measure.suspicious == "both" else 0.0
    return max(beyond, 0.0) / max(measure.step, half_width)


def _scaled(measure: Measure, value: float) -> float:
    return float(np.log(max(value, 1e-6))) if measure.logarithmic else value


def _sentences(told: list[Measure], measures: Mapping[str, float]) -> Iterator[str]:
    for measure in told:
        value = measures[measure.name]
        # Asymmetries are logarithms of ratios.
        yield measure.sentence.format(value=value, ratio=np.exp(np.clip(value, -9, 9)))
