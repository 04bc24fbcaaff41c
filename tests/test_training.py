"""fit: it learns, it is deterministic, and it peeks at nothing."""

import dataclasses

import numpy as np
import pytest
import torch

import clair
from clair.datasets import Truth
from clair.images import ImageSet
from clair.training import Fitted, Recipe, fit, label_training_images, move_prototypes, start_prototypes

SHORT = Recipe(steps=3, classes_per_batch=4, images_per_domain=10)


@pytest.fixture(scope="module")
def model():
    return clair.load_clip("iconclip", device="cpu")


@pytest.fixture(scope="module")
def bench():
    return clair.load_benchmark("emoji", split=1)


def weights(fitted):
    return {name: value.clone() for name, value in fitted.module.state_dict().items()}


def assert_same_bits(first, second):
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), name


@pytest.fixture(scope="module")
def fitted(bench, model):
    return fit(bench, model, SHORT, seed=5, progress=False)


def test_the_given_model_stays_as_it_is(bench, model):
    before, digest = weights(type("M", (), {"module": model.module})), model.weights_digest()
    fit(bench, model, SHORT, progress=False)
    assert_same_bits(before, dict(model.module.state_dict()))
    assert model.weights_digest() == digest


def test_training_moves_prompts_and_layernorms_and_nothing_else(fitted, model):
    before = dict(model.module.state_dict())
    moved = {
        name
        for name, value in fitted.module.state_dict().items()
        if name not in before or not torch.equal(value, before[name])
    }
    assert any("prompts" in name for name in moved)
    assert any("ln_" in name for name in moved)
    assert all("prompts" in name or "ln_" in name for name in moved), moved


def test_the_same_call_gives_the_same_bits_and_another_seed_others(bench, model, fitted):
    assert_same_bits(weights(fitted), weights(fit(bench, model, SHORT, seed=5, progress=False)))
    other = weights(fit(bench, model, SHORT, seed=6, progress=False))
    assert any(not torch.equal(value, other[name]) for name, value in weights(fitted).items())


def test_no_peeking_at_the_truth_of_training_images(bench, model, fitted):
    """Permuting the true labels and the code points of the training pictures changes not a bit."""
    rng = np.random.default_rng(0)
    shuffled = {
        domain: ImageSet(domain, tuple(rng.permutation(images.keys)), images.pixels)
        for domain, images in bench.train.items()
    }
    truth = Truth(
        train={domain: rng.permutation(labels) for domain, labels in bench.truth.train.items()},
        validation=bench.truth.validation,
        test=bench.truth.test,
    )
    blind = dataclasses.replace(bench, train=shuffled, truth=truth)
    assert_same_bits(weights(fitted), weights(fit(blind, model, SHORT, seed=5, progress=False)))


def test_no_peeking_at_unseen_classes(bench, model, fitted):
    """Noise for unseen and validation pictures, random words for their names: weights, means and maps stay."""
    rng = np.random.default_rng(1)

    def noise(sets):
        return {
            domain: ImageSet(domain, images.keys, rng.integers(0, 256, images.pixels.shape, dtype=np.uint8))
            for domain, images in sets.items()
        }

    blind = dataclasses.replace(
        bench,
        test=noise(bench.test),
        held=noise(bench.held),
        unseen=tuple(f"qwx {i}" for i in range(len(bench.unseen))),
        validation=tuple(f"zkv {i}" for i in range(len(bench.validation))),
        truth=Truth(train=bench.truth.train, validation={}, test={}),
    )
    again = fit(blind, model, SHORT, seed=5, progress=False)
    assert_same_bits(weights(fitted), weights(again))
    texts = [[model.encode_classes(b.seen, b.templates[d]) for d in b.domains] for b in (bench, blind)]
    maps = [clair.domain_map(*pair) for pair in texts]
    assert torch.equal(maps[0].matrix, maps[1].matrix)
    labels = label_training_images(bench, model, SHORT)
    means = [start_prototypes(b, model, labels, torch.stack(t)) for b, t in zip((bench, blind), texts, strict=True)]
    assert torch.equal(means[0], means[1])


def test_the_no_peeking_test_can_fail(bench, model, fitted):
    """Training pictures do reach training: with two of them swapped, the weights differ."""
    images = bench.train["line"]
    order = np.arange(len(images))[::-1].copy()
    turned = dataclasses.replace(bench, train=dict(bench.train) | {"line": images.take(order)})
    other = weights(fit(turned, model, SHORT, seed=5, progress=False))
    assert any(not torch.equal(value, other[name]) for name, value in weights(fitted).items())


def test_the_loss_falls(bench, model):
    history = fit(bench, model, Recipe(steps=25, view_strength=0.0), progress=False).history
    assert np.mean([row["total"] for row in history[-5:]]) < np.mean([row["total"] for row in history[:5]])


def test_save_and_load_give_the_same_features(fitted, model, bench, tmp_path):
    fitted.save(tmp_path / "fitted.safetensors")
    loaded = Fitted.load(tmp_path / "fitted.safetensors", model)
    images = bench.test["line"].take(np.arange(8))
    assert torch.equal(fitted.encode_images(images), loaded.encode_images(images))
    assert loaded.recipe == fitted.recipe
    assert (tmp_path / "fitted.safetensors").stat().st_size < 200_000, "only what was learnt is stored"


def test_loading_for_another_model_is_refused(fitted, model, tmp_path):
    fitted.save(tmp_path / "fitted.safetensors")
    other = clair.load_clip("iconclip", device="cpu")
    with torch.no_grad():
        other.module.logit_scale += 1
    with pytest.raises(ValueError, match="not trained from these weights"):
        Fitted.load(tmp_path / "fitted.safetensors", other)


def test_the_base_still_works_after_saving_labels(fitted, bench):
    assert set(fitted.labels) == set(bench.domains)
    assert fitted.images_seen == 3 * 4 * SHORT.images_per_domain


def test_a_nan_stops_the_run_with_its_step(bench, model):
    with pytest.raises(FloatingPointError, match="step 1"):
        fit(bench, model, dataclasses.replace(SHORT, rate=1e30), progress=False)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"domain_wait": 1.0}, "Did you mean 'domain_weight'"),
        ({"steps": "many"}, "takes int"),
        ({"steps": True}, "takes int"),
        ({"steps": -1}, "0 or more"),
        ({"rate": 0.0}, "above 0"),
        ({"share": 1.5}, "at most 1"),
        ({"images_per_domain": 3}, "raise it"),
    ],
)
def test_a_bad_recipe_is_refused_in_one_sentence(given, words):
    with pytest.raises(ValueError, match=words):
        Recipe.from_dict(given)


def test_a_whole_number_is_a_fine_float():
    assert Recipe.from_dict({"rate": 1}).rate == 1.0


@pytest.mark.parametrize("what", ["prompt", "prompts,layernorm"])
def test_unknown_parts_to_train_are_refused(bench, model, what):
    with pytest.raises(ValueError, match="is unknown"):
        fit(bench, model, dataclasses.replace(SHORT, train=what), progress=False)


def test_prototypes_move_towards_the_batch_and_absent_classes_stay():
    old = torch.nn.functional.normalize(torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0)), dim=-1)
    z = torch.nn.functional.normalize(torch.tensor([[1.0, 0, 0, 0], [0, 1.0, 0, 0], [0, 0, 1.0, 0]]), dim=-1)
    classes, domains = torch.tensor([1, 1, -1]), torch.tensor([0, 0, 1])
    new = move_prototypes(old, z, classes, torch.tensor([0.5, 1.0, 1.0]), domains, 0.9)
    goal = torch.nn.functional.normalize(torch.tensor([0.5, 1.0, 0, 0]), dim=0)
    expected = torch.nn.functional.normalize(0.9 * old[0, 1] + 0.1 * goal, dim=0)
    assert torch.allclose(new[0, 1], expected, atol=1e-6)
    untouched = torch.ones(2, 3, dtype=torch.bool)
    untouched[0, 1] = False
    assert torch.equal(new[untouched], old[untouched])
