"""Which subjects each network does not learn from."""

from collections.abc import Sequence

import numpy as np

from hypodask.core.errors import TrainingError


def fold_of(participants: Sequence[str], count: int, *, seed: int = 0) -> list[int]:
    """Number of the fold that holds out each scan, from 1; all scans of a participant are in the same fold.

    Participants are shuffled; each then goes to the fold with the fewest scans.

    Parameters
    ----------
    participants
        Participant of each scan.
    count
        Number of folds, at least 2 and at most the number of participants.

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
            "([folds] count), or segment more scans"
        )
    order = np.random.default_rng(seed).permutation(len(names))
    # Participants with many scans first, so that folds have about as many scans.
    order = order[np.argsort(-scans[order], kind="stable")]
    sizes, chosen = np.zeros(count, int), {}
    for number in order.tolist():
        chosen[str(names[number])] = int(sizes.argmin())
        sizes[sizes.argmin()] += scans[number]
    return [1 + chosen[participant] for participant in participants]
