"""Which heads does alignment answer, flag and refuse? Sound ones that it must answer, wrong ones that it must not.

Sound: real scans in 13 sizes (the voxel size in the header times 0.88 to 1.12), in random poses with another contrast,
with the shading of a surface coil, and padded by some voxels. Wrong: images that are no T1-weighted head, heads whose
header is wrong, and heads that are posed beyond reason. The truth of a scan is the median of what was answered over its
sizes, carried back; it must be looked at (``--pictures``).

One row is written for each image. People are put into two halves by turns, so that a limit that was set on one half can
be reported on the other.
"""

import argparse
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from time import process_time

import numpy as np
import pandas as pd
from numpy import ndarray
from scipy import ndimage
from scipy.spatial.transform import Rotation

import hypodask
from benchmarks.validation.results import add_record_option, write_results
from hypodask.alignment import acpc
from hypodask.alignment.brain import Registration, register_template
from hypodask.core.errors import HypodaskError
from hypodask.core.grid import Grid, transform_points
from hypodask.image.intensity import white_level
from hypodask.scan import Scan

FOLDERS = ("scans", "scans_stripped", "scans_thick", "scans_2mm", "scans_ds000011", "scans_stripped_ds002748")
FRUIT = "not_a_head/dcmqa_deident_GE_IRSPGR_fruit_not_human.nii.gz"

SIZES = tuple(np.round(np.linspace(0.88, 1.12, 13), 2).tolist())
PADDING_VOX = (1, 2, 3, 20)

WRONG_MM = 4.0
"""An AC or PC further than this from the truth, in the head's own size, is wrong."""

SHADING = 4.0
"""How much brighter the surface coil makes the surface of the head than its centre."""

_REACH_MM = 95.0
"""Distance from the middle of the commissures at which shading is strongest."""


@dataclass(frozen=True, eq=False)
class Image:
    """One image to align."""

    case: str
    scan: Scan
    moved_from_scanner: ndarray
    """From the scanner space of the scan as it is; not rigid where the size differs."""


# --- Sound heads ----------------------------------------------------------------------------------------------------


def moved(scan: Scan, matrix: ndarray) -> Scan:
    """The same voxels under another header."""
    return replace(scan, grid=scan.grid.moved(matrix, "scanner"))


def changed(scan: Scan, data: ndarray) -> Scan:
    """Other intensities on the same voxels."""
    return Scan(np.asfortranarray(data.astype(np.float32)), scan.grid, source=scan.source)


def about(place_mm: ndarray, linear: ndarray) -> ndarray:
    """The affine that leaves a place where it is."""
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = linear, place_mm - linear @ place_mm
    return matrix


def turned(place_mm: ndarray, *angles_deg: float) -> ndarray:
    """Turns about x, y and z, through a place."""
    return about(place_mm, Rotation.from_euler("xyz", angles_deg, degrees=True).as_matrix())


def shaded(scan: Scan, centre_mm: ndarray) -> Scan:
    """As a surface coil sees a head: brighter by a smooth factor of ``SHADING`` from the centre to the surface."""
    vox_from_scanner = np.linalg.inv(scan.grid.space_from_vox)
    at = transform_points(vox_from_scanner, centre_mm)
    squares = [
        ((np.arange(n) - c) * mm) ** 2 for n, c, mm in zip(scan.grid.shape, at, scan.grid.spacing_mm, strict=True)
    ]
    distance = np.sqrt(squares[0][:, None, None] + squares[1][:, None] + squares[2])
    return changed(scan, scan.data * SHADING ** np.minimum(distance / _REACH_MM, 1.2))


def contrasted(scan: Scan, gamma: float) -> Scan:
    """Intensities to a power, white matter kept where it is."""
    level = white_level(scan.data)
    return changed(scan, level * (np.maximum(scan.data, 0) / level) ** gamma)


def padded(scan: Scan, width: int) -> Scan:
    """Zeros before and behind every axis."""
    grid = scan.grid.block(np.full(3, -width), tuple(n + 2 * width for n in scan.grid.shape))
    return Scan(np.asfortranarray(np.pad(scan.stored, width)), grid, slope=scan.slope, intercept=scan.intercept)


def sound(scan: Scan, ac_mm: ndarray, seed: int, options: argparse.Namespace) -> Iterator[Image]:
    """Images of a head that differ in what must not matter."""
    for size in SIZES[:: options.each_size]:
        yield Image(f"size {size:.2f}", moved(scan, about(ac_mm, np.eye(3) * size)), about(ac_mm, np.eye(3) * size))
    random = np.random.default_rng(seed)
    for number in range(options.poses):
        turn = turned(ac_mm, *(random.uniform(-1, 1, 3) * (25, 10, 10)))
        turn[:3, 3] += random.uniform(-30, 30, 3)
        gamma = random.uniform(0.75, 1.3)
        yield Image(f"pose {number}", moved(contrasted(scan, gamma), turn), turn)
    yield Image("shading", shaded(scan, ac_mm), np.eye(4))
    for width in PADDING_VOX[: options.paddings]:
        yield Image(f"padding {width}", padded(scan, width), np.eye(4))


# --- Wrong ones -----------------------------------------------------------------------------------------------------


def inverted(scan: Scan) -> Scan:
    """Dark where it was bright, within the head."""
    levels = scan.data / white_level(scan.data)
    return changed(scan, np.where(levels > 0.1, np.maximum(1.4 - levels, 0.0), 0.0))


def t2_like(scan: Scan) -> Scan:
    """Fluid brightest, then grey matter, then white."""
    levels = scan.data / white_level(scan.data)
    return changed(scan, np.interp(levels, (0, 0.08, 0.2, 0.35, 0.7, 1, 1.4), (0, 0.05, 1, 0.95, 0.55, 0.35, 0.7)))


def cropped(scan: Scan, ac_mm: ndarray, low_mm: tuple[float, ...], high_mm: tuple[float, ...]) -> Scan:
    """Zero outside a box about the AC along the scanner's axes."""
    index = np.indices(scan.grid.shape, dtype=np.float32)
    keep = np.ones(scan.grid.shape, bool)
    for axis in range(3):
        row = scan.grid.space_from_vox[axis]
        place = np.tensordot(row[:3], index, 1) + row[3] - ac_mm[axis]
        keep &= (place >= low_mm[axis]) & (place <= high_mm[axis])
    return changed(scan, scan.data * keep)


def beyond(random: np.random.Generator, number: int) -> tuple[float, float, float]:
    """Angles of a head that no scanner sees: pitched by more than 60 degrees, upside down, on its side or backwards."""
    pitch, roll, yaw = random.uniform(-1, 1, 3) * 12
    sign = 1 if number % 2 else -1
    kinds = (
        (sign * random.uniform(62, 120), roll, yaw),
        (pitch + 180, roll, yaw),
        (pitch, roll + sign * 90, yaw),
        (pitch, roll, yaw + 180),
        (pitch, roll, yaw + sign * 90),
        (pitch, roll + 180, yaw),
    )
    return kinds[number % len(kinds)]


def wrong_heads(scan: Scan, ac_mm: ndarray, seed: int, options: argparse.Namespace) -> Iterator[Image]:
    """Images of a head that must not be answered without a word."""
    none, inf = np.eye(4), np.inf
    yield Image("size 1.00", scan, none)
    yield Image("inverted", inverted(scan), none)
    yield Image("T2-like", t2_like(scan), none)
    for axis, name in enumerate("xyz"):
        for factor in (1.5, 1 / 1.5):
            matrix = np.eye(3)
            matrix[axis, axis] = factor
            yield Image(f"{name} x {factor:.2f}", moved(scan, about(ac_mm, matrix)), about(ac_mm, matrix))
    for a, b in ((0, 1), (0, 2), (1, 2)):
        matrix = np.eye(3)
        matrix[a, b] = 0.5
        yield Image(f"sheared {'xyz'[a]}{'xyz'[b]}", moved(scan, about(ac_mm, matrix)), about(ac_mm, matrix))
    yield Image("only below", cropped(scan, ac_mm, (-inf, -inf, -inf), (inf, inf, -25)), none)
    yield Image("only above", cropped(scan, ac_mm, (-inf, -inf, 20), (inf, inf, inf)), none)
    yield Image("only behind", cropped(scan, ac_mm, (-inf, -inf, -inf), (inf, -40, inf)), none)
    yield Image("only one side", cropped(scan, ac_mm, (10, -inf, -inf), (inf, inf, inf)), none)
    random = np.random.default_rng(seed)
    for number in range(options.beyond):
        turn = turned(ac_mm, *beyond(random, seed * options.beyond + number))
        yield Image(f"beyond {number}", moved(scan, turn), turn)


def cylinder(random: np.random.Generator) -> ndarray:
    """Like a lower leg: skin and fat about muscle, two bones with marrow."""
    x, y, z = np.meshgrid(*[np.linspace(-128, 128, 86)] * 3, indexing="ij")
    radius = np.hypot(x, y) / (60 + 0.1 * z)
    data = np.select([radius < 0.8, radius < 1, radius < 1.04], [0.55, 1.3, 0.3], 0.0)
    for bx, by, size in ((15.0, 20.0, 16.0), (-28.0, -5.0, 8.0)):
        apart = np.hypot(x - bx, y - by)
        data = np.where(apart < size, np.where(apart < 0.7 * size, 1.2, 0.05), data)
    texture = ndimage.gaussian_filter(random.standard_normal(data.shape), 2)
    return ndimage.gaussian_filter(data * (1 + 0.5 * texture), 0.7) + 0.02 * random.random(data.shape)


def no_heads(folder: Path, random: np.random.Generator) -> Iterator[tuple[str, Image]]:
    """Images that hold no head, each with its name."""
    fruit = hypodask.read_scan(folder / FRUIT)
    middle = transform_points(fruit.grid.space_from_vox, np.array(fruit.grid.shape) / 2)
    for size in SIZES[::3]:
        for number in range(3):
            matrix = turned(middle, *(random.uniform(-1, 1, 3) * 40 * (number > 0))) @ about(middle, np.eye(3) * size)
            yield "fruit", Image(f"{size:.2f}, {number}", moved(fruit, matrix), matrix)
    for path in sorted((folder / "label_maps").glob("*.nii.gz")):
        try:
            yield "label map", Image(path.name[13:15], hypodask.read_scan(path), np.eye(4))
        except HypodaskError as err:
            yield "label map", Image(f"not read: {err}", fruit, np.eye(4))
    matrix = np.diag([3.0, 3.0, 3.0, 1.0])
    grid = Grid((86, 86, 86), matrix, "scanner")
    for number in range(6):
        noise = np.abs(random.standard_normal(grid.shape))
        smooth = ndimage.gaussian_filter(random.standard_normal(grid.shape), 2 + number)
        for name, data in (("noise", noise), ("blobs", smooth - smooth.min()), ("leg", cylinder(random))):
            yield name, Image(str(number), Scan(np.asfortranarray(1000 * data.astype(np.float32)), grid), np.eye(4))


# --- Rows -----------------------------------------------------------------------------------------------------------


class Watch:
    """Keeps the registration that ``align`` judged."""

    def __init__(self) -> None:
        self.seen: Registration | None = None
        acpc.register_template = self

    def __call__(self, scan: Scan) -> Registration:
        """As :func:`register_template`."""
        self.seen = register_template(scan)
        return self.seen


def row_of(image: Image, watch: Watch) -> dict[str, object]:
    """What alignment says of an image; AC and PC carried back to the scan as it is."""
    before = process_time()
    row: dict[str, object] = {"case": image.case, "outcome": "refused", "said": ""}
    try:
        found = hypodask.align(image.scan)
    except HypodaskError as err:
        row["said"] = str(err).rpartition(": no human head was found: ")[2]
    else:
        row |= {"outcome": "flagged" if found.flagged else "answered", "said": " ".join(found.warnings)}
        row["error_mm"] = found.error_mm
        places = transform_points(np.linalg.inv(image.moved_from_scanner), np.array([found.ac_mm, found.pc_mm]))
        names = [f"{name}_{axis}_mm" for name in ("ac", "pc") for axis in "xyz"]
        row |= dict(zip(names, places.ravel().tolist(), strict=True))
    row["cpu_seconds"] = process_time() - before
    if watch.seen is not None:
        row |= {"whole": float(watch.seen.whole.correlation), "near": float(watch.seen.near.correlation)}
        row |= {name: getattr(watch.seen, name) for name in ("likeness", "distortion")}
        middle = transform_points(np.linalg.inv(image.moved_from_scanner), watch.seen.commissures_mm.mean(axis=0))
        row |= {f"near_{axis}_mm": value for axis, value in zip("xyz", middle.tolist(), strict=True)}
    return {name: round(value, 4) if isinstance(value, float) else value for name, value in row.items()}


def scans(options: argparse.Namespace) -> Iterator[tuple[str, int]]:
    """Paths below the data folder, and the number of the person in the folder."""
    for folder in FOLDERS:
        paths = sorted(path for path in (options.data / folder).glob("*") if path.suffix in (".gz", ".mgz"))
        people = list(dict.fromkeys(path.name.split("_")[0] for path in paths))
        for place, path in enumerate(paths):
            name = f"{folder}/{path.name}"
            if any(word in name for word in options.match) and (len(paths) < 5 or place % options.every == 0):
                yield name, people.index(path.name.split("_")[0])


def measure(options: argparse.Namespace, path: Path) -> None:
    """Add the rows of the scans that the table lacks."""
    done = set(pd.read_csv(path, sep="\t")["scan"]) if path.exists() else set()
    watch = Watch()
    for name, person in scans(options):
        if name in done:
            continue
        scan = hypodask.read_scan(options.data / name)
        ac_mm = register_template(scan).commissures_mm[0]
        make = sound if options.part == "sound" else wrong_heads
        images = make(scan, ac_mm, person, options)
        _append(path, [{"scan": name, "half": "AB"[person % 2], **row_of(image, watch)} for image in images])
    if options.part == "wrong" and "none" not in done:
        rows = [
            {"scan": "none", "half": "AB"[number % 2], **row_of(replace(image, case=f"{kind} {image.case}"), watch)}
            for number, (kind, image) in enumerate(no_heads(options.data, np.random.default_rng(0)))
        ]
        _append(path, rows)


def _append(path: Path, rows: list[dict[str, object]]) -> None:
    old = pd.read_csv(path, sep="\t") if path.exists() else pd.DataFrame()
    pd.concat([old, pd.DataFrame(rows)]).to_csv(path, sep="\t", index=False)
    print(f"{rows[0]['scan']}: {pd.Series([row['outcome'] for row in rows]).value_counts().to_dict()}", flush=True)


PLACES = [f"{name}_{axis}_mm" for name in ("ac", "pc") for axis in "xyz"]


def with_errors(table: pd.DataFrame) -> pd.DataFrame:
    """Greater distance of AC and PC from the truth, mm in the scan as it is."""
    truth = table[table["case"].str.startswith("size")].groupby("scan")[PLACES].median()
    apart = table[PLACES].to_numpy(float) - truth.reindex(table["scan"])[PLACES].to_numpy(float)
    return table.assign(apart_mm=np.linalg.norm(apart.reshape(-1, 2, 3), axis=2).max(axis=1))


def with_kinds(table: pd.DataFrame) -> pd.DataFrame:
    """What each image is, whether its pose is wrong, and whether it was wrongly answered without a flag.

    A head posed beyond reason may be answered if its pose is right; every other wrong image may not.
    """
    kind = table["case"].str.replace(r" (?:\d|not read).*", "", regex=True)
    right = table["apart_mm"] <= WRONG_MM
    may_be_answered = kind.isin(["size", "pose", "shading", "padding", "beyond"])
    silent = (table["outcome"] == "answered") & ~(right & may_be_answered)
    return table.assign(kind=kind, folder=table["scan"].str.split("/").str[0], wrong=~right, silent=silent)


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """How many images of each folder and kind ended how."""
    counts = {name: table["outcome"] == name for name in ("answered", "flagged", "refused")}
    lines = table.assign(images=1, **counts).groupby(["folder", "kind"], sort=False)
    return lines[["images", *counts, "silent"]].sum().reset_index()


def halves(table: pd.DataFrame) -> pd.DataFrame:
    """Range of the fits over right poses, and of the fits about the commissures over refused images, of each half."""
    answered = table[~table["wrong"] & ~table["kind"].isin(["inverted", "T2-like"])]
    lines = []
    for half in "AB":
        right, refused = answered[answered["half"] == half], table[(table["half"] == half) & table["near_refused"]]
        line: dict[str, object] = {"half": half, "right": len(right), "refused": len(refused)}
        for name in ("near", "whole", "likeness"):
            line[f"right_{name}_least"] = right[name].min()
        line["right_distortion_largest"] = right["distortion"].max()
        line["refused_near_largest"] = refused["near"].max()
        lines.append(line)
    return pd.DataFrame(lines)


def figures_of(table: pd.DataFrame) -> dict[str, float]:
    """What the pages show: counts of each folder and kind, of all, and the ranges of each half."""
    figures: dict[str, float] = {}
    everything = table.assign(folder="all", kind="images")
    for line in pd.concat([summary(table), summary(everything)]).itertuples():
        stem = re.sub(r"\W+", "_", f"{line.folder}_{line.kind}")
        figures |= {f"{stem}_{name}": int(getattr(line, name)) for name in ("images", *OUTCOMES)}
    for line in halves(table).to_dict("records"):
        half = str(line.pop("half")).lower()
        figures |= {f"half_{half}_{name}": float(value) for name, value in line.items() if np.isfinite(value)}
    errors = table.loc[table["outcome"] == "answered", "apart_mm"].dropna()
    return figures | {"apart_mm_median": float(errors.median()), "apart_mm_largest": float(errors.max())}


OUTCOMES = ("answered", "flagged", "refused", "silent")


def main() -> None:
    """Measure what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder of validation scans")
    parser.add_argument("out", type=Path, help="folder of the table")
    parser.add_argument("--part", choices=("sound", "wrong"), default="sound")
    parser.add_argument("--every", type=int, default=1, help="take every so-many-th scan of a folder of five or more")
    parser.add_argument("--each-size", type=int, default=1, help="take every so-many-th size")
    parser.add_argument("--poses", type=int, default=2, help="random poses of each sound head")
    parser.add_argument("--paddings", type=int, default=len(PADDING_VOX), help="paddings of each sound head")
    parser.add_argument("--beyond", type=int, default=10, help="poses beyond reason of each head")
    parser.add_argument("--match", nargs="*", default=[""], help="only scans with one of these in their path")
    add_record_option(parser)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / f"{options.part}.tsv"
    measure(options, path)
    table = with_kinds(with_errors(pd.read_csv(path, sep="\t")))
    table["near_refused"] = (table["outcome"] == "refused") & ~table["said"].str.contains("contrast", na=False)
    print(summary(table).to_string(index=False), halves(table).to_string(index=False), sep="\n\n")
    if options.record:
        write_results(
            f"alignment_refusals_{options.part}",
            figures_of(table),
            what="What alignment answers, flags and refuses",
            data=f"{table['scan'].nunique()} scans, {len(table)} images",
            networks=("commissures",),
        )


if __name__ == "__main__":
    main()
