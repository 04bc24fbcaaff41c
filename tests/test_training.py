"""fit: it learns, it is deterministic, and it peeks at nothing."""

import dataclasses
import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

import clair
from clair import checkpoints, records
from clair.datasets import Truth
from clair.images import ImageSet
from clair.training import Batches, Fitted, Recipe, fit, label_training_images, move_prototypes, start_prototypes

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
    # Batches differ by their classes, so the mean over twenty of them is compared.
    history = fit(bench, model, Recipe(steps=60, rate=1e-3, view_strength=0.0), progress=False).history
    assert np.mean([row["total"] for row in history[-20:]]) < np.mean([row["total"] for row in history[:20]]) - 0.1


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


# -- interrupted and resumed --------------------------------------------------------------------


class Stop(BaseException):
    """What a kill looks like from inside."""


def stop_after(saves, monkeypatch):
    """Let ``fit`` write so many checkpoints, then die."""
    real, left = checkpoints.save, [saves]

    def save(*arguments):
        real(*arguments)
        left[0] -= 1
        if left[0] == 0:
            raise Stop

    monkeypatch.setattr(checkpoints, "save", save)


@pytest.mark.parametrize("saves", [1, 2])
def test_a_training_that_was_stopped_goes_on_to_the_same_bits(bench, model, fitted, tmp_path, monkeypatch, saves):
    path = tmp_path / "c.safetensors"
    stop_after(saves, monkeypatch)
    with pytest.raises(Stop):
        fit(bench, model, SHORT, seed=5, checkpoint=path, every=2, progress=False)
    monkeypatch.undo()
    again = fit(bench, model, SHORT, seed=5, checkpoint=path, every=2, progress=False)
    assert_same_bits(weights(fitted), weights(again))
    assert again.history == fitted.history
    assert again.images_seen == fitted.images_seen
    assert again.seconds > 0


def test_a_finished_training_is_loaded_not_repeated(bench, model, fitted, tmp_path, monkeypatch):
    path = tmp_path / "c.safetensors"
    first = fit(bench, model, SHORT, seed=5, checkpoint=path, progress=False)
    monkeypatch.setattr(Batches, "__getitem__", lambda self, step: pytest.fail("trained again"))
    again = fit(bench, model, SHORT, seed=5, checkpoint=path, progress=False)
    assert_same_bits(weights(fitted), weights(again))
    assert again.history == fitted.history
    assert again.seconds == pytest.approx(first.seconds, abs=0.01)


def test_a_checkpoint_of_another_run_is_refused_and_kept(bench, model, tmp_path):
    path = tmp_path / "c.safetensors"
    few = dataclasses.replace(SHORT, steps=1)
    fit(bench, model, few, seed=5, checkpoint=path, progress=False)
    before = path.read_bytes()
    turned = clair.load_benchmark("emoji", "line", "flat", split=2)
    labels = label_training_images(bench, model, few)
    other = {d: dataclasses.replace(label, confidence=label.confidence * 0.5) for d, label in labels.items()}
    for arguments, options in (
        ((bench, model, few), {"seed": 6}),
        ((bench, model, dataclasses.replace(few, rate=1e-4)), {"seed": 5}),
        ((turned, model, few), {"seed": 5}),
        ((bench, model, few, other), {"seed": 5}),
    ):
        with pytest.raises(ValueError, match="belongs to another run"):
            fit(*arguments, checkpoint=path, progress=False, **options)
    assert path.read_bytes() == before
    path.write_bytes(b"half a file")
    with pytest.raises(ValueError, match="is not a checkpoint"):
        fit(bench, model, few, seed=5, checkpoint=path, progress=False)


@pytest.mark.parametrize("workers", [1, 2])
def test_the_number_of_workers_changes_no_bit(bench, model, fitted, workers):
    found = fit(bench, model, SHORT, seed=5, workers=workers, progress=False)
    assert_same_bits(weights(fitted), weights(found))
    assert found.history == fitted.history


def test_a_batch_is_a_function_of_seed_and_step(bench, model):
    labels = label_training_images(bench, model, SHORT)
    one, other = (Batches(bench, labels, SHORT, seed, model.image_size) for seed in (5, 6))
    for _ in range(2):
        for step in (2, 0):
            assert all(torch.equal(a, b) for a, b in zip(one[step], one[step], strict=True))
    assert not torch.equal(one[0][0], one[1][0])
    assert not torch.equal(one[0][0], other[0][0])
    assert len(one) == SHORT.steps


KILLED = """
import sys
from pathlib import Path
import clair
from clair.training import Recipe, fit
bench = clair.load_benchmark("emoji", "line", "flat", split=0)
model = clair.load_clip("iconclip", device="cpu")
recipe = Recipe(steps=400, classes_per_batch=2, images_per_domain=4)
print("start", flush=True)
found = fit(bench, model, recipe, seed=3, checkpoint=Path(sys.argv[1]), every=3, progress=False)
found.save(Path(sys.argv[2]))
"""


@pytest.mark.slow
def test_thirty_kills_at_random_moments_change_no_bit(tmp_path):
    rng, kills = random.Random(0), 0
    environment = os.environ | {"PYTHONPATH": str(records.REPOSITORY)}
    outs = [tmp_path / "whole.safetensors", tmp_path / "killed.safetensors"]
    subprocess.run([sys.executable, "-c", KILLED, tmp_path / "a", outs[0]], env=environment, check=True)
    while not outs[1].exists():
        process = subprocess.Popen(
            [sys.executable, "-c", KILLED, tmp_path / "b", outs[1]], env=environment, stdout=subprocess.PIPE
        )
        process.stdout.readline()  # "start"
        if kills < 30:
            time.sleep(rng.uniform(0.0, 1.6))
            process.kill()
            kills += process.wait() == -signal.SIGKILL
        assert process.wait() in (0, -signal.SIGKILL)
    assert kills == 30
    assert outs[0].read_bytes() == outs[1].read_bytes()
