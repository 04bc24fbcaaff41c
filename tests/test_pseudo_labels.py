"""Labels, the quota and the quality report against plain loops."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from clair import pseudo_labels as module
from clair.pseudo_labels import RULES, PseudoLabels, prior_bias, pseudo_label, quality, quota

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


# -- rules of refinement ------------------------------------------------------------------------


def world(seed=0, classes=6, each=40, width=24, noise=0.9):
    """Pictures around class directions, and texts that know these only roughly and favour some classes."""
    rng = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, width, generator=rng, dtype=torch.float64)
    truth = torch.arange(classes).repeat_interleave(each)
    x = centres[truth] + noise * torch.randn(len(truth), width, generator=rng, dtype=torch.float64)
    shift = 2 * torch.randn(width, generator=rng, dtype=torch.float64)
    t = centres + 1.2 * torch.randn(classes, width, generator=rng, dtype=torch.float64)
    return F.normalize(x + shift, dim=1), F.normalize(t, dim=1), truth


def accuracy(labels, truth):
    return float((labels.classes == truth).double().mean())


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_gives_probabilities_the_quota_and_leaves_its_input(rule):
    x, t, _ = world()
    before = x.clone(), t.clone()
    labels = pseudo_label(x, t, scale=12.0, rule=rule, share=0.5)
    torch.testing.assert_close(labels.probabilities.sum(1), torch.ones(len(x), dtype=x.dtype))
    assert (labels.confidence == labels.probabilities.max(1).values).all()
    assert labels.keep.tolist() == naive_quota(labels.classes.tolist(), labels.confidence.tolist(), 0.5)
    assert torch.equal(x, before[0])
    assert torch.equal(t, before[1])
    again = pseudo_label(x, t, scale=12.0, rule=rule, share=0.5)
    assert torch.equal(labels.probabilities, again.probabilities)


@pytest.mark.parametrize("rule", [rule for rule in RULES if rule != "confidence"])
def test_every_rule_can_mend_labels_where_pictures_form_groups(rule):
    gains = []
    for seed in range(5):
        x, t, truth = world(seed)
        plain, refined = (pseudo_label(x, t, scale=12.0, rule=r, balance=1.0) for r in ("confidence", rule))
        gains.append(accuracy(refined, truth) - accuracy(plain, truth))
    assert np.mean(gains) > 0.02, gains


@pytest.mark.parametrize("rule", RULES)
def test_order_of_pictures_and_number_of_chunks_do_not_matter(rule, monkeypatch):
    x, t, _ = world()
    usual = pseudo_label(x, t, scale=12.0, rule=rule)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(1))
    turned = pseudo_label(x[order], t, scale=12.0, rule=rule)
    torch.testing.assert_close(turned.probabilities, usual.probabilities[order])
    monkeypatch.setattr(module, "ROWS", 7)
    monkeypatch.setattr(module, "BLOCK", 5)
    torch.testing.assert_close(pseudo_label(x, t, scale=12.0, rule=rule).probabilities, usual.probabilities)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31), balance=st.floats(0, 1))
def test_the_prior_is_met(seed, balance):
    x, t = cases(seed, 30, 4, 5)
    logits = 10 * x @ t.T
    bias = prior_bias(logits, balance)
    start = torch.softmax(logits, dim=1).mean(0)
    prior = start ** (1 - balance) / (start ** (1 - balance)).sum()
    torch.testing.assert_close(torch.softmax(logits - bias, dim=1).mean(0), prior, atol=1e-5, rtol=0)


def test_the_bias_is_the_minimiser_of_its_convex_function():
    x, t = cases(3, 40, 5, 6)
    logits = 15 * x @ t.T
    bias = prior_bias(logits, 1.0)
    prior = torch.full((5,), 0.2, dtype=x.dtype)

    def value(b):
        return float(torch.logsumexp(logits - b, 1).mean() + prior @ b)

    rng = torch.Generator().manual_seed(0)
    for size in (1e-2, 0.1, 1.0):
        assert value(bias) < value(bias + size * torch.randn(5, generator=rng, dtype=x.dtype))


def test_no_balance_is_no_change():
    x, t, _ = world()
    plain, same = (pseudo_label(x, t, scale=12.0, rule=rule, balance=0.0) for rule in ("confidence", "prior"))
    torch.testing.assert_close(same.probabilities, plain.probabilities, atol=1e-6, rtol=0)


def test_one_round_of_prototypes_in_plain_words():
    x, t, _ = world(classes=3, each=6)
    got = pseudo_label(x, t, scale=12.0, rule="prototypes", share=0.5, rounds=1)
    target = np.mean([np.std(row) for row in (12.0 * x @ t.T).numpy()])
    centred = F.normalize(x - x.mean(0), dim=1)
    text = centred @ F.normalize(t - t.mean(0), dim=1).T
    text = text * target / np.mean([np.std(row) for row in text.numpy()])
    p = torch.softmax(text, 1)
    trusted = quota(p.argmax(1), p.max(1).values, 0.5)
    prototypes = []
    for label in range(3):
        rows = [i for i in range(len(x)) if trusted[i] and p[i].argmax() == label]
        prototypes.append(F.normalize(sum(p[i].max() * centred[i] for i in rows), dim=0))
    image = centred @ torch.stack(prototypes).T
    image = image * target / np.mean([np.std(row) for row in image.numpy()])
    torch.testing.assert_close(got.probabilities, torch.softmax(text + image, 1))


def test_a_class_without_a_trusted_picture_keeps_its_text():
    x, t, _ = world(classes=4)
    far = F.normalize(-x.mean(0), dim=0)  # a class that no picture resembles
    labels = pseudo_label(x, torch.cat([t, far[None]]), scale=12.0, rule="prototypes")
    assert torch.isfinite(labels.probabilities).all()
    assert not (labels.classes == 4).any()


def test_propagation_in_plain_words():
    x, t, _ = world(classes=3, each=4)
    got = pseudo_label(x, t, scale=12.0, rule="propagation", neighbours=2)
    first = torch.softmax(12.0 * x @ t.T, 1)
    flow = torch.zeros(len(x), len(x), dtype=x.dtype)
    for i in range(len(x)):
        others = sorted((j for j in range(len(x)) if j != i), key=lambda j: -float(x[i] @ x[j]))[:2]
        for j in others:
            flow[i, j] = max(float(x[i] @ x[j]), 0.0) ** 3
        flow[i] /= flow[i].sum()
    spreading = first.clone()
    for _ in range(10):
        spreading = 0.5 * flow @ spreading + 0.5 * first
    torch.testing.assert_close(got.probabilities, spreading)


def test_gaussians_in_plain_words():
    x, t, _ = world(classes=3, each=8, width=5)
    got = pseudo_label(x, t, scale=12.0, rule="gaussian", rounds=1)
    logits = 12.0 * x @ t.T
    p = torch.softmax(logits, 1)
    means = torch.stack([(p[:, c, None] * x).sum(0) / p[:, c].sum() for c in range(3)])
    inside = sum(
        p[i, c] * torch.outer(x[i] - means[c], x[i] - means[c]) for i in range(len(x)) for c in range(3)
    ) / len(x)
    inside = inside + 0.1 * inside.trace() / 5 * torch.eye(5, dtype=x.dtype)
    inverse = torch.linalg.inv(inside)
    image = torch.stack([torch.stack([-(x[i] - m) @ inverse @ (x[i] - m) / 2 for m in means]) for i in range(len(x))])
    spreads = [np.mean([np.std(row) for row in part.numpy()]) for part in (logits, image)]
    torch.testing.assert_close(got.probabilities, torch.softmax(logits + image * spreads[0] / spreads[1], 1))


def test_few_pictures_or_classes_are_no_reason_to_fail():
    for rule in RULES:
        for pictures, classes in ((1, 3), (2, 1), (3, 5)):
            x, t = cases(1, pictures, classes, 6)
            labels = pseudo_label(x, t, scale=10.0, rule=rule)
            assert torch.isfinite(labels.probabilities).all(), (rule, pictures, classes)


def test_a_balance_outside_its_range_is_refused():
    x, t = cases(1, 3, 2, 4)
    with pytest.raises(ValueError, match=r"balance is 1\.5"):
        pseudo_label(x, t, scale=10.0, rule="prior", balance=1.5)
