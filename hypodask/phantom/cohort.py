"""A simulated study: three groups of heads in a BIDS folder, with a known effect."""

import json
import multiprocessing
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from isal import igzip
from numpy.random import Generator

from hypodask.core.errors import CohortError
from hypodask.core.structures import HEAD_SIZE, MAIN
from hypodask.files.encoding import to_json
from hypodask.files.location import Location, absolute
from hypodask.phantom.head import DEFAULT_OPTIONS, HeadOptions, simulate_head
from hypodask.phantom.hypothalamus import SCALE_LIMITS
from hypodask.phantom.imaging import nifti_image
from hypodask.phantom.label_maps import LABEL_MAPS_FOLDER, label_map_file, label_map_path, label_table

EFFECT_PERCENT = 12.0
"""Atrophy of the patients' hypothalami. It is three times the real one, so that thirty scans can show it: Kassubek et
al. 2025 found 818 and 823 mm3 in PLS and ALS and 852 +- 77 mm3 in controls, 4 and 3 % less. To find 4 % at that SD with
a power of 90 % takes more than a hundred scans in each group."""

_SCALE_SD = 0.05
"""SD between subjects of the hypothalamus relative to the head, before any effect. With what the random shapes of heads
add, true volumes relative to the ICV have an SD of 6.4 % (150 heads); published ones, 9 %, hold errors of measurement
too."""

_SMALLEST_GROUP = 8
"""Scans that every group of a study gets before the rest is shared out: in the proportions of the paper, thirty scans
would be six controls and two patients with PLS."""

_ICV_MM3 = {"M": 1.56e6, "F": 1.43e6}
_ICV_SD_MM3 = 0.11e6
"""Intracranial volume by sex; over both sexes the mean is 1.5 l and the SD 0.13 l."""

_BIDS_VERSION = "1.10.0"
TRUTH_FOLDER = Path("derivatives", "phantom")

_NAMES = {
    "raw": "Simulated heads",
    "truth": "Truth of the simulated heads",
    "outlines": "True segmentations of the simulated heads",
}
"""Names of the dataset and its derivatives."""

_ONE_OF_MANY = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1") | {
    "JAX_PLATFORMS": "cpu"
}
"""Environment of each of several processes. Without it each would use every core and ask for most of a GPU's memory: 16
processes on 16 cores had not simulated 45 heads after 200 s; with it 12 processes simulated 12 in 11 s. Variables that
are already set stay as they are."""

_COLUMNS: dict[str, dict[str, Any]] = {
    "participant_id": {"Description": "Identifier of the simulated person."},
    "group": {
        "Description": "Diagnosis that was simulated.",
        "Levels": {
            "control": "No disease.",
            "ALS": "Amyotrophic lateral sclerosis.",
            "PLS": "Primary lateral sclerosis.",
        },
    },
    "subgroup": {"Description": "Certainty of the diagnosis of PLS.", "Levels": {"probable": "", "definite": ""}},
    "age": {"Description": "Age at the scan.", "Units": "year"},
    "sex": {"Description": "Sex.", "Levels": {"M": "male", "F": "female"}},
    "alsfrs_r": {"Description": "Revised ALS functional rating scale, 0 to 48."},
    "disease_duration_years": {"Description": "Time since onset.", "Units": "year"},
    f"true_{MAIN.name}_mm3": {"Description": f"Volume of the {MAIN.name} that was simulated.", "Units": "mm3"},
    f"true_{HEAD_SIZE.name}_mm3": {"Description": "Intracranial volume that was simulated.", "Units": "mm3"},
}
"""Columns of participants.tsv, as its data dictionary."""


@dataclass(frozen=True)
class _Stratum:
    """One row of Table 1 of Kassubek et al. 2025."""

    group: str
    subgroup: str
    men: int
    women: int
    age_years: tuple[float, float, float, float]
    """Mean, SD, lowest, highest."""
    alsfrs_r: tuple[float, float] | None = None
    """Mean and SD."""
    duration_years: tuple[float, float] | None = None
    """Mean and SD."""


_TABLE_1 = (
    _Stratum("control", "", 53, 54, (61.4, 10.4, 38, 82)),
    _Stratum("ALS", "", 241, 170, (62.4, 11.6, 21, 93), (39, 8), (1.5, 1.4)),
    _Stratum("PLS", "probable", 17, 11, (59.9, 11.2, 39, 86), (42, 2), (1.6, 1.0)),
    _Stratum("PLS", "definite", 9, 9, (59.7, 10.1, 35, 74), (36, 8), (7.9, 5.9)),
)

GROUPS = ("control", "ALS", "PLS")


@dataclass(frozen=True)
class Person:
    """A participant before any head is simulated: what the study's table says, and how to make the head."""

    participant_id: str
    covariates: dict[str, object]
    seed: int
    options: HeadOptions


def simulate_cohort(
    folder: str | Path,
    n: int,
    *,
    seed: int = 0,
    effect_percent: float = EFFECT_PERCENT,
    options: HeadOptions = DEFAULT_OPTIONS,
    workers: int = 1,
    outlines: bool = False,
) -> Path:
    """Write a study of simulated heads as a BIDS folder.

    Groups control, ALS and PLS get eight scans each, as far as ``n`` allows, and share the rest in the
    proportions of Kassubek et al. 2025 (107 : 411 : 46); covariates follow its Table 1. ICV depends on sex.
    The hypothalamus varies between people by 5 % beside the size of the head, and is ``effect_percent``
    smaller in both groups of patients, whatever their covariates.

    Truth is in ``participants.tsv`` (``true_hypothalamus_mm3``, ``true_icv_mm3``) and, with the commissures,
    in ``derivatives/phantom/truth.tsv``. Heads that the folder holds already are kept.

    Parameters
    ----------
    folder
        A new folder, or one that an earlier call with the same numbers made.
    n
        Number of scans, one per participant; at least 3.
    seed
        Names the study.
    effect_percent
        Atrophy of the patients; 0 for a study without effect.
    options
        Passed on to :func:`simulate_head`, but for head size and ``hypothalamus_scale``.
    workers
        Processes that simulate; a script that asks for more than one needs ``if __name__ == "__main__":``.
    outlines
        Also write the true segmentation of each head, left and right, as a label map in the scan's own grid into the
        BIDS derivative ``derivatives/outlines``: to train on.

    Returns
    -------
    Path
        The folder.

    Raises
    ------
    CohortError
        If ``n`` is too small or the folder holds other participants.
    ModelError
        If the template's hypothalamus is not installed.
    """
    folder = Path(absolute(folder))
    people = draw_people(n, seed=seed, effect_percent=effect_percent, options=options)
    _refuse_strangers(folder, people)
    truths = list(_simulate_all(people, folder, workers, outlines))
    _write_tables(folder, people, truths, effect_percent)
    if outlines:
        Location(folder / LABEL_MAPS_FOLDER / "dseg.tsv").write(label_table())
        Location(folder / LABEL_MAPS_FOLDER / "dataset_description.json").write(to_json(_description("outlines")))
    return folder


def group_sizes(n: int) -> dict[str, int]:
    """How many of ``n`` scans each group gets.

    >>> group_sizes(30)
    {'control': 9, 'ALS': 12, 'PLS': 9}

    Raises
    ------
    CohortError
        If there are fewer scans than groups.
    """
    if n < 3:
        raise CohortError(f"{n} scans were asked for; a study of three groups needs at least 3")
    shares = np.array([sum(one.men + one.women for one in _TABLE_1 if one.group == name) for name in GROUPS])
    least = min(_SMALLEST_GROUP, n // 3)
    sizes = least + _shared_out(n - 3 * least, shares)
    return dict(zip(GROUPS, sizes.tolist(), strict=True))


def _draw_strata(n: int) -> list[_Stratum]:
    """The stratum of each of ``n`` scans, in the order of :data:`_TABLE_1`."""
    strata = []
    for name, size in group_sizes(n).items():
        own = [one for one in _TABLE_1 if one.group == name]
        counts = _shared_out(size, np.array([one.men + one.women for one in own]))
        strata += [one for one, count in zip(own, counts.tolist(), strict=True) for _ in range(count)]
    return strata


def _shared_out(n: int, shares: np.ndarray) -> np.ndarray:
    """Whole numbers in these proportions that add up to ``n``: the largest remainders are rounded up."""
    exact = n * shares / shares.sum()
    whole = np.floor(exact).astype(int)
    whole[np.argsort(whole - exact, kind="stable")[: n - whole.sum()]] += 1
    return whole


def draw_people(
    n: int, *, seed: int = 0, effect_percent: float = EFFECT_PERCENT, options: HeadOptions = DEFAULT_OPTIONS
) -> list[Person]:
    """Participants of a simulated study, groups mixed."""
    random = np.random.default_rng(seed)
    strata = _draw_strata(n)
    digits = max(3, len(str(n)))
    return [
        _draw_person(f"sub-{number:0{digits}d}", strata[place], random, effect_percent, options)
        for number, place in enumerate(random.permutation(n).tolist(), start=1)
    ]


def _draw_person(
    participant_id: str, stratum: _Stratum, random: Generator, effect_percent: float, options: HeadOptions
) -> Person:
    sex = "M" if random.uniform() < stratum.men / (stratum.men + stratum.women) else "F"
    mean, sd, low, high = stratum.age_years
    covariates = {
        "group": stratum.group,
        "subgroup": stratum.subgroup or None,
        "age": round(float(np.clip(random.normal(mean, sd), low, high)), 1),
        "sex": sex,
        **_draw_disease(stratum, random),
    }
    effect = effect_percent if stratum.group != "control" else 0.0
    scale = float(np.clip((1 - effect / 100) * random.normal(1, _SCALE_SD), *SCALE_LIMITS))
    own = replace(options, icv_mean_mm3=_ICV_MM3[sex], icv_sd_mm3=_ICV_SD_MM3, hypothalamus_scale=scale)
    return Person(participant_id, covariates, int(random.integers(2**31)), own)


def _draw_disease(stratum: _Stratum, random: Generator) -> dict[str, object]:
    if stratum.alsfrs_r is None or stratum.duration_years is None:
        return {"alsfrs_r": None, "disease_duration_years": None}
    score = int(np.clip(round(random.normal(*stratum.alsfrs_r)), 0, 47))
    mean, sd = stratum.duration_years
    # Durations are skewed: a log-normal distribution of this mean and SD.
    variance = np.log(1 + (sd / mean) ** 2)
    years = float(random.lognormal(np.log(mean) - variance / 2, np.sqrt(variance)))
    return {"alsfrs_r": score, "disease_duration_years": round(max(years, 0.1), 2)}


def _refuse_strangers(folder: Path, people: list[Person]) -> None:
    known = {person.participant_id for person in people}
    strangers = sorted({path.name for path in folder.glob("sub-*")} - known)
    if strangers:
        raise CohortError(
            f"{folder} already holds {len(strangers)} other participants, such as {strangers[0]}; "
            "give an empty folder, or the number of scans it was made with"
        )


def _simulate_all(people: list[Person], folder: Path, workers: int, outlines: bool) -> Iterable[dict[str, Any]]:
    write = partial(_write_head, folder=folder, outlines=outlines)
    if workers <= 1:
        return map(write, people)
    # Spawned, not forked: JAX may be running in this process.
    with _environment_of_many(), ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        return list(pool.map(write, people))


@contextmanager
def _environment_of_many() -> Iterator[None]:
    """The environment in which to start processes that share this machine."""
    added = {name: value for name, value in _ONE_OF_MANY.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]


def _write_head(person: Person, folder: Path, *, outlines: bool = False) -> dict[str, Any]:
    """Simulate a participant's scan and its label map into a BIDS folder, unless they are there; return the truth."""
    name = person.participant_id
    image_path = folder / name / "anat" / f"{name}_T1w.nii.gz"
    truth_path = folder / TRUTH_FOLDER / name / f"{name}_desc-truth.json"
    recipe = json.loads(json.dumps({"seed": person.seed, "hypodask": version("hypodask"), **asdict(person.options)}))
    label_maps = [label_map_path(folder, name)] if outlines else []
    if all(path.exists() for path in (image_path, truth_path, *label_maps)):
        known: dict[str, Any] = json.loads(truth_path.read_text())
        if known["recipe"] == recipe:
            return known
    scan, truth = simulate_head(person.seed, options=person.options)
    Location(image_path).write(igzip.compress(nifti_image(scan.stored, scan.grid).to_bytes(), 1))
    for path in label_maps:
        Location(path).write(label_map_file(truth, scan.grid))
    made = {
        "ac_mm": truth.ac_mm.tolist(),
        "pc_mm": truth.pc_mm.tolist(),
        "acpc_from_scanner": truth.acpc_from_scanner.tolist(),
        "volume_mm3": truth.volume_mm3,
        "recipe": recipe,
    }
    Location(truth_path).write(to_json(made))
    return made


def _write_tables(folder: Path, people: list[Person], truths: list[dict[str, Any]], effect_percent: float) -> None:
    rows = [
        {"participant_id": person.participant_id, **person.covariates}
        | {f"true_{one.name}_mm3": round(truth["volume_mm3"][one.name], 2) for one in (MAIN, HEAD_SIZE)}
        for person, truth in zip(people, truths, strict=True)
    ]
    Location(folder / "participants.tsv").write(_tsv(pd.DataFrame(rows, columns=list(_COLUMNS))))
    Location(folder / "participants.json").write(to_json({k: v for k, v in _COLUMNS.items() if k != "participant_id"}))
    Location(folder / "dataset_description.json").write(to_json(_description("raw")))
    Location(folder / "README").write(_readme(len(people), effect_percent).encode())
    landmarks = [_landmarks(person, truth) for person, truth in zip(people, truths, strict=True)]
    Location(folder / TRUTH_FOLDER / "truth.tsv").write(_tsv(pd.DataFrame(landmarks)))
    Location(folder / TRUTH_FOLDER / "dataset_description.json").write(to_json(_description("truth")))


def _landmarks(person: Person, truth: dict[str, Any]) -> dict[str, object]:
    places = {
        f"{landmark}_{axis}_mm": round(value, 4)
        for landmark in ("ac", "pc")
        for axis, value in zip("xyz", truth[f"{landmark}_mm"], strict=True)
    }
    volumes = {f"{name}_mm3": round(value, 3) for name, value in truth["volume_mm3"].items()}
    return {"participant_id": person.participant_id, **places, **volumes}


def _description(kind: str) -> dict[str, Any]:
    made_by = {"Name": "hypodask", "Version": version("hypodask"), "Description": "hypodask.phantom"}
    return {
        "Name": _NAMES[kind],
        "BIDSVersion": _BIDS_VERSION,
        "DatasetType": "raw" if kind == "raw" else "derivative",
        "GeneratedBy": [made_by],
    }


def _readme(n: int, effect_percent: float) -> str:
    """Text of the README file of a simulated study of ``n`` participants."""
    return (
        f"{n} simulated T1-weighted heads in three groups, made by hypodask.phantom from the MNI152 2009a template.\n"
        f"No person was scanned. In the groups ALS and PLS the {MAIN.name} is {effect_percent:g} % smaller than in the "
        "controls.\nThe true volumes are in participants.tsv; the true commissures and the volumes of the left and "
        "the right half are in derivatives/phantom.\n"
    )


def _tsv(table: pd.DataFrame) -> bytes:
    # A column of whole numbers with gaps would become one of fractions.
    return table.convert_dtypes().to_csv(sep="\t", index=False, na_rep="n/a", lineterminator="\n").encode()
