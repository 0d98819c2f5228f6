"""Connected pieces of masks, and the holes in them."""

import numpy as np
from jaxtyping import Bool
from numpy import ndarray
from scipy import ndimage


def largest_piece(mask: Bool[ndarray, "i j k"], *, by_corners: bool = True) -> Bool[ndarray, "i j k"]:
    """The largest connected piece of a mask, which is as it was where nothing is set.

    Neighbours share a face, an edge or a corner, or without ``by_corners`` a face.

    >>> diagonal = np.eye(3, dtype=bool)[None]
    >>> int(largest_piece(diagonal).sum()), int(largest_piece(diagonal, by_corners=False).sum())
    (3, 1)
    """
    pieces, count = ndimage.label(mask, structure=np.ones((3, 3, 3)) if by_corners else None)
    if count < 2:
        return mask
    return np.asarray(pieces == 1 + np.bincount(pieces.ravel())[1:].argmax())


def without_holes(mask: Bool[ndarray, "i j k"], most_voxels: float = np.inf) -> Bool[ndarray, "i j k"]:
    """The mask with the holes filled that it encloses and that are no larger than so many voxels.

    >>> ball = np.ones((5, 5, 5), bool)
    >>> ball[2, 2, 2] = False
    >>> bool(without_holes(ball, 1)[2, 2, 2]), bool(without_holes(ball, 0.5)[2, 2, 2])
    (True, False)
    """
    if not mask.any():
        return mask
    part = ndimage.find_objects(mask.view(np.uint8))[0]
    # A frame of background joins everything that is open to the outside, and makes it the first piece.
    pieces, _ = ndimage.label(~np.pad(mask[part], 1))
    fillable = np.bincount(pieces.ravel()) <= most_voxels
    fillable[:2] = False
    filled = mask.copy()
    filled[part] |= fillable[pieces[1:-1, 1:-1, 1:-1]]
    return filled
