"""Train a hypothalamus network on the true label maps of simulated heads, and run it.

For your own data, replace the BIDS dataset and derivative, name your protocol, and leave out ``network`` and
``schedule``, so that the network has its full size (``docs/training.md``). The phantoms share one brain, so their
figures say that the software works, and nothing about real scans.

    python examples/train_on_phantoms.py phantoms-trained
"""

import sys
from pathlib import Path

import hypodask
from hypodask.learning import Schedule
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
