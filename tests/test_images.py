"""Sets of pictures, random views and class-aware batches."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clair.images import ImageSet, class_aware_batch, content_order, to_unit, view


def pictures(count, seed=0, size=6):
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


# -- ImageSet and its order ---------------------------------------------------------------------


def test_take_keeps_keys_and_pictures_together():
    images = ImageSet("line", tuple("abcde"), pictures(5))
    taken = images.take(np.array([3, 0]))
    assert taken.keys == ("d", "a")
    assert taken.domain == "line"
    assert len(taken) == 2
    np.testing.assert_array_equal(taken.pixels, images.pixels[[3, 0]])


def test_a_key_too_few_is_refused():
    with pytest.raises(ValueError, match="4 keys for 5 pictures"):
        ImageSet("line", tuple("abcd"), pictures(5))


def test_digest_sees_pixels_and_order_and_no_names():
    images = ImageSet("line", tuple("abcde"), pictures(5))
    assert images.digest() == ImageSet("flat", tuple("vwxyz"), images.pixels.copy()).digest()
    assert images.digest() == ImageSet("line", images.keys, np.asfortranarray(images.pixels)).digest()
    assert images.digest() != images.take(np.array([1, 0, 2, 3, 4])).digest()
    changed = images.pixels.copy()
    changed[4, 5, 5, 2] ^= 1
    assert images.digest() != ImageSet("line", images.keys, changed).digest()


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31), count=st.integers(0, 9))
def test_content_order_does_not_depend_on_the_listing(seed, count):
    pixels = pictures(count, seed)
    order = content_order(pixels)
    assert sorted(order.tolist()) == list(range(count))
    shuffle = np.random.default_rng(seed + 1).permutation(count)
    np.testing.assert_array_equal(pixels[shuffle][content_order(pixels[shuffle])], pixels[order])


def test_content_order_mixes_classes():
    pixels = pictures(64)
    order = content_order(pixels)
    assert (order != np.arange(64)).sum() > 50
    assert abs(np.corrcoef(order, np.arange(64))[0, 1]) < 0.4


# -- pixels to floats ---------------------------------------------------------------------------


def test_to_unit_moves_channels_first_and_scales():
    pixels = pictures(2)
    unit = to_unit(torch.from_numpy(pixels))
    assert unit.dtype == torch.float32
    for b, row, column, channel in np.ndindex(pixels.shape):
        assert float(unit[b, channel, row, column]) == pytest.approx(pixels[b, row, column, channel] / 255)
    assert torch.equal(unit, to_unit(torch.from_numpy(pixels), 6))


def test_to_unit_resizes_any_shape_to_a_square_and_stays_in_range():
    wide = torch.from_numpy(np.random.default_rng(0).choice([0, 255], (3, 5, 9, 3)).astype(np.uint8))
    for size in (4, 16):
        unit = to_unit(wide, size)
        assert unit.shape == (3, 3, size, size)
        assert unit.min() >= 0
        assert unit.max() <= 1
    assert to_unit(wide).shape == (3, 3, 5, 9)
    even = torch.full((1, 5, 9, 3), 51, dtype=torch.uint8)
    torch.testing.assert_close(to_unit(even, 7), torch.full((1, 3, 7, 7), 0.2))


# -- views --------------------------------------------------------------------------------------


def test_strength_zero_gives_the_picture_back():
    unit = to_unit(torch.from_numpy(pictures(4)))
    assert torch.equal(view(unit, rng(), 0.0), unit)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**31), strength=st.floats(0.05, 2))
def test_views_stay_in_range_and_white_stays_white(seed, strength):
    seen = view(to_unit(torch.from_numpy(pictures(5, seed, size=12))), rng(seed), strength)
    assert seen.min() >= 0
    assert seen.max() <= 1
    white = torch.ones(2, 3, 12, 12)
    assert torch.equal(view(white, rng(seed), strength), white)


def test_views_are_random_and_repeatable():
    unit = to_unit(torch.from_numpy(pictures(1, size=16))).expand(6, -1, -1, -1)
    one = view(unit, rng(1), 0.5)
    assert torch.equal(one, view(unit, rng(1), 0.5))
    assert not torch.equal(one, view(unit, rng(2), 0.5))
    gaps = (one[:, None] - one[None]).abs().amax((2, 3, 4))
    assert (gaps[~torch.eye(6, dtype=torch.bool)] > 0.01).all()  # each picture gets its own view
    state = rng(1)
    first = view(unit, state, 0.5)
    assert not torch.equal(first, view(unit, state, 0.5))


def test_a_stronger_view_is_farther_away():
    blob = torch.ones(64, 3, 32, 32)
    blob[:, :, 8:20, 6:14] = 0
    gaps = [float((view(blob, rng(0), strength) - blob).abs().mean()) for strength in (0.02, 0.2, 1.0)]
    assert gaps[0] < gaps[1] < gaps[2]
    assert gaps[0] < 0.2


def test_what_leaves_the_frame_is_replaced_by_white():
    black = torch.zeros(64, 3, 16, 16)
    seen = view(black, rng(0), 1.0)
    corners = seen[:, :, [0, 0, -1, -1], [0, -1, 0, -1]]
    assert (corners == 1).any()
    assert (seen[:, :, 8, 8] < 0.3).all()  # ink stays ink, tinted by a quarter at most


# -- batches ------------------------------------------------------------------------------------


@st.composite
def labelled(draw):
    count, per_class = draw(st.integers(1, 5)), draw(st.integers(1, 3))
    labels = st.lists(st.integers(-1, 6), min_size=1, max_size=25).map(lambda rows: np.array(rows, dtype=np.int64))
    classes = [draw(labels), draw(labels)]
    if draw(st.booleans()):
        classes[draw(st.integers(0, 1))][:] = -1  # a domain without a trusted row
    return classes, count, per_class, count * per_class + draw(st.integers(0, 5)), draw(st.integers(0, 2**31))


@settings(max_examples=150, deadline=None)
@given(case=labelled())
def test_batches(case):
    classes, count, per_class, size, seed = case
    rows, labels = class_aware_batch(classes, count, per_class=per_class, size=size, rng=np.random.default_rng(seed))
    present = {int(c) for domain in classes for c in domain if c >= 0}
    enough: dict[int, int] = {}
    for domain in (0, 1):
        assert rows[domain].shape == labels[domain].shape == (size,)
        assert np.issubdtype(rows[domain].dtype, np.integer)
        np.testing.assert_array_equal(labels[domain], classes[domain][rows[domain]])
        for label in present & set(classes[domain].tolist()):
            if (labels[domain] == label).sum() >= per_class:
                enough[label] = enough.get(label, 0) + 1
    # Each of the drawn classes has its rows in every domain that knows it.
    homes = {label: sum(label in domain for domain in classes) for label in present}
    complete = [label for label, times in enough.items() if times == homes[label]]
    assert len(complete) >= min(count, len(present))
    again = class_aware_batch(classes, count, per_class=per_class, size=size, rng=np.random.default_rng(seed))
    np.testing.assert_array_equal(np.concatenate(rows), np.concatenate(again[0]))


def test_exactly_the_drawn_classes_and_untrusted_rows_fill_a_batch():
    classes = [np.repeat(np.arange(-1, 6), 10), np.repeat(np.arange(-1, 6), 10)]
    rows, labels = class_aware_batch(classes, 4, per_class=3, size=20, rng=np.random.default_rng(0))
    assert set(labels[0]) == set(labels[1])  # the same classes in both domains
    for domain in (0, 1):
        values, counts = np.unique(labels[domain], return_counts=True)
        assert dict(zip(values.tolist(), counts.tolist(), strict=True)) == dict.fromkeys(values.tolist(), 3) | {-1: 8}
        assert len(set(rows[domain])) == 20  # no picture twice while there are others


def test_rows_repeat_only_where_a_class_has_too_few():
    classes = [np.array([0, 1, 1, 1]), np.array([0, 0, 0, 1])]
    rows, _ = class_aware_batch(classes, 2, per_class=3, size=6, rng=np.random.default_rng(0))
    assert sorted(rows[0]) == [0, 0, 0, 1, 2, 3]
    assert sorted(rows[1]) == [0, 1, 2, 3, 3, 3]


def test_every_class_is_drawn_sooner_or_later():
    classes = [np.arange(6), np.arange(6)]
    draw = np.random.default_rng(0)
    seen = {int(c) for _ in range(40) for c in class_aware_batch(classes, 1, per_class=1, size=1, rng=draw)[1][0]}
    assert seen == set(range(6))


def test_a_batch_too_small_is_refused():
    with pytest.raises(ValueError, match=r"size 5 is less than 3 classes x 2 pictures: raise size"):
        class_aware_batch([np.zeros(9, int)] * 2, 3, per_class=2, size=5, rng=np.random.default_rng(0))
