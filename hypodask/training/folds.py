"""Which subjects each network does not see."""

from collections.abc import Sequence

import numpy as np

from hypodask.errors import TrainingError


def fold_of(participants: Sequence[str], count: int, *, seed: int = 0) -> list[int]:
    """Number of the fold that holds out each scan, from 1; all scans of one participant are in one.

    Participants are shuffled, then dealt out one at a time to the fold with the fewest scans.

    Parameters
    ----------
    participants
        Of each scan.
    count
        Folds, at least 2 and at most as many as there are participants.

    Raises
    ------
    TrainingError
        If there are too few participants.

    Examples
    --------
    >>> fold_of(["a", "b", "a", "c"], 2)
    [1, 2, 1, 2]
    """
    names, scans = np.unique(np.asarray(participants), return_counts=True)
    if len(names) < count:
        raise TrainingError(
            f"{len(names)} participants can be learnt from; {count} folds need at least {count}: ask for fewer "
            "([folds] count), or outline more scans"
        )
    order = np.random.default_rng(seed).permutation(len(names))
    # Those with many scans first, so that folds come out even.
    order = order[np.argsort(-scans[order], kind="stable")]
    sizes, chosen = np.zeros(count, int), {}
    for number in order.tolist():
        chosen[str(names[number])] = int(sizes.argmin())
        sizes[sizes.argmin()] += scans[number]
    return [1 + chosen[participant] for participant in participants]
