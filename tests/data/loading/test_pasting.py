from __future__ import annotations

import numpy as np
from traffic import CAR, IGNORE, ROAD, SIZE, scene

from segmill.data.loading.pasting import Object, cut_out, find_place, objects_of, paste


def test_objects_are_whole_regions_of_a_size() -> None:
    mask = np.zeros((40, 60), np.uint8)
    mask[5:10, 5:11] = CAR  # 30 px
    mask[20:24, 20:24] = CAR  # 16 px, the least
    mask[30:33, 30:35] = CAR  # 15 px, too few
    mask[30:32, 40:58] = CAR  # too flat
    mask[0:6, 30:40] = CAR  # cut off by the edge
    mask[14:28, 30:58] = CAR  # 392 px, more than 15 % of 2400
    found = list(objects_of(mask, CAR, sample=7))
    assert found == [Object(7, CAR, 5, 5, 5, 6, 30), Object(7, CAR, 20, 20, 4, 4, 16)]


def test_an_object_is_cut_out_without_its_surroundings() -> None:
    sample = scene(1, [(CAR, 22, 10, 6, 10)])
    sample.mask[22, 10] = ROAD  # a corner that is not the car's
    one = Object(0, CAR, 22, 10, 6, 10, 59)
    patch = cut_out(sample.image, sample.mask, one, ignore_id=IGNORE)
    assert patch.region.shape == (8, 12) and patch.region.sum() == 59 and not patch.region[1, 1]
    assert (patch.image[patch.region] == (10, 40, 7)).all()
    assert patch.ground[ROAD] == 1.0 and patch.ground.sum() == 1.0
    assert patch.around[7, :].all() and not patch.around[:4].any()  # what it stands on, not what is above
    mirrored = cut_out(sample.image, sample.mask, one, ignore_id=IGNORE, mirrored=True)
    assert not mirrored.region[1, 10] and mirrored.region[1, 1]
    doubled = cut_out(sample.image, sample.mask, one, ignore_id=IGNORE, factor=2.0)
    assert doubled.region.shape == (14, 22)


def test_a_paste_changes_its_pixels_and_no_others() -> None:
    sample, target = scene(1, [(CAR, 22, 10, 6, 10)]), scene(2, [])
    patch = cut_out(sample.image, sample.mask, Object(0, CAR, 22, 10, 6, 10, 60), ignore_id=IGNORE)
    image, mask = target.image.copy(), target.mask.copy()
    assert paste(patch, image, mask, (29, 30), IGNORE) == [30, 31, 6, 10]
    inside = np.zeros(SIZE, bool)
    inside[30:36, 31:41] = True
    assert ((mask == CAR) == inside).all()
    np.testing.assert_array_equal(mask[~inside], target.mask[~inside])
    np.testing.assert_array_equal(image[~inside], target.image[~inside])
    assert (image[32, 35] == (10, 40, 7)).all()
    edge = image[30, 35].astype(int)  # feathered: between car and road
    assert 10 < edge[0] < 90 and 40 < edge[1] < 90


def test_ignored_pixels_stay_as_they_are() -> None:
    sample, target = scene(1, [(CAR, 22, 10, 6, 10)]), scene(2, [])
    patch = cut_out(sample.image, sample.mask, Object(0, CAR, 22, 10, 6, 10, 60), ignore_id=IGNORE)
    image, mask = target.image.copy(), target.mask.copy()
    assert paste(patch, image, mask, (32, 30), IGNORE) == [33, 31, 3, 10]  # its lower half is behind the bonnet
    assert (mask[36:] == IGNORE).all()
    np.testing.assert_array_equal(image[36:], target.image[36:])


def test_a_place_has_the_foot_at_its_height_and_like_ground() -> None:
    sample, target = scene(1, [(CAR, 22, 10, 6, 10)]), scene(2, [])
    patch = cut_out(sample.image, sample.mask, Object(0, CAR, 22, 10, 6, 10, 60), ignore_id=IGNORE)
    free = target.mask == IGNORE
    rng = np.random.default_rng(0)
    places = [find_place(patch, 28, target.mask, free, IGNORE, rng) for _ in range(50)]
    assert all(place is not None for place in places)
    assert {top for top, _ in places} == {20, 21, 22}  # margin one above row 22, give or take 3 % of 40
    assert len({left for _, left in places}) > 20
    in_the_sky = [find_place(patch, 12, target.mask, free, IGNORE, rng) for _ in range(20)]
    on_the_bonnet = [find_place(patch, 39, target.mask, free, IGNORE, rng) for _ in range(20)]
    full = np.ones(SIZE, bool)
    assert set(in_the_sky) == set(on_the_bonnet) == {find_place(patch, 28, target.mask, full, IGNORE, rng)} == {None}
