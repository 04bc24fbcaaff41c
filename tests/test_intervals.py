"""Bootstrap intervals: bounds that hold, known cases, the effect of classes, paired differences."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import clair
from clair.intervals import bootstrap, compare


def naive(groups, macro, draws, seed):
    """The same bootstrap, one draw at a time."""
    rng, found = np.random.default_rng(seed), []
    for _ in range(draws):
        chosen = [groups[i] for i in rng.integers(len(groups), size=len(groups))]
        again = [rng.choice(group, len(group)) for group in chosen]
        found.append(np.mean([g.mean() for g in again]) if macro else np.concatenate(again).mean())
    return np.array(found)


@given(
    st.lists(st.lists(st.floats(0, 1), min_size=1, max_size=6), min_size=2, max_size=6),
    st.booleans(),
)
def test_the_interval_lies_within_the_values_and_is_the_same_each_time(groups, macro):
    values = np.concatenate([np.array(group) for group in groups])
    classes = np.repeat(np.arange(len(groups)).astype(str), [len(group) for group in groups])
    found = bootstrap(values, classes, macro=macro, draws=60)
    assert values.min() - 1e-12 <= found.low <= found.high <= values.max() + 1e-12
    assert found == bootstrap(values, classes, macro=macro, draws=60)
    order = np.random.default_rng(1).permutation(len(values))
    assert bootstrap(values[order], classes[order], macro=macro, draws=60).mean == pytest.approx(found.mean)


@pytest.mark.parametrize("macro", [False, True])
def test_it_agrees_with_a_bootstrap_written_plainly(macro):
    rng = np.random.default_rng(3)
    groups = [rng.normal(rng.normal(), 0.3, size) for size in (3, 8, 20, 5, 12, 2, 9)]
    values, classes = np.concatenate(groups), np.repeat(np.arange(7), [len(group) for group in groups])
    found = bootstrap(values, classes, macro=macro, draws=4000)
    expected = np.quantile(naive(groups, macro, 4000, 1), [0.025, 0.975])
    np.testing.assert_allclose([found.low, found.high], expected, atol=0.05)
    assert found.mean == pytest.approx(np.mean([g.mean() for g in groups]) if macro else values.mean())


def test_classes_that_differ_make_it_wide_however_many_queries_they_have():
    classes = np.repeat(["a", "b", "c", "d"], 500)
    alike, apart = np.tile([0.0, 1.0], 1000), np.repeat([0.0, 1.0, 0.0, 1.0], 500)
    narrow, wide = bootstrap(alike, classes), bootstrap(apart, classes)
    assert narrow.high - narrow.low < 0.1
    assert wide.high - wide.low > 0.7


def test_a_constant_difference_has_no_width():
    base = np.random.default_rng(0).random(50)
    found = bootstrap((base + 0.25) - base, np.arange(50) % 7)
    assert found.low == pytest.approx(0.25)
    assert found.high == pytest.approx(0.25)
    assert str(found) == "0.250 [0.250, 0.250]"


def test_queries_without_a_value_are_left_out():
    values, classes = np.array([0.1, np.nan, 0.3, 0.5]), np.array(["a", "a", "b", "c"])
    kept = ~np.isnan(values)
    assert bootstrap(values, classes) == bootstrap(values[kept], classes[kept])


@pytest.mark.parametrize(
    ("values", "classes", "level", "message"),
    [
        ([0.1, 0.2], ["a"], 0.95, "one class a value"),
        ([0.1, 0.2], ["a", "a"], 0.95, "at least two"),
        ([np.nan, 0.2], ["a", "b"], 0.95, "at least two"),
        ([0.1, 0.2], ["a", "b"], 95.0, "between 0 and 1"),
    ],
)
def test_bad_input_is_refused(values, classes, level, message):
    with pytest.raises(ValueError, match=message):
        bootstrap(np.array(values), np.array(classes), level=level)


# -- two runs -----------------------------------------------------------------------------------


def runs():
    """The same queries on good and on noisy features."""
    rng = np.random.default_rng(0)
    labels = np.repeat([f"class {i}" for i in range(8)], 10)
    centres = rng.normal(size=(8, 16))[np.arange(80) // 10]
    good, bad = (centres + noise * rng.normal(size=(80, 16)) for noise in (0.5, 3.0))
    return labels, *(clair.evaluate(x, labels, centres, labels, k=5, per_query=True) for x in (bad, good))


def test_the_better_run_is_told_apart_and_the_sign_turns():
    labels, bad, good = runs()
    found, turned = compare(bad, good, labels), compare(good, bad, labels)
    assert 0 < found.low < found.mean < found.high
    assert found.mean == pytest.approx(good["mAP@all"] - bad["mAP@all"])
    assert (turned.low, turned.high) == pytest.approx((-found.high, -found.low))
    same = compare(good, good, labels, metric="P@5")
    assert (same.mean, same.low, same.high) == (0, 0, 0)


def test_pairing_makes_the_interval_of_a_difference_narrower_than_each_runs():
    labels, bad, _ = runs()
    shifted = {"per query": {"mAP@all": bad["per query"]["mAP@all"] - 0.01}}
    paired, alone = compare(shifted, bad, labels), bootstrap(bad["per query"]["mAP@all"], labels)
    assert paired.high - paired.low < 0.1 * (alone.high - alone.low)


def test_runs_that_do_not_match_are_refused():
    labels, bad, good = runs()
    with pytest.raises(ValueError, match="per_query=True"):
        compare({"mAP@all": 0.5}, good, labels)
    with pytest.raises(ValueError, match="'P@7' by query"):
        compare(bad, good, labels, metric="P@7")
    short = {"per query": {"mAP@all": good["per query"]["mAP@all"][1:]}}
    holes = {"per query": {"mAP@all": np.where(np.arange(80) == 3, np.nan, good["per query"]["mAP@all"])}}
    for other in (short, holes):
        with pytest.raises(ValueError, match="different queries"):
            compare(good, other, labels)
