"""Benchmarks: disjoint roles, no pairs, rows that stay with their truth, errors in one sentence."""

import dataclasses
import functools
from itertools import permutations

import numpy as np
import pytest

from clair import datasets, emoji
from clair.datasets import ROLES, did_you_mean, load_benchmark

PAIRS = list(permutations(emoji.DOMAINS, 2))


@pytest.fixture(scope="module", autouse=True)
def pictures_read_once():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(emoji, "load", functools.cache(emoji.load))
        yield


@functools.cache
def bench(query="line", gallery="flat", split=0):
    return load_benchmark("emoji", query, gallery, split)


def sets(benchmark):
    """(role, domain, images, class names) of every image set."""
    for role, images in zip(ROLES, (benchmark.train, benchmark.held, benchmark.test), strict=True):
        for domain in benchmark.domains:
            yield role, domain, images[domain], getattr(benchmark.truth, role)[domain]


@pytest.mark.parametrize("split", range(emoji.FOLDS))
def test_seen_validation_unseen_and_the_vault_are_disjoint(split):
    b = bench(split=split)
    _, vault = emoji.folds(emoji.catalogue())
    groups = [b.seen, b.validation, b.unseen, vault]
    assert sum(map(len, groups)) == len(set().union(*groups)) == len(emoji.CLASSES)
    assert all(groups)
    allowed = {"train": b.seen, "validation": b.validation, "test": b.unseen}
    for role, domain, images, truth in sets(b):
        assert set(truth.tolist()) == set(allowed[role]), (role, domain)
        assert images.domain == domain


def test_each_class_outside_the_vault_is_unseen_once_and_held_once():
    _, vault = emoji.folds(emoji.catalogue())
    for group in ("unseen", "validation"):
        names = [name for split in range(emoji.FOLDS) for name in getattr(bench(split=split), group)]
        assert sorted(names) == sorted(set(emoji.CLASSES) - set(vault))


@pytest.mark.parametrize(("query", "gallery"), PAIRS)
def test_training_holds_no_pair_and_testing_holds_every_twin(query, gallery):
    b = bench(query, gallery)
    halves = [{emoji.concept(key) for key in b.train[domain].keys} for domain in b.domains]
    assert not halves[0] & halves[1]
    small, large = sorted(map(len, halves))
    assert small > 0.8 * large
    of_seen = {emoji.concept(item.code) for item in emoji.catalogue() if item.label in b.seen}
    assert halves[0] | halves[1] == of_seen  # no picture is wasted
    for images in (b.held, b.test):
        assert set(images[query].keys) == set(images[gallery].keys)


@pytest.mark.parametrize(("query", "gallery"), PAIRS)
def test_rows_keys_pictures_and_truth_belong_together(query, gallery):
    emojis, pictures = emoji.load()
    row_of = {item.code: row for row, item in enumerate(emojis)}
    for role, domain, images, truth in sets(bench(query, gallery)):
        assert len(images) == len(truth) == len(set(images.keys)), role
        rows = [row_of[key] for key in images.keys]
        np.testing.assert_array_equal(images.pixels, pictures[domain][rows])
        assert truth.tolist() == [emojis[row].label for row in rows]


@pytest.mark.parametrize(("query", "gallery"), PAIRS[:3])
def test_exchanging_query_and_gallery_keeps_every_set(query, gallery):
    exchanged = sorted(sets(bench(gallery, query)), key=lambda entry: (ROLES.index(entry[0]), entry[1] != query))
    for one, other in zip(sets(bench(query, gallery)), exchanged, strict=True):
        assert one[:2] == other[:2]
        assert one[2].keys == other[2].keys
        np.testing.assert_array_equal(one[2].pixels, other[2].pixels)
        np.testing.assert_array_equal(one[3], other[3])


def test_the_order_of_rows_tells_nothing_of_the_listing(monkeypatch):
    plain = bench()
    emojis, pictures = emoji.load()
    shuffle = np.random.default_rng(0).permutation(len(emojis))
    listed = [emojis[i] for i in shuffle], {domain: pixels[shuffle] for domain, pixels in pictures.items()}
    monkeypatch.setattr(emoji, "load", lambda: listed)
    again = load_benchmark("emoji")
    for one, other in zip(sets(plain), sets(again), strict=True):
        np.testing.assert_array_equal(one[2].pixels, other[2].pixels)
    # ... and rows are not grouped by class: neighbours agree about as often as any two rows do.
    truth = plain.truth.train["line"]
    together = (truth[1:] == truth[:-1]).mean()
    assert together < 0.12
    assert not (np.sort(truth) == truth).all()


def test_templates_are_those_of_the_two_domains():
    b = bench("color", "line")
    assert dict(b.templates) == {domain: emoji.TEMPLATES[domain] for domain in ("color", "line")}
    assert b.domains == ("color", "line")
    assert (b.name, b.query, b.gallery, b.split) == ("emoji", "color", "line", 0)


def test_a_benchmark_cannot_be_changed():
    b = bench()
    with pytest.raises(TypeError):
        b.train["line"] = b.train["flat"]
    with pytest.raises(TypeError):
        b.truth.train["line"] = b.truth.train["flat"]
    with pytest.raises(dataclasses.FrozenInstanceError):
        b.seen = b.unseen


def test_digest_sees_pictures_truth_and_roles():
    b = bench()
    assert b.digest() == load_benchmark("emoji").digest()
    found = {b.digest()} | {bench(split=split).digest() for split in range(1, emoji.FOLDS)}
    found |= {bench(*pair).digest() for pair in PAIRS}
    assert len(found) == emoji.FOLDS + len(PAIRS) - 1
    images = b.test["line"]
    pixels = images.pixels.copy()
    pixels[0, 0, 0, 0] ^= 1
    changed = dataclasses.replace(images, pixels=pixels)
    assert dataclasses.replace(b, test={**b.test, "line": changed}).digest() != b.digest()
    labels = b.truth.test["flat"].copy()
    labels[0] = "something else"
    truth = dataclasses.replace(b.truth, test={**b.truth.test, "flat": labels})
    assert dataclasses.replace(b, truth=truth).digest() != b.digest()


def test_image_sets_carry_no_labels():
    for _, _, images, truth in sets(bench()):
        fields = {field.name for field in dataclasses.fields(images)}
        assert fields == {"domain", "keys", "pixels"}
        assert not any(name in " ".join(images.keys) for name in set(truth.tolist()))


ERRORS = [
    ({"name": "emojis"}, r"^There is no data set 'emojis'\. Did you mean 'emoji'\? Known: emoji\.$"),
    ({"name": "sketchy"}, r"^There is no data set 'sketchy'\. Known: emoji\.$"),
    ({"query": "lines"}, r"^There is no domain 'lines'\. Did you mean 'line'\? Known: line, color, flat\.$"),
    ({"gallery": "photo"}, r"^There is no domain 'photo'\. Known: line, color, flat\.$"),
    ({"query": "flat", "gallery": "flat"}, r"^Query and gallery are both 'flat': choose two different domains\.$"),
    ({"split": 5}, r"^There is no split 5: emoji has the splits 0 to 4\.$"),
    ({"split": -1}, r"^There is no split -1: "),
    ({"split": True}, r"^There is no split True: "),
    ({"root": "/somewhere"}, r"leave root empty \(got '/somewhere'\)\.$"),
]


@pytest.mark.parametrize(("wrong", "sentence"), ERRORS)
def test_bad_input_gets_one_clear_sentence_before_anything_is_drawn(wrong, sentence, monkeypatch):
    monkeypatch.setattr(datasets, "_emoji", lambda *args: pytest.fail("went on"))
    with pytest.raises(ValueError, match=sentence) as caught:
        load_benchmark(**{"name": "emoji"} | wrong)
    assert "\n" not in str(caught.value)


def test_an_empty_root_is_no_root():
    assert load_benchmark("emoji", root="").digest() == bench().digest()


def test_did_you_mean_names_the_nearest_only_where_one_is_near():
    assert did_you_mean("fruit", "aple", ["apple", "pear"]) == (
        "There is no fruit 'aple'. Did you mean 'apple'? Known: apple, pear."
    )
    assert did_you_mean("fruit", 7, ["apple", "pear"]) == "There is no fruit 7. Known: apple, pear."
