"""The intracranial volume of the same files by hypodask, SAMSEG and deepbet.

::

    pip install samseg     # in an environment of its own: it wants another NumPy
    pip install deepbet    # likewise
    python -m benchmarks.validation.icv_peers DATA OUT --samseg .../bin/run_samseg --deepbet .../bin/deepbet-cli

SAMSEG (Puonti, Iglesias and Van Leemput, NeuroImage 2016) segments by an atlas of the whole head and its own model of
intensities, and sums what is intracranial (``sbtiv.stats``). deepbet (Fisch et al., Computers in Biology and Medicine
2024) is a network that extracts the brain with the fluid around it. Real scans have no truth: tools draw the border of
the cavity by rules of their own, so that means differ; what tells is how much the ratio of two tools varies between
people. Images of the label maps that no network of ours had learnt from have a truth, which is that of the maps, also
where their brain was made 15 % smaller within the same skull.

``OUT/icv_peers.tsv`` has a row for each file and tool, and is gone on from.
"""

import argparse
import re
import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from itertools import combinations, product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import nibabel as nib
import numpy as np
import pandas as pd

import hypodask
from benchmarks.validation.icv_accuracy import HELD_OUT, SHRUNKEN, image_of, intracranial
from benchmarks.validation.scoring import markdown
from hypodask.pipeline import load_models
from recipes.icv import read_labels

AS_IT_IS = "as it is"


class Head(NamedTuple):
    """What all tools are given."""

    path: Path
    """A NIfTI file."""
    brain: str = AS_IT_IS
    """How the brain of a label map was made smaller."""
    true_ml: float = np.nan
    """Volume of the cavity, where it is known."""


Measure = Callable[[Path], float]
"""Volume of the cavity in a NIfTI file, ml; not a number where the tool refuses it."""


def by_hypodask(path: Path) -> float:
    """The whole method."""
    row = hypodask.process_scan(path, models=load_models())
    return row["icv"] / 1000 if row.status == "done" else np.nan


def by_samseg(command: str, path: Path) -> float:
    """As it is called for one T1-weighted scan."""
    with TemporaryDirectory() as out:
        if not _ran([command, "--input", str(path), "--output", out, "--threads", "1"]):
            return np.nan
        (volume,) = re.findall(r"Intra-Cranial, ([\d.]+), mm\^3", Path(out, "sbtiv.stats").read_text())
    return float(volume) / 1000


def by_deepbet(command: str, path: Path) -> float:
    """As it is called, on the CPU."""
    with TemporaryDirectory() as out:
        brain, table = Path(out, "brain.nii.gz"), Path(out, "tiv.csv")
        if not _ran([command, "-i", str(path), "-o", str(brain), "-v", str(table), "-g"]):
            return np.nan
        return float(pd.read_csv(table)["tiv_cm3"].item())


def _ran(command: list[str]) -> bool:
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - the user's own programs
    if done.returncode:
        print(f"{' '.join(command)}: {done.stderr[-500:]}", flush=True)
    return done.returncode == 0


def scans(data: Path, out: Path, coarse: int) -> Iterator[Head]:
    """Whole heads, and so many of 2 mm."""
    for path in [*sorted((data / "scans").glob("*.*z")), *sorted((data / "scans_2mm").glob("*.nii.gz"))[:coarse]]:
        if path.suffix != ".mgz":
            yield Head(path)
            continue
        copy = out / f"{path.stem}.nii.gz"
        if not copy.exists():
            image = nib.load(path)
            nib.save(nib.Nifti1Image(np.asarray(image.dataobj), image.affine), copy)
        yield Head(copy)


def images(data: Path, out: Path, number: int) -> Iterator[Head]:
    """So many images of each label map, with its brain as it is and smaller."""
    brains = {AS_IT_IS: lambda labels: labels} | SHRUNKEN
    for (brain, made), name, seed in product(brains.items(), HELD_OUT, range(number)):
        labels, grid = read_labels(data / "label_maps" / f"{name}.nii.gz")
        path = out / f"{name}_{seed}_{brain.replace(' ', '-')}.nii.gz"
        if not path.exists():
            nib.save(nib.Nifti1Image(image_of(made(labels), grid, seed).data, grid.space_from_vox), path)
        yield Head(path, brain, float(intracranial(labels).sum() * grid.voxel_volume_mm3 / 1000))


def compared(table: pd.DataFrame) -> pd.DataFrame:
    """For two tools at a time, the mean and the spread of their ratio between people."""
    volumes = table[table["true_ml"].isna()].pivot_table(index="file", columns="tool", values="icv_ml")
    rows = []
    for one, other in combinations(volumes, 2):
        both = volumes[[one, other]].dropna()
        ratio = np.log(both[one] / both[other])
        rows.append(
            {
                "tools": f"{one} / {other}",
                "scans": len(both),
                "mean %": round(100 * float(np.expm1(ratio.mean())), 1),
                "SD %": round(100 * float(ratio.std()), 1),
                "r": round(float(both.corr().iloc[0, 1]), 3),
            }
        )
    return pd.DataFrame(rows)


def against_truth(table: pd.DataFrame) -> pd.DataFrame:
    """Errors of each tool on images of label maps, and by how much volumes move when brains are made smaller."""
    known = table[table["true_ml"].notna()].assign(error=lambda t: 100 * (t["icv_ml"] / t["true_ml"] - 1))
    errors = known.pivot_table(index=["tool", "true_ml"], columns="brain", values="error")
    error = errors[AS_IT_IS].groupby("tool")
    found = {"maps": error.count(), "mean absolute %": error.apply(lambda e: e.abs().mean())}
    found |= {"bias %": error.mean(), "SD %": error.std()}
    for brain in SHRUNKEN:
        drift = (errors[brain] - errors[AS_IT_IS]).groupby("tool")
        found |= {f"{brain}: mean %": drift.mean(), f"{brain}: largest %": drift.apply(lambda d: d.abs().max())}
    return pd.DataFrame(found).round(2).reset_index()


def main() -> None:
    """Measure what is not measured yet, and print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder of validation data")
    parser.add_argument("out", type=Path, help="folder of the results")
    parser.add_argument("--samseg", help="SAMSEG's run_samseg")
    parser.add_argument("--deepbet", help="deepbet's deepbet-cli")
    parser.add_argument("--coarse", type=int, default=20, help="scans of 2 mm")
    parser.add_argument("--images", type=int, default=1, help="images of each label map")
    options = parser.parse_args()
    tools: dict[str, Measure] = {"hypodask": by_hypodask}
    if options.deepbet:
        tools["deepbet"] = partial(by_deepbet, options.deepbet)
    if options.samseg:
        tools["SAMSEG"] = partial(by_samseg, options.samseg)
    folder = options.out / "files"
    folder.mkdir(parents=True, exist_ok=True)
    heads = [*scans(options.data, folder, options.coarse), *images(options.data, folder, options.images)]
    kept = options.out / "icv_peers.tsv"
    known = pd.read_csv(kept, sep="\t") if kept.exists() else pd.DataFrame(columns=["file", "tool"])
    done = set(zip(known["file"], known["tool"], strict=True))
    for (tool, measure), head in product(tools.items(), heads):
        if (head.path.name, tool) not in done:
            row = {"file": head.path.name, "tool": tool, "icv_ml": measure(head.path)}
            row |= {"brain": head.brain, "true_ml": head.true_ml}
            pd.DataFrame([row]).to_csv(
                kept, sep="\t", index=False, header=not kept.exists(), mode="a", float_format="%.3f"
            )
            print(*row.values(), flush=True)
    table = pd.read_csv(kept, sep="\t")
    print(markdown(compared(table)), markdown(against_truth(table)), sep="\n\n")


if __name__ == "__main__":
    main()
