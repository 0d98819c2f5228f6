"""Protocol seed adds the fornix, the wall, the floor and the dorsal strip to the first segmentation, and no fluid."""

import numpy as np
import pytest
from scipy import ndimage
from segmentations import ellipsoid, labelled

from hypodask.alignment import Alignment
from hypodask.core.errors import ModelError
from hypodask.core.grid import Grid, box_grid, transform_points
from hypodask.core.structures import HYPOTHALAMUS, HYPOTHALAMUS_SEED, HYPOTHALAMUS_SIDES, LabelTable
from hypodask.scan import Scan
from hypodask.segmentation import Segmentation, load_network
from hypodask.segmentation.network import Elsewhere, VolumeError
from hypodask.segmentation.seed_protocol import SeedNetwork, _grown, in_seed_protocol, seed_posteriors

GRID = box_grid((56, 20, 48), (0.5, 0.5, 0.5), (0.0, -5.0, -6.0))
X, Y, Z = np.moveaxis(transform_points(GRID.space_from_vox, np.moveaxis(np.indices(GRID.shape), 0, -1)), -1, 0)
GREY, FLUID = 0.7, 0.25
VENTRICLE = (np.abs(X) < 1) & (Z > -11)
BELOW_BRAIN = Z < -12
FORNIX = np.hypot(X + 4.5, Z + 6) < 1.2


def head(ventricle: np.ndarray = VENTRICLE) -> np.ndarray:
    """Grey matter with a third ventricle, a floor of 1 mm, and fluid below."""
    image = np.where(ventricle | BELOW_BRAIN, FLUID, GREY)
    return ndimage.gaussian_filter(image, 0.7).astype(np.float32)


def side(x_mm: float, growth: float = 1.0) -> np.ndarray:
    """One side, from 2 mm beside the midline to 7 mm, from 2.5 mm below the AC to the floor."""
    return ellipsoid(GRID, (x_mm, -5.0, -7.25), (2.5 * growth, 5.0 * growth, 4.75 * growth))


LEFT = side(-4.5) * ~FORNIX
RIGHT = side(4.5)


def whole(posteriors: np.ndarray) -> np.ndarray:
    return 1 - posteriors[0]


@pytest.fixture(scope="module")
def seed() -> np.ndarray:
    return seed_posteriors(LEFT, RIGHT, head(), GRID)


def test_posteriors_are_probabilities(seed: np.ndarray) -> None:
    assert seed.min() >= 0
    np.testing.assert_allclose(seed.sum(axis=0), 1, atol=1e-6)


def test_the_first_segmentation_lies_inside(seed: np.ndarray) -> None:
    assert (whole(seed) >= np.maximum(LEFT, RIGHT) - 1e-6).all()


def test_the_fornix_is_filled(seed: np.ndarray) -> None:
    core = FORNIX & (np.abs(Y + 5) < 3)
    assert LEFT[core].max() == 0
    assert seed[1][core].min() > 0.9


def test_a_notch_from_above_is_filled() -> None:
    notch = (np.abs(X + 4.5) < 0.8) & (Z > -7)
    seed = seed_posteriors(LEFT * ~notch, RIGHT, head(), GRID)
    assert seed[1][notch & (side(-4.5) > 0.9) & (Z < -3)].min() > 0.9


def test_the_wall_of_the_ventricle_is_reached(seed: np.ndarray) -> None:
    wall = (np.abs(X) > 1.4) & (np.abs(X) < 2) & (np.abs(Z + 7) < 3) & (np.abs(Y + 5) < 2)
    assert np.maximum(LEFT, RIGHT)[wall].max() < 0.7
    assert whole(seed)[wall].min() > 0.9


def test_fluid_is_left_out(seed: np.ndarray) -> None:
    assert whole(seed)[(np.abs(X) < 0.5) & (Z > -9)].max() < 0.15
    assert whole(seed)[Z < -13].max() < 0.15


def test_a_ventricle_narrower_than_a_voxel_is_left_out() -> None:
    slit = head(np.zeros(GRID.shape, bool)) - 0.2 * np.exp(-((X / 0.6) ** 2)) * (Z > -9)
    seed = seed_posteriors(LEFT, RIGHT, slit, GRID)
    assert whole(seed)[(np.abs(X) < 0.3) & (Z > -8) & (Z < -4)].max() < 0.3


def test_both_sides_join_under_the_floor(seed: np.ndarray) -> None:
    row = np.abs(Y + 5)[0, :, 0].argmin()
    floor = (Z > -12) & (Z < -11)
    sides = [side(x)[:, row] for x in (-4.5, 4.5)]
    assert np.maximum(*sides)[(floor & (np.abs(X) < 1))[:, row]].max() == 0
    pieces, count = ndimage.label(whole(seed)[:, row] > 0.5)
    assert count == 1, pieces


def test_the_strip_above_ends_at_the_sulcus(seed: np.ndarray) -> None:
    heights = Z[(whole(seed) > 0.5) & (Y < -3.5) & (Y > -5.5)]
    assert -2.5 < heights.max() <= 0.5
    assert (whole(seed)[(Z > 1) & (np.abs(X) < 10)] < 0.05).all()


def test_nothing_is_added_at_the_outer_side(seed: np.ndarray) -> None:
    for posterior, first in ((seed[1], LEFT), (seed[2], RIGHT)):
        assert np.abs(X[posterior > 0.5]).max() <= np.abs(X[first > 0.5]).max()


@pytest.mark.parametrize("growth", [0.9, 0.97, 1.03, 1.1])
def test_the_volume_grows_with_the_first_one(growth: float) -> None:
    posteriors = [seed_posteriors(side(-4.5, g), side(4.5, g), head(), GRID) for g in sorted((1.0, growth))]
    small, large = (whole(one) for one in posteriors)
    assert (large >= small - 1e-6).all()
    assert large.sum() > small.sum()


def test_a_little_change_of_the_image_changes_the_volume_a_little(seed: np.ndarray) -> None:
    brighter = whole(seed_posteriors(LEFT, RIGHT, head() + 0.005, GRID)).sum()
    assert abs(brighter / whole(seed).sum() - 1) < 0.01


def test_a_mirrored_head_has_mirrored_posteriors() -> None:
    image = head(VENTRICLE | ((np.abs(X - 1) < 1) & (Z > -8)))
    straight = seed_posteriors(LEFT, RIGHT, image, GRID)
    mirrored = seed_posteriors(RIGHT[::-1], LEFT[::-1], image[::-1], GRID)
    np.testing.assert_allclose(mirrored[[0, 2, 1], ::-1], straight, atol=1e-5)


def test_growth_stops_where_the_way_is_closed() -> None:
    start = np.zeros((1, 1, 5))
    start[..., 0] = 0.8
    grown = _grown(start, np.array([1, 1, 0, 1, 1.0]).reshape(1, 1, 5), [(0, 1)] * 4)
    assert grown.ravel().tolist() == [0.8, 0.8, 0, 0, 0]


@pytest.mark.parametrize(
    "grid", [Grid(GRID.shape, GRID.space_from_vox, "scanner"), GRID.moved(np.diag([-1.0, 1, 1, 1]), "acpc")]
)
def test_other_grids_are_refused(grid: Grid) -> None:
    with pytest.raises(ModelError, match="AC-PC space with axes along x, y and z"):
        seed_posteriors(LEFT, RIGHT, head(), grid)


def found(table: LabelTable, members: int = 0) -> Segmentation:
    """The two sides, each shared evenly by its labels."""
    parts = [(LEFT if label.hemisphere == "left" else RIGHT) / len(table.of(label.hemisphere)) for label in table]
    one = labelled(GRID, table, parts)
    wholes = np.stack([1 - one.posteriors[0]] * members).astype(np.float16) if members else None
    return Segmentation(one.posteriors, GRID, table, wholes)


def test_subunits_and_sides_give_the_same(seed: np.ndarray) -> None:
    for table in (HYPOTHALAMUS, HYPOTHALAMUS_SIDES):
        result = in_seed_protocol(found(table), head())
        assert result.labels is HYPOTHALAMUS_SEED
        np.testing.assert_allclose(result.posteriors, seed, atol=1e-4)


def test_members_are_extended_one_by_one(seed: np.ndarray) -> None:
    wholes = in_seed_protocol(found(HYPOTHALAMUS, members=2), head()).member_wholes
    assert wholes is not None
    assert wholes.shape == (2, *GRID.shape)
    np.testing.assert_allclose(wholes[0], whole(seed), atol=2e-3)


class Fixed:
    """A network that always finds the phantom."""

    task, name, protocol = "hypothalamus", "tiny:0123456789ab", HYPOTHALAMUS.protocol
    volume_error = VolumeError(0.03, 10, {"hypothalamus": 0.03})

    def segment(self, scan: Scan, alignment: Alignment) -> Segmentation:
        return found(HYPOTHALAMUS)

    def on(self, elsewhere: Elsewhere) -> "Fixed":
        return self


def test_a_network_answers_in_the_protocol_whatever_the_units_of_the_scan(seed: np.ndarray) -> None:
    image = head()
    image[:, :3] = 1.0  # white matter, which sets the scale
    scan = Scan(900 * image, Grid(GRID.shape, GRID.space_from_vox, "scanner"), source="phantom")
    pose = Alignment(np.eye(4), np.zeros(3), np.array([0, -26.0, 0]), np.eye(4), score=1.0, flagged=False)
    result = SeedNetwork(Fixed()).segment(scan, pose)
    np.testing.assert_allclose(result.posteriors[:, :, 6:], seed[:, :, 6:], atol=0.05)


def test_the_name_tells_the_protocols_apart_and_no_error_is_claimed() -> None:
    network = SeedNetwork(Fixed())
    assert network.name == "hypothalamus-seed:0123456789ab"
    assert network.protocol == "seed"
    assert network.volume_error.relative_sd is None
    assert not network.volume_error.parts


def test_the_shipped_network_is_found_by_name() -> None:
    network = load_network("hypothalamus-seed")
    assert network.protocol == HYPOTHALAMUS_SEED.protocol
    assert network.name != load_network("hypothalamus").name


def test_a_name_that_is_none_is_told_every_one_there_is() -> None:
    with pytest.raises(ModelError, match=r"'hypothalamus_seed'; give one of \[.*'hypothalamus-seed'\]"):
        load_network("hypothalamus_seed")
