"""Errors of AC-PC alignment and compilations over a cohort of mixed shapes; on simulated heads, no data needed."""

from collections.abc import Callable

import jax
import numpy as np

import hypodask
from hypodask import phantom
from hypodask.phantom import HeadOptions

HEADS = 10
OPTIONS = HeadOptions(spacing_mm=(0.9, 1.3), pitch_deg=35.0, roll_deg=15.0, yaw_deg=15.0, shift_mm=40.0, noise=0.03)
"""Poses as wide as those of real heads. The phantom is made of the template that heads are aligned to, so this shows
whether alignment got worse, not how well it does: for that see ``alignment_accuracy.py``."""

COMPILED = "/jax/core/compile/backend_compile_duration"


class Errors:
    """Distance of the commissures from the truth and tilt of the frame, over ten simulated heads of about 1 mm."""

    params = ("ac_mm", "pc_mm", "tilt_deg")
    param_names = ("error",)
    timeout = 900
    unit = "mm or degrees"

    def setup_cache(self) -> dict[str, list[float]]:
        """Every head aligned once."""
        errors: dict[str, list[float]] = {name: [] for name in self.params}
        for seed in range(HEADS):
            scan, truth = phantom.simulate_head(seed, options=OPTIONS)
            found = hypodask.align(scan)
            errors["ac_mm"].append(float(np.linalg.norm(found.ac_mm - truth.ac_mm)))
            errors["pc_mm"].append(float(np.linalg.norm(found.pc_mm - truth.pc_mm)))
            turn = (found.acpc_from_scanner @ np.linalg.inv(truth.acpc_from_scanner))[:3, :3]
            errors["tilt_deg"].append(float(np.degrees(np.arccos(np.clip((np.trace(turn) - 1) / 2, -1, 1)))))
        return errors

    def track_median(self, errors: dict[str, list[float]], error: str) -> float:
        """The middle head."""
        return float(np.median(errors[error]))

    def track_worst(self, errors: dict[str, list[float]], error: str) -> float:
        """The worst head."""
        return max(errors[error])


class Compilations:
    """How often XLA compiles for eight heads, each of other voxels and another shape."""

    timeout = 900
    unit = "compilations"

    def setup_cache(self) -> list[int]:
        """Compilations of each alignment."""
        counts: list[int] = []
        jax.monitoring.register_event_duration_secs_listener(_counting(counts))
        for seed in range(8):
            side = 0.8 + 0.1 * seed
            options = HeadOptions(spacing_mm=(side, side + 0.2), neck=bool(seed % 2))
            scan, _ = phantom.simulate_head(seed, options=options)
            counts.append(0)
            hypodask.align(scan)
            # Simulating the next head compiles nothing of ours, but would be counted.
            counts.append(0)
        return counts[::2]

    def track_all(self, counts: list[int]) -> int:
        """Of all eight."""
        return sum(counts)

    def track_after_three(self, counts: list[int]) -> int:
        """Of the last five, which should find everything compiled."""
        return sum(counts[3:])


def _counting(counts: list[int]) -> Callable[..., None]:
    def hear(event: str, _seconds: float, **_: object) -> None:
        if event == COMPILED and counts:
            counts[-1] += 1

    return hear
