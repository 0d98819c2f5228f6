"""Print what neuroCombat 0.2.12 (Fortin's reference implementation) makes of the data of test_combat.py.

It needs its own environment, because neuroCombat calls functions that numpy has removed since 1.24::

    pip install "neuroCombat==0.2.12" "numpy<2" && python combat_reference.py > combat_reference.json
"""

import contextlib
import io
import json
from importlib import import_module

import numpy as np
import pandas as pd

SITES, STRUCTURES = {"a": 12, "b": 9, "c": 17}, 5


def make_data() -> tuple[pd.DataFrame, np.ndarray]:
    """Covariates and volumes (scan, structure) in mm3, without a random generator, whose numbers may change."""
    n = sum(SITES.values())
    i, k = np.arange(n)[:, None], np.arange(STRUCTURES)
    site = np.repeat(list(SITES), list(SITES.values()))
    age = 40 + 7 * (np.arange(n) * 5 % 9) + np.arange(n) % 4
    male = np.arange(n) * 7 % 5 < 2
    noise = np.sin(3.7 * i**1.3 + 1.9 * k) + 0.6 * np.cos(5.1 * i + 0.3 * k**2 * i)
    step = np.searchsorted(list(SITES), site)[:, None]
    volumes = (
        (400 + 90 * k) * (1 - 0.002 * age[:, None]) + 25 * male[:, None] + 30 * step * (1 + 0.2 * np.sin(k + step))
    )
    return pd.DataFrame({"site": site, "age": age, "sex": np.where(male, "M", "F")}), volumes + (20 + 9 * step) * noise


def main() -> None:
    """One result for each way to call it."""
    module = import_module("neuroCombat.neuroCombat")

    vars(np)["int"] = int
    # The reference stops at a change of 1e-4. A smaller limit gives more digits to compare.
    module.it_sol.__defaults__ = (1e-13,)
    covariates, volumes = make_data()
    ways = {
        "parametric": {},
        "nonparametric": {"parametric": False},
        "none": {"eb": False},
        "mean_only": {"mean_only": True},
        "reference": {"ref_batch": "b"},
    }
    results = {}
    for name, options in ways.items():
        with contextlib.redirect_stdout(io.StringIO()):
            found = module.neuroCombat(volumes.T.copy(), covariates, "site", ["sex"], ["age"], **options)
        results[name] = np.asarray(found["data"]).T.tolist()
    print(json.dumps(results))


if __name__ == "__main__":
    main()
