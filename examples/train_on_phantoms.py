"""Train a hypothalamus network on outlines, and run it: on simulated heads, whose true outlines are known.

Put your own BIDS dataset and derivative in place of the phantoms', name your protocol, and leave network and schedule
out to have the real size: ``docs/training.md``. The phantoms share one brain, so their figures say that all of it
works, and nothing about heads of people.

    python examples/train_on_phantoms.py phantoms-trained
"""

import sys
from pathlib import Path

import hypodask
from hypodask.network.learn import Schedule
from hypodask.training import Architecture, Data, Folds, TrainingConfig


def main(folder: Path, scans: int = 6, steps: int = 600) -> None:
    """Simulate, train, and measure the first head with the new weights."""
    study = hypodask.phantom.simulate_cohort(folder / "study", scans, outlines=True)
    config = TrainingConfig(
        out=str(folder / "trained"),
        data=Data(protocol="phantom-sides", bids=str(study), outlines=str(study / "derivatives" / "outlines")),
        network=Architecture(widths=(8, 16, 32)),
        schedule=Schedule(steps=steps, heads=4),
        folds=Folds(count=3),
    )
    trained = hypodask.train(config)
    print(trained.subjects[["scan", "status", "fold", "dice", "volume_mm3", "manual_mm3"]].to_string(index=False))
    print(trained.agreement[["structure", "icc", "bias_percent", "sd_percent"]].to_string(index=False))
    row = hypodask.process_scan(study / "sub-001" / "anat" / "sub-001_T1w.nii.gz", models=trained.weights)
    print(f"sub-001: {row['hypothalamus']:.0f} mm3 by protocol {row.protocol}, weights {row.model}")


if __name__ == "__main__":  # workers are new processes, which import this file again
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "phantoms-trained"))
