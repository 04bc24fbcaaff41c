"""The closed forms against a numeric minimiser, their limits and their invariances."""

import contextlib

import jaxtyping
import numpy as np
import pytest
import safetensors.torch
import scipy.linalg
import scipy.optimize
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from clair.mapping import METHODS, DomainMap, domain_map, identity_ridge

SHAPES = st.tuples(st.integers(1, 8), st.integers(2, 6), st.integers(0, 2**32 - 1))


def texts(count, width, seed=0, gap=0.6):
    """Two tables of unit rows, the second a shifted and disturbed copy of the first."""
    rng = torch.Generator().manual_seed(seed)
    a = F.normalize(torch.randn(count, width, generator=rng, dtype=torch.float64), dim=-1)
    shift = torch.randn(width, generator=rng, dtype=torch.float64)
    b = a + gap * F.normalize(shift, dim=0) + 0.3 * torch.randn(count, width, generator=rng, dtype=torch.float64)
    return a, F.normalize(b, dim=-1)


def objective(matrix, a, b, penalty):
    """|AW - B|² + penalty |W - I|², entry by entry."""
    count, width = a.shape
    value = 0.0
    for i in range(count):
        for j in range(width):
            value += (sum(a[i, k] * matrix[k, j] for k in range(width)) - b[i, j]) ** 2
    for k in range(width):
        for j in range(width):
            value += penalty * (matrix[k, j] - (k == j)) ** 2
    return float(value)


def random_turn(width, seed):
    square = np.random.default_rng(seed).normal(size=(width, width))
    return scipy.linalg.expm(square - square.T)


@contextlib.contextmanager
def shapes_unchecked():
    """Without the tests' own check of shapes, which would come before the library's sentence."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", before)


# -- identity-ridge -----------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "width"), [(2, 3), (3, 3), (6, 3)])
@pytest.mark.parametrize("penalty", [0.05, 2.0])
def test_identity_ridge_is_where_a_numeric_minimiser_ends(count, width, penalty):
    a, b = texts(count, width, seed=count)
    start = np.random.default_rng(1).normal(size=width * width)
    found = scipy.optimize.minimize(
        lambda flat: objective(flat.reshape(width, width), a.numpy(), b.numpy(), penalty), start, tol=1e-10
    )
    ours = identity_ridge(a, b, penalty)
    np.testing.assert_allclose(ours, found.x.reshape(width, width), atol=1e-5)
    assert objective(ours.numpy(), a.numpy(), b.numpy(), penalty) <= found.fun + 1e-12


@settings(max_examples=40, deadline=None)
@given(shape=SHAPES, penalty=st.floats(1e-3, 1e3))
def test_gradient_of_the_objective_vanishes_and_both_systems_agree(shape, penalty):
    count, width, seed = shape
    a, b = texts(count, width, seed)
    matrix, eye = identity_ridge(a, b, penalty).requires_grad_(), torch.eye(width, dtype=torch.float64)
    value = (a @ matrix - b).square().sum() + penalty * (matrix - eye).square().sum()
    value.backward()
    assert matrix.grad.abs().max() < 1e-9 * (1 + penalty)
    a, b, eye = a.numpy(), b.numpy(), eye.numpy()
    primal = np.linalg.solve(a.T @ a + penalty * eye, a.T @ b + penalty * eye)
    dual = eye + a.T @ np.linalg.solve(a @ a.T + penalty * np.eye(count), b - a)
    np.testing.assert_allclose(matrix.detach(), primal, atol=1e-9)
    np.testing.assert_allclose(matrix.detach(), dual, atol=1e-9)


@pytest.mark.parametrize(("count", "width"), [(5, 12), (12, 5)])
def test_the_strength_is_in_units_of_the_mean_square_of_a_text_direction(count, width):
    a, b = texts(count, width)
    penalty = 0.7 * float(torch.trace(a.T @ a)) / width
    torch.testing.assert_close(domain_map(a, b, strength=0.7).matrix, identity_ridge(a, b, penalty))


def test_a_vanishing_strength_maps_each_text_onto_its_twin_and_leaves_the_rest():
    a, b = texts(4, 9)
    carry = domain_map(a, b, strength=1e-12)
    torch.testing.assert_close(a @ carry.matrix, b, atol=1e-8, rtol=0)
    beyond = torch.from_numpy(scipy.linalg.null_space(a.numpy())).T  # directions that no text has
    assert beyond.shape == (5, 9)
    for strength in (1e-12, 1.0, 100.0):
        matrix = domain_map(a, b, strength=strength).matrix
        torch.testing.assert_close(beyond @ matrix, beyond, atol=1e-9, rtol=0)


def test_an_infinite_strength_is_the_identity():
    a, b = texts(4, 9)
    torch.testing.assert_close(domain_map(a, b, strength=1e12).matrix, torch.eye(9).double(), atol=1e-9, rtol=0)
    gaps = [(domain_map(a, b, strength=s).matrix - torch.eye(9)).norm() for s in (0.01, 0.1, 1.0, 10.0)]
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[0] > 2 * gaps[-1]


@pytest.mark.parametrize("method", ["identity-ridge", "orthogonal", "shift", "pseudo-inverse"])
@pytest.mark.parametrize(("count", "width"), [(3, 8), (6, 8), (9, 8)])
def test_naming_every_class_thrice_changes_nothing(method, count, width):
    # 6 x 8 even passes from the small system to the large one.
    a, b = texts(count, width)
    once, thrice = domain_map(a, b, method=method), domain_map(a.repeat(3, 1), b.repeat(3, 1), method=method)
    torch.testing.assert_close(once.matrix, thrice.matrix)
    torch.testing.assert_close(once.shift, thrice.shift)


@pytest.mark.parametrize("method", METHODS)
def test_order_of_classes_is_of_no_matter(method):
    a, b = texts(6, 9)
    order = torch.randperm(6, generator=torch.Generator().manual_seed(1))
    one, other = domain_map(a, b, method=method), domain_map(a[order], b[order], method=method)
    torch.testing.assert_close(one.matrix, other.matrix)
    torch.testing.assert_close(one.shift, other.shift)


@pytest.mark.parametrize("method", METHODS)
def test_turning_the_space_turns_the_map(method):
    a, b = texts(6, 9)
    turn = torch.from_numpy(random_turn(9, 2))
    x = F.normalize(torch.randn(5, 9, generator=torch.Generator().manual_seed(3)), dim=-1)
    one, other = domain_map(a, b, method=method), domain_map(a @ turn, b @ turn, method=method)
    turned = (x.double() @ turn).float()
    torch.testing.assert_close(other(turned), (one(x).double() @ turn).float(), atol=1e-5, rtol=0)
    torch.testing.assert_close(other.gallery(turned), (one.gallery(x).double() @ turn).float(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("method", ["identity-ridge", "orthogonal"])
def test_noise_of_rounding_size_moves_the_map_by_as_little(method):
    a, b = texts(40, 192)
    noise = 1e-12 * torch.randn(b.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    moved = (domain_map(a, b + noise, method=method).matrix - domain_map(a, b, method=method).matrix).abs().max()
    assert 0 < moved < 1e-9


# -- the other maps -----------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "width"), [(3, 6), (9, 4)])
def test_orthogonal_is_a_rotation_and_no_other_is_better(count, width):
    a, b = texts(count, width)
    matrix = domain_map(a, b, method="orthogonal", strength=0.5).matrix.numpy()
    penalty = 0.5 * float((a * a).sum()) / width
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(width), atol=1e-12)
    best = objective(matrix, a.numpy(), b.numpy(), penalty)
    assert best < objective(np.eye(width), a.numpy(), b.numpy(), penalty)
    for seed in range(30):
        far = random_turn(width, seed)
        square = np.random.default_rng(seed).normal(size=(width, width))
        near = matrix @ scipy.linalg.expm(0.01 * (square - square.T))
        assert best < objective(far, a.numpy(), b.numpy(), penalty)
        assert best < objective(near, a.numpy(), b.numpy(), penalty)


def test_orthogonal_finds_the_rotation_that_was_applied():
    a, _ = texts(9, 4)
    turn = torch.from_numpy(random_turn(4, 5))
    torch.testing.assert_close(domain_map(a, a @ turn, method="orthogonal", strength=1e-12).matrix, turn)


@pytest.mark.parametrize(("count", "width"), [(3, 7), (9, 4)])
def test_pseudo_inverse_is_least_squares_of_least_norm(count, width):
    a, b = texts(count, width)
    matrix = domain_map(a, b, method="pseudo-inverse").matrix
    torch.testing.assert_close(matrix, torch.from_numpy(scipy.linalg.lstsq(a.numpy(), b.numpy())[0]))
    residual = (a @ matrix - b).norm()
    rng = torch.Generator().manual_seed(0)
    if count < width:
        assert residual < 1e-10
        beyond = torch.from_numpy(scipy.linalg.null_space(a.numpy()))
        torch.testing.assert_close(beyond.T @ matrix, torch.zeros(width - count, width).double())  # forgotten
        other = matrix + beyond @ torch.randn(width - count, width, generator=rng, dtype=torch.float64)
        assert (a @ other - b).norm() < 1e-10
        assert other.norm() > matrix.norm()
    else:
        assert residual < (a @ (matrix + 0.01 * torch.randn(width, width, generator=rng)) - b).norm()


def features(count, width, seed=4):
    return F.normalize(torch.randn(count, width, generator=torch.Generator().manual_seed(seed)), dim=-1)


def unit(x):
    x = x.double()
    return (x / x.square().sum(1, keepdim=True).sqrt()).float()


def test_shift_centre_and_none_in_words():
    (a, b), x = texts(4, 7), features(5, 7)
    shift, centre, none = (domain_map(a, b, method=method) for method in ("shift", "centre", "none"))
    torch.testing.assert_close(shift(x), unit(x + b.mean(0) - a.mean(0)))
    torch.testing.assert_close(shift.gallery(x), x)
    torch.testing.assert_close(centre(x), unit(x - a.mean(0)))
    torch.testing.assert_close(centre.gallery(x), unit(x - b.mean(0)))
    torch.testing.assert_close(none(x), x)
    torch.testing.assert_close(none.gallery(x), x)


@pytest.mark.parametrize("method", METHODS)
def test_with_means_everything_happens_on_centred_features(method):
    (a, b), x = texts(4, 7), features(5, 7)
    mean_a, mean_b = features(9, 7, seed=8).mean(0), features(9, 7, seed=9).mean(0)
    carry = domain_map(a, b, method=method, means=(mean_a, mean_b))
    centred = x.double() - mean_a
    rest = domain_map(a - a.mean(0), b - b.mean(0), method="none" if method == "centre" else method)
    torch.testing.assert_close(carry(x), unit(centred @ rest.matrix + rest.shift))
    torch.testing.assert_close(carry.gallery(x), unit(x - mean_b))


@pytest.mark.parametrize("method", METHODS)
def test_gives_unit_length_float32_and_leaves_its_input(method):
    (a, b), x = texts(4, 7), features(5, 7)
    a, b = a.float(), b.float()
    copies = [t.clone() for t in (a, b, x)]
    carry = domain_map(a, b, method=method)
    for out in (carry(x), carry.gallery(x)):
        assert out.dtype == torch.float32
        torch.testing.assert_close(out.norm(dim=1), torch.ones(5))
    assert all(torch.equal(t, copy) for t, copy in zip((a, b, x), copies, strict=True))
    assert carry.matrix.dtype == torch.float64


def test_float32_texts_are_solved_in_float64():
    a, b = (t.float() for t in texts(30, 60))
    torch.testing.assert_close(
        domain_map(a, b, strength=1e-4).matrix, domain_map(a.double(), b.double(), strength=1e-4).matrix, rtol=0, atol=0
    )


@pytest.mark.parametrize("method", METHODS)
def test_the_same_call_gives_the_same_bits(method):
    a, b = texts(30, 60)
    one, other = domain_map(a, b, method=method), domain_map(a.clone(), b.clone(), method=method)
    assert torch.equal(one.matrix, other.matrix)
    assert torch.equal(one.shift, other.shift)
    assert torch.equal(one.gallery_shift, other.gallery_shift)


# -- files and errors ---------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_saves_and_loads_every_bit(tmp_path, method):
    a, b = texts(4, 7)
    carry = domain_map(a, b, method=method)
    carry.save(tmp_path / "deep" / "map.safetensors")
    loaded = DomainMap.load(tmp_path / "deep" / "map.safetensors")
    assert loaded.method == method
    for name in ("matrix", "shift", "gallery_shift"):
        assert torch.equal(getattr(loaded, name), getattr(carry, name))
    x = features(5, 7)
    assert torch.equal(loaded(x), carry(x))


def test_another_file_is_refused(tmp_path):
    path = tmp_path / "other.safetensors"
    safetensors.torch.save_file({"matrix": torch.eye(2)}, path)
    with pytest.raises(ValueError, match="does not hold a domain map"):
        DomainMap.load(path)


def test_errors_say_what_would_be_right():
    a, b = texts(4, 7)
    with pytest.raises(ValueError, match=r"no map 'ridge': use one of none, identity-ridge"):
        domain_map(a, b, method="ridge")
    for strength in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="choose one above 0"):
            domain_map(a, b, strength=strength)
    with shapes_unchecked(), pytest.raises(ValueError, match=r"same shape \[C, D\], got \[4, 7\] and \[3, 7\]"):
        domain_map(a, b[:3])
    with shapes_unchecked(), pytest.raises(ValueError, match="same shape"):
        domain_map(a[0], b[0])
