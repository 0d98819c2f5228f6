"""Connected components of masks, and the holes in them."""

import numpy as np
from jaxtyping import Bool
from numpy import ndarray
from scipy import ndimage


def largest_piece(mask: Bool[ndarray, "i j k"], *, by_corners: bool = True) -> Bool[ndarray, "i j k"]:
    """The largest connected component of a mask; an empty mask is returned as it is.

    Neighbours share a face, an edge or a corner; without ``by_corners`` they share a face.

    >>> diagonal = np.eye(3, dtype=bool)[None]
    >>> int(largest_piece(diagonal).sum()), int(largest_piece(diagonal, by_corners=False).sum())
    (3, 1)
    """
    components, count = ndimage.label(mask, structure=np.ones((3, 3, 3)) if by_corners else None)
    if count < 2:
        return mask
    return np.asarray(components == 1 + np.bincount(components.ravel())[1:].argmax())


def without_holes(mask: Bool[ndarray, "i j k"], most_voxels: float = np.inf) -> Bool[ndarray, "i j k"]:
    """A mask whose enclosed holes are filled, as far as they have no more than ``most_voxels``.

    >>> ball = np.ones((5, 5, 5), bool)
    >>> ball[2, 2, 2] = False
    >>> bool(without_holes(ball, 1)[2, 2, 2]), bool(without_holes(ball, 0.5)[2, 2, 2])
    (True, False)
    """
    if not mask.any():
        return mask
    part = ndimage.find_objects(mask.view(np.uint8))[0]
    # A frame of background joins all that is open to the outside, which becomes component 1.
    components, _ = ndimage.label(~np.pad(mask[part], 1))
    fillable = np.bincount(components.ravel()) <= most_voxels
    fillable[:2] = False
    filled = mask.copy()
    filled[part] |= fillable[components[1:-1, 1:-1, 1:-1]]
    return filled
