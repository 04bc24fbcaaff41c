"""The losses against double loops written from the equations, and what must hold for any batch."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from clair.losses import cluster_sums, inter_cluster, inter_domain, inter_instance, text_term

NAMES = ("instance", "cluster", "domain", "text")


@st.composite
def batches(draw, most_classes=4):
    """A batch: pictures of two domains in one to three views, some labels not trusted, some classes absent."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    classes, width = draw(st.integers(1, most_classes)), draw(st.integers(2, 5))
    pictures = draw(st.lists(st.tuples(st.integers(0, 1), st.integers(-1, classes - 1)), min_size=1, max_size=6))
    views = draw(st.integers(1, 3))
    # Two domains may use the same item numbers: a twin must not become a positive.
    items = [rng.integers(0, 3) if draw(st.booleans()) else 10 + i for i in range(len(pictures))]
    return make(rng, classes, width, pictures, views, items)


def make(rng, classes, width, pictures, views, items):
    def unit(*shape):
        return F.normalize(torch.from_numpy(rng.normal(size=shape)), dim=-1)

    domains, labels = zip(*pictures, strict=True)
    return {
        "z": unit(len(pictures) * views, width),
        "classes": torch.tensor(labels).repeat(views),
        "weights": torch.from_numpy(rng.uniform(0.05, 1, len(pictures))).repeat(views),
        "domains": torch.tensor(domains).repeat(views),
        "items": torch.tensor(np.array(items)).repeat(views),
        "table": unit(2, classes, width),
        "temperature": float(rng.uniform(0.05, 1)),
    }


def example(seed=0):
    """A fixed batch with everything in it: trusted and untrusted labels, an absent class, two views."""
    pictures = [(0, 0), (0, 0), (0, 2), (0, -1), (1, 0), (1, 2), (1, 2), (1, -1)]
    return make(np.random.default_rng(seed), 4, 5, pictures, 2, range(8))


def loss(name, b):
    rows = b["z"], b["classes"], b["weights"], b["domains"]
    if name == "instance":
        return inter_instance(*rows, items=b["items"], temperature=b["temperature"])
    if name == "text":
        return text_term(*rows, b["table"], scale=1 / b["temperature"])
    return {"cluster": inter_cluster, "domain": inter_domain}[name](*rows, b["table"], temperature=b["temperature"])


# -- oracles: the equations, one sum a loop, plain floats ---------------------------------------


def dot(a, b):
    return sum(float(x) * float(y) for x, y in zip(a, b, strict=True))


def naive_instance(b):
    z, y, w, d, item, tau = (b[k] for k in ("z", "classes", "weights", "domains", "items", "temperature"))
    total, mass = 0.0, 0.0
    for i in range(len(z)):
        others = [a for a in range(len(z)) if a != i and d[a] == d[i]]
        below = sum(math.exp(dot(z[i], z[a]) / tau) for a in others)
        strength = {}
        for p in others:
            if item[p] == item[i]:
                strength[p] = 1.0
            elif y[p] == y[i] and y[i] >= 0:
                strength[p] = float(w[i] * w[p])
        if not strength:
            continue
        share = sum(strength.values())
        each = -sum(s / share * math.log(math.exp(dot(z[i], z[p]) / tau) / below) for p, s in strength.items())
        total, mass = total + float(w[i]) * each, mass + float(w[i])
    return total / mass if mass else 0.0


def naive_cluster(b):
    z, y, w, d, c, tau = (b[k] for k in ("z", "classes", "weights", "domains", "table", "temperature"))
    each = []
    for domain in (0, 1):
        for k in range(c.shape[1]):
            rows = [i for i in range(len(z)) if d[i] == domain and y[i] == k]
            if not rows:
                continue
            centroid = [sum(float(w[i]) * float(z[i][j]) for i in rows) for j in range(z.shape[1])]
            length = math.sqrt(sum(v * v for v in centroid))
            scores = [math.exp(dot([v / length for v in centroid], c[domain][m]) / tau) for m in range(c.shape[1])]
            each.append(-math.log(scores[k] / sum(scores)))
    return sum(each) / len(each) if each else 0.0


def naive_against(b, domain_of):
    z, y, w, d, c, tau = (b[k] for k in ("z", "classes", "weights", "domains", "table", "temperature"))
    total, mass = 0.0, 0.0
    for i in range(len(z)):
        if y[i] < 0:
            continue
        scores = [math.exp(dot(z[i], c[domain_of(int(d[i]))][m]) / tau) for m in range(c.shape[1])]
        total, mass = total - float(w[i]) * math.log(scores[y[i]] / sum(scores)), mass + float(w[i])
    return total / mass if mass else 0.0


ORACLES = {
    "instance": naive_instance,
    "cluster": naive_cluster,
    "domain": lambda b: naive_against(b, lambda domain: 1 - domain),
    "text": lambda b: naive_against(b, lambda domain: domain),
}


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=40, deadline=None)
@given(batch=batches())
def test_equals_the_double_loop(name, batch):
    assert float(loss(name, batch)) == pytest.approx(ORACLES[name](batch), rel=1e-9, abs=1e-9)


@settings(max_examples=25, deadline=None)
@given(batch=batches())
def test_cluster_sums_equal_a_loop(batch):
    count = batch["table"].shape[1]
    sums, mass = cluster_sums(batch["z"], batch["classes"], batch["weights"], batch["domains"], count)
    expected, weight = torch.zeros_like(batch["table"]), torch.zeros(2, count, dtype=torch.float64)
    for z, y, w, d in zip(batch["z"], batch["classes"], batch["weights"], batch["domains"], strict=True):
        if y >= 0:
            expected[d, y] += w * z
            weight[d, y] += w
    torch.testing.assert_close(sums, expected)
    torch.testing.assert_close(mass, weight)


# -- computed by hand ---------------------------------------------------------------------------

EAST, NORTH = [1.0, 0.0], [0.0, 1.0]


def rows(z, classes, weights=None, domains=None):
    count = len(z)
    return (
        torch.tensor(z, dtype=torch.float64),
        torch.tensor(classes),
        torch.tensor(weights or [1.0] * count, dtype=torch.float64),
        torch.tensor(domains or [0] * count),
    )


def test_instance_by_hand():
    # Two pictures at right angles, two equal views each: the positive scores 1, the two others 0.
    value = inter_instance(
        *rows([EAST, EAST, NORTH, NORTH], [-1] * 4), items=torch.tensor([0, 0, 1, 1]), temperature=1.0
    )
    assert float(value) == pytest.approx(math.log(math.e + 2) - 1)


def test_instance_by_hand_with_a_weighted_friend():
    # Anchor 0 (weight .5) has its own view at score 1, strength 1, and a friend at 0, strength .5 x .5.
    # Anchor 1 is alike; the friend (weight .5) has no second view: two friends at 0, pool of two.
    value = inter_instance(
        *rows([EAST, EAST, NORTH], [3, 3, 3], [0.5] * 3), items=torch.tensor([0, 0, 1]), temperature=1.0
    )
    anchor = math.log(math.e + 1) - 1 / 1.25
    assert float(value) == pytest.approx((anchor + anchor + math.log(2)) / 3)


def test_cluster_domain_and_text_by_hand():
    table = torch.tensor([[EAST, NORTH], [NORTH, EAST]], dtype=torch.float64)
    one = rows([EAST], [0])
    assert float(inter_cluster(*one, table, temperature=1.0)) == pytest.approx(math.log(1 + math.exp(-1)))
    assert float(inter_domain(*one, table, temperature=1.0)) == pytest.approx(math.log(1 + math.e))
    assert float(text_term(*one, table, scale=2.0)) == pytest.approx(math.log(1 + math.exp(-2)))
    two = rows([EAST, NORTH], [0, 0], [3.0, 1.0])  # its centroid is (3, 1) / sqrt(10)
    gap = 2 / math.sqrt(10)
    assert float(inter_cluster(*two, table, temperature=1.0)) == pytest.approx(math.log(1 + math.exp(-gap)))
    weighed = (3 * math.log(1 + math.e) + math.log(1 + math.exp(-1))) / 4
    assert float(inter_domain(*two, table, temperature=1.0)) == pytest.approx(weighed)


# -- gradients ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_gradient_equals_finite_differences(name):
    batch = example()

    def of(z, table, weights):
        return loss(name, batch | {"z": z, "table": table, "weights": weights, "temperature": 0.5})

    inputs = [batch[key].clone().requires_grad_() for key in ("z", "table", "weights")]
    assert torch.autograd.gradcheck(of, inputs, eps=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_gradient_is_finite_and_not_zero_in_float32_at_a_low_temperature(name):
    batch = {key: v.float() if torch.is_tensor(v) and v.is_floating_point() else v for key, v in example().items()}
    batch["temperature"] = 0.01
    z = batch["z"].requires_grad_()
    value = loss(name, batch)
    value.backward()
    assert value.dtype == torch.float32
    assert torch.isfinite(value)
    assert torch.isfinite(z.grad).all()
    assert z.grad.abs().max() > 0


# -- what must hold for any batch ---------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=15, deadline=None)
@given(batch=batches(), seed=st.integers(0, 99))
def test_order_of_rows_is_of_no_matter(name, batch, seed):
    order = torch.randperm(len(batch["z"]), generator=torch.Generator().manual_seed(seed))
    shuffled = batch | {key: batch[key][order] for key in ("z", "classes", "weights", "domains", "items")}
    torch.testing.assert_close(loss(name, shuffled), loss(name, batch))


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=15, deadline=None)
@given(batch=batches(), seed=st.integers(0, 99))
def test_turning_the_space_changes_nothing(name, batch, seed):
    width = batch["z"].shape[1]
    square = torch.randn(width, width, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    turn = torch.linalg.qr(square).Q
    turned = batch | {"z": batch["z"] @ turn, "table": batch["table"] @ turn}
    torch.testing.assert_close(loss(name, turned), loss(name, batch), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=15, deadline=None)
@given(batch=batches())
def test_exchanging_the_domains_changes_nothing(name, batch):
    exchanged = batch | {"domains": 1 - batch["domains"], "table": batch["table"].flip(0)}
    torch.testing.assert_close(loss(name, exchanged), loss(name, batch))


@settings(max_examples=30, deadline=None)
@given(batch=batches())
def test_bounds(batch):
    count, tau = batch["table"].shape[1], batch["temperature"]
    low = math.log1p((count - 1) * math.exp(-2 / tau))  # cosines lie in -1..1
    high = math.log1p((count - 1) * math.exp(2 / tau))
    trusted = bool((batch["classes"] >= 0).any())
    for name in ("cluster", "domain", "text"):
        value = float(loss(name, batch))
        assert (low if trusted else 0.0) - 1e-9 <= value <= high + 1e-9
    # The cross-entropy of an anchor's strengths is at least their entropy, 0 for a single positive.
    rows = [batch[key].tolist() for key in ("classes", "weights", "domains", "items")]
    total, mass = 0.0, 0.0
    for i, (y, w, d, item) in enumerate(zip(*rows, strict=True)):
        pool = [row for j, row in enumerate(zip(*rows, strict=True)) if j != i and row[2] == d]
        s = [1.0 if row[3] == item else w * row[1] for row in pool if row[3] == item or row[0] == y >= 0]
        if s:
            total, mass = total - w * sum(v / sum(s) * math.log(v / sum(s)) for v in s), mass + w
    assert float(loss("instance", batch)) >= (total / mass if mass else 0.0) - 1e-9


@pytest.mark.parametrize("name", NAMES)
def test_nothing_trusted_and_no_second_view_gives_zero_and_a_zero_gradient(name):
    batch = example()
    batch |= {"classes": torch.full_like(batch["classes"], -1), "items": torch.arange(len(batch["z"]))}
    z = batch["z"].requires_grad_()
    value = loss(name, batch)
    value.backward()
    assert value.item() == 0
    assert torch.equal(z.grad, torch.zeros_like(z))


def test_a_picture_whose_label_is_not_trusted_still_has_its_second_view():
    batch = example()
    batch["classes"] = torch.full_like(batch["classes"], -1)
    assert float(loss("instance", batch)) > 0


@pytest.mark.parametrize("name", ["cluster", "domain", "text"])
def test_rows_that_are_not_trusted_take_no_part(name):
    batch = example()
    z = batch["z"].requires_grad_()
    loss(name, batch).backward()
    moved = z.grad.abs().sum(1) > 0
    assert torch.equal(moved, batch["classes"] >= 0)


def test_an_untrusted_label_is_no_class_of_its_own():
    batch = example()
    alone = batch | {"classes": torch.where(batch["classes"] >= 0, batch["classes"], -1)}
    first = torch.arange(len(batch["z"]))[batch["classes"] < 0]
    apart = alone["classes"].clone()
    apart[first] = 90 + batch["items"][first]  # a class shared with its own view only
    torch.testing.assert_close(loss("instance", alone), loss("instance", batch | {"classes": apart}))


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_of_one_class(name):
    pictures = [(0, 0), (0, 0), (1, 0), (1, 0)]
    batch = make(np.random.default_rng(3), 1, 3, pictures, 2, range(4))
    value = float(loss(name, batch))
    if name == "instance":
        assert value == pytest.approx(naive_instance(batch))
        assert value > 0
    else:  # one candidate only: always found
        assert value == pytest.approx(0, abs=1e-12)


def test_one_row_has_no_positive():
    assert float(inter_instance(*rows([EAST], [0]), items=torch.tensor([0]))) == 0


def test_a_twin_in_the_other_domain_is_no_positive():
    value = inter_instance(*rows([EAST, EAST], [-1, -1], domains=[0, 1]), items=torch.tensor([7, 7]))
    assert float(value) == 0


@pytest.mark.parametrize("name", ["domain", "text"])
def test_only_the_proportions_of_the_weights_count(name):
    batch = example()
    scaled = batch | {"weights": 7 * batch["weights"]}
    torch.testing.assert_close(loss(name, scaled), loss(name, batch))
    other = batch | {"weights": batch["weights"] ** 3}
    assert abs(float(loss(name, other)) - float(loss(name, batch))) > 1e-4


@pytest.mark.parametrize("name", NAMES)
def test_descent_along_the_gradient_lowers_the_loss(name):
    batch = example(1)
    z = batch["z"].clone().requires_grad_()
    before = loss(name, batch | {"z": z})
    before.backward()
    after = loss(name, batch | {"z": (z - 0.01 * z.grad).detach()})
    assert after.item() < before.item()
