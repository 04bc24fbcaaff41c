"""Labels, the quota and the quality report against plain loops."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from clair.pseudo_labels import PseudoLabels, pseudo_label, quality, quota

SHARES = st.integers(1, 100).map(lambda part: part / 100)


def cases(seed, pictures, classes, width):
    rng = torch.Generator().manual_seed(seed)
    x = F.normalize(torch.randn(pictures, width, generator=rng, dtype=torch.float64), dim=-1)
    t = F.normalize(torch.randn(classes, width, generator=rng, dtype=torch.float64), dim=-1)
    return x, t


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**31), pictures=st.integers(1, 12), classes=st.integers(1, 5), scale=st.floats(0.5, 60),
    share=SHARES,
)  # fmt: skip
def test_equals_a_softmax_in_loops(seed, pictures, classes, scale, share):
    x, t = cases(seed, pictures, classes, 4)
    labels = pseudo_label(x, t, scale=scale, share=share)
    expected_class, expected_confidence = [], []
    for i in range(pictures):
        scores = [math.exp(scale * sum(float(x[i, j] * t[c, j]) for j in range(4))) for c in range(classes)]
        probabilities = [score / sum(scores) for score in scores]
        np.testing.assert_allclose(labels.probabilities[i], probabilities, rtol=1e-9)
        expected_class.append(max(range(classes), key=probabilities.__getitem__))
        expected_confidence.append(max(probabilities))
    assert labels.classes.tolist() == expected_class
    np.testing.assert_allclose(labels.confidence, expected_confidence, rtol=1e-9)
    assert labels.keep.tolist() == naive_quota(labels.classes.tolist(), labels.confidence.tolist(), share)
    assert labels.trusted().tolist() == [c if k else -1 for c, k in zip(expected_class, labels.keep, strict=True)]


def naive_quota(classes, confidence, share):
    """Row by row: kept if fewer than ceil(share n) rows of its class are better or equal and earlier."""
    keep = []
    for i, (label, value) in enumerate(zip(classes, confidence, strict=True)):
        others = [j for j, other in enumerate(classes) if other == label]
        ahead = sum(confidence[j] > value or (confidence[j] == value and j < i) for j in others)
        keep.append(ahead < math.ceil(Fraction(share).limit_denominator(1000) * len(others)))
    return keep


@settings(max_examples=80, deadline=None)
@given(
    rows=st.lists(st.tuples(st.integers(0, 3), st.sampled_from([0.2, 0.5, 0.5001, 0.9])), min_size=1, max_size=25),
    share=SHARES,
)
def test_quota_keeps_the_exact_count_of_every_class_and_the_earlier_of_equals(rows, share):
    classes, confidence = (list(column) for column in zip(*rows, strict=True))
    keep = quota(torch.tensor(classes), torch.tensor(confidence), share)
    assert keep.tolist() == naive_quota(classes, confidence, share)
    for label in set(classes):
        members = [i for i, other in enumerate(classes) if other == label]
        exact = math.ceil(Fraction(share).limit_denominator(1000) * len(members))
        assert int(keep[members].sum()) == exact
        assert exact >= 1


def test_quota_by_hand():
    classes = torch.tensor([0, 0, 0, 0, 0, 1, 1, 2])
    confidence = torch.tensor([0.3, 0.9, 0.5, 0.9, 0.1, 0.2, 0.2, 0.01])
    # ceil(.4 x 5) = 2, ceil(.4 x 2) = 1, ceil(.4 x 1) = 1
    assert quota(classes, confidence, 0.4).tolist() == [False, True, False, True, False, True, False, True]
    # .28 x 25 is a little more than 7 in floating point and must still mean 7
    assert 0.28 * 25 > 7
    assert int(quota(torch.zeros(25).long(), torch.arange(25) / 25, 0.28).sum()) == 7


def test_a_tiny_share_still_keeps_the_best_of_each_class():
    assert quota(torch.tensor([0, 0, 1]), torch.tensor([0.1, 0.2, 0.3]), 1e-12).tolist() == [False, True, True]


def test_share_one_keeps_all():
    x, t = cases(0, 30, 5, 4)
    labels = pseudo_label(x, t, scale=10.0, share=1.0)
    assert labels.keep.all()
    assert torch.equal(labels.trusted(), labels.classes)


def test_no_labels_no_quota():
    assert quota(torch.empty(0, dtype=torch.long), torch.empty(0), 0.5).tolist() == []


def test_errors_say_what_would_be_right():
    x, t = cases(0, 3, 2, 4)
    with pytest.raises(ValueError, match=r"no rule 'confidense' of refinement: use one of confidence"):
        pseudo_label(x, t, scale=1.0, rule="confidense")
    for share in (0.0, -0.5, 1.01, float("nan")):
        with pytest.raises(ValueError, match=r"choose one above 0 and at most 1"):
            pseudo_label(x, t, scale=1.0, share=share)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**31), count=st.integers(1, 30), bins=st.integers(1, 12))
def test_quality_equals_loops(seed, count, bins):
    rng = np.random.default_rng(seed)
    names = ("ant", "bee", "cat")
    classes, confidence = rng.integers(0, 3, count), rng.uniform(0, 1, count)
    confidence[0] = 1.0  # the last step includes its upper end
    keep = rng.uniform(size=count) < 0.5
    keep[-1] = True
    truth = np.array(names)[rng.integers(0, 3, count)]
    labels = PseudoLabels(
        torch.from_numpy(classes), torch.from_numpy(confidence), torch.from_numpy(keep), torch.zeros(count, 3)
    )
    right = [names[c] == t for c, t in zip(classes, truth, strict=True)]
    error = 0.0
    for b in range(bins):
        upper = (b + 1) / bins if b + 1 < bins else 1.1
        rows = [i for i in range(count) if b / bins <= confidence[i] < upper]
        if rows:
            gap = sum(right[i] for i in rows) / len(rows) - sum(confidence[i] for i in rows) / len(rows)
            error += len(rows) / count * abs(gap)
    found = quality(labels, truth, names, bins)
    assert found == pytest.approx(
        {
            "accuracy": sum(right) / count,
            "accuracy of trusted": sum(r for r, k in zip(right, keep, strict=True) if k) / sum(keep),
            "share trusted": sum(keep) / count,
            "expected calibration error": error,
        }
    )
    assert all(type(value) is float for value in found.values())


def test_calibration_by_hand():
    labels = PseudoLabels(
        torch.tensor([0, 0, 1, 1]),
        torch.tensor([0.95, 0.95, 0.55, 0.55]),
        torch.ones(4, dtype=torch.bool),
        torch.zeros(4, 2),
    )
    found = quality(labels, np.array(["a", "a", "a", "b"]), ("a", "b"))
    assert found["accuracy"] == 0.75
    assert found["expected calibration error"] == pytest.approx(0.5 * 0.05 + 0.5 * 0.05)
