"""The metrics against their definitions, scikit-learn and hand-counted rankings; search against a stable argsort."""

import doctest
import itertools
import math
import tracemalloc

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score

from clair import retrieval
from clair.retrieval import evaluate, search

OPENBLAS = "openblas" in np.show_config(mode="dicts")["Build Dependencies"]["blas"]["name"]
FEW = settings(max_examples=100, deadline=None, derandomize=True, database=None)
MANY = settings(max_examples=4000, deadline=None, database=None, suppress_health_check=list(HealthCheck))
TWO_SIDES = {
    "query": [[1.0, 0.0]], "query_labels": ["cat"],
    "gallery": [[1.0, 0.1], [1.0, 0.2]], "gallery_labels": ["dog", "cat"],
}  # fmt: skip


def exact_rows(rng, count, directions):
    """Vectors whose cosines are exact in float32, drawn from few directions so that many scores tie."""
    rows = np.zeros((directions, 16))
    for row in rows:
        filled = rng.choice([1, 4, 16])  # lengths 1, 2 and 4
        row[rng.permutation(16)[:filled]] = rng.choice([-1.0, 1.0], filled)
    return rows[rng.integers(directions, size=count)] * 2.0 ** rng.integers(-3, 4, (count, 1))


@st.composite
def cases(draw):
    """A small problem: ties by the dozen, one class to four, text or integer labels, with or without twins."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    queries, items = draw(st.integers(1, 6)), draw(st.integers(1, 30))
    classes, directions = draw(st.integers(1, 4)), draw(st.sampled_from([1, 3, 8, 40]))
    names = draw(st.sampled_from([np.array(["owl", "cat", "ant", "bee"]), np.array([7, -1, 3, 2**40])]))
    case = {
        "query": exact_rows(rng, queries, directions),
        "query_labels": names[rng.integers(classes, size=queries)],
        "gallery": exact_rows(rng, items, directions),
        "gallery_labels": names[rng.integers(classes, size=items)],
        "k": tuple(draw(st.sets(st.integers(1, 40), min_size=1, max_size=3))),
    }
    if draw(st.booleans()):
        case["query_ids"], case["gallery_ids"] = rng.integers(9, size=queries), rng.integers(9, size=items)
    return case


def scores_of(case):
    """Per query its cosines in float64, which items are relevant, both without twins."""
    left, right = (case[side] / np.linalg.norm(case[side], axis=1, keepdims=True) for side in ("query", "gallery"))
    for row, label in enumerate(case["query_labels"]):
        stays = np.ones(len(right), bool)
        if "query_ids" in case:
            stays = case["gallery_ids"] != case["query_ids"][row]
        yield (left[row] @ right.T)[stays], (case["gallery_labels"] == label)[stays]


def by_definition(scores, relevant, cutoffs):
    """The metrics of one query, item by item, straight from the words at the top of the module."""
    found = [score for score, is_relevant in zip(scores, relevant, strict=True) if is_relevant]
    precision = [sum(s >= mine for s in found) / sum(s >= mine for s in scores) for mine in found]

    def share(mine, cutoff):
        above, run = sum(s > mine for s in scores), sum(s == mine for s in scores)
        return min(max(cutoff - above, 0), run) / run

    def raised(mine, cutoff):
        lower = zip(found, precision, strict=True)
        return max(p for s, p in lower if s <= mine and share(s, cutoff) > 0)

    everything = len(scores)
    values = {
        "mAP@all": sum(precision) / len(found),
        "mAP@all/voc": sum(raised(mine, everything) for mine in found) / len(found),
        "R-precision": sum(share(mine, len(found)) for mine in found) / len(found),
        "chance": len(found) / everything,
    }
    for cutoff in cutoffs:
        shares = [share(mine, cutoff) for mine in found]
        hits, total = sum(shares), sum(s * p for s, p in zip(shares, precision, strict=True))
        possible = min(cutoff, len(found))
        values[f"mAP@{cutoff}/min"] = total / possible
        values[f"mAP@{cutoff}/hits"] = total / hits if hits else 0
        values[f"P@{cutoff}"] = hits / cutoff
        values[f"P@{cutoff}/min"] = hits / possible
        inside = [(s, mine) for s, mine in zip(shares, found, strict=True) if s > 0]
        values[f"mAP@{cutoff}/voc"] = sum(s * raised(mine, cutoff) for s, mine in inside) / possible
    return values


def check_against_definitions(case, **options):
    wanted = [by_definition(*one, case["k"]) if one[1].any() else None for one in scores_of(case)]
    if not any(wanted):
        with pytest.raises(ValueError, match="No query has a relevant item"):
            evaluate(**case, **options)
        return
    got = evaluate(**case, voc=True, per_query=True, per_class=True, **options)
    rows = got["per query"]
    counted = [row for row, values in enumerate(wanted) if values]
    names = set(wanted[counted[0]])
    assert set(rows) == names
    assert set(got) == {"queries", "queries without relevant items", "near ties", "per query", "per class"} | names | {
        f"macro {name}" for name in names
    }
    for name in names:
        expected = [values[name] if values else math.nan for values in wanted]
        np.testing.assert_allclose(rows[name], expected, rtol=0, atol=1e-12, err_msg=name)
        assert got[name] == pytest.approx(np.nanmean(expected), abs=1e-12)
        by_class = {}
        for row in counted:
            by_class.setdefault(case["query_labels"][row], []).append(expected[row])
        means = {label: np.mean(values) for label, values in sorted(by_class.items())}
        assert got["per class"][name] == pytest.approx(means, abs=1e-12)
        assert list(got["per class"][name]) == list(means)
        assert got[f"macro {name}"] == pytest.approx(np.mean(list(means.values())), abs=1e-12)
        assert got["per class"]["queries"] == {label: len(values) for label, values in by_class.items()}
    assert got["queries"] == len(wanted)
    assert got["queries without relevant items"] == len(wanted) - len(counted)
    ties = [(abs(s[r][:, None] - s[~r]) <= 1e-6).any() for s, r in scores_of(case) if r.any()]
    assert got["near ties"] == sum(ties)


def check_only_at_k(case, **options):
    """Leaving out what needs the whole ranking changes nothing of the rest."""
    try:
        whole = evaluate(**case, voc=True, per_query=True, **options)
    except ValueError:
        return
    part = evaluate(**case, voc=True, per_query=True, only_at_k=True, **options)
    gone = {"mAP@all", "mAP@all/voc", "R-precision"}
    assert set(part["per query"]) == set(whole["per query"]) - gone
    for name, values in part["per query"].items():
        np.testing.assert_array_equal(values, whole["per query"][name], err_msg=name)
    assert part["near ties"] <= whole["near ties"]
    if max(case["k"]) >= len(case["gallery"]):
        assert part["near ties"] == whole["near ties"]
    return part


def check_against_sklearn(case, **options):
    wanted = [average_precision_score(r, s) for s, r in scores_of(case) if r.any()]
    if wanted:
        assert evaluate(**case, **options)["mAP@all"] == pytest.approx(np.mean(wanted), abs=1e-9)


@FEW
@given(cases(), st.sampled_from(["cpu", "cpu:0"]))
def test_every_metric_is_what_its_definition_says(case, device):
    check_against_definitions(case, device=device)


@FEW
@given(cases(), st.sampled_from([None, 1, 2]))
def test_only_the_first_k_are_the_same_first_k(case, chunk):
    on_cpu, on_device = (check_only_at_k(case, chunk=chunk, device=device) for device in ("cpu", "cpu:0"))
    if on_cpu:
        assert on_cpu["near ties"] == on_device["near ties"]


@FEW
@given(cases())
def test_average_precision_is_that_of_scikit_learn(case):
    check_against_sklearn(case)


@pytest.mark.slow
@MANY
@given(cases(), st.sampled_from(["cpu", "cpu:0"]), st.sampled_from([None, 1, 2]))
def test_thousands_of_cases(case, device, chunk):
    check_against_definitions(case, device=device, chunk=chunk)
    check_against_sklearn(case, device=device, chunk=chunk)
    check_only_at_k(case, device=device, chunk=chunk)


@FEW
@given(
    st.lists(st.tuples(st.integers(0, 2), st.booleans()), min_size=1, max_size=6).filter(
        lambda x: any(r for _, r in x)
    ),
    st.integers(1, 7),
)
def test_hits_among_ties_are_the_mean_over_all_orders(items, cutoff):
    # every permutation, sorted stably by score, puts each order of the tied items equally often
    cosines = {0: [1.0, 0.0], 1: [1.0, 1.0], 2: [0.0, 1.0]}
    hits = []
    for order in itertools.permutations(items):
        ranked = sorted(order, key=lambda item: item[0])
        hits.append(sum(relevant for _, relevant in ranked[:cutoff]))
    labels = [int(relevant) for _, relevant in items]
    got = evaluate([[1.0, 0.0]], [1], [cosines[score] for score, _ in items], labels, k=cutoff)
    assert got[f"P@{cutoff}"] == pytest.approx(np.mean(hits) / cutoff)
    assert got[f"P@{cutoff}/min"] == pytest.approx(np.mean(hits) / min(cutoff, sum(labels)))


@FEW
@given(st.lists(st.booleans(), min_size=1, max_size=12).filter(any), st.integers(1, 14))
@example([False, True, False, False, True], 2)
def test_a_ranking_read_from_top_to_bottom(ranking, cutoff):
    """Without ties: walk down the list and count, as anyone would by hand."""
    angles = np.linspace(0.1, 1.5, len(ranking))
    gallery = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    got = evaluate([[1.0, 0.0]], [1], gallery, np.array(ranking, int), k=cutoff, voc=True)

    hits, precisions = 0, []
    for place, hit in enumerate(ranking[:cutoff], start=1):
        if hit:
            hits += 1
            precisions.append(hits / place)
    possible = min(cutoff, sum(ranking))
    assert got[f"mAP@{cutoff}/min"] == pytest.approx(sum(precisions) / possible)
    assert got[f"mAP@{cutoff}/hits"] == pytest.approx(sum(precisions) / hits if hits else 0)
    assert got[f"P@{cutoff}"] == pytest.approx(hits / cutoff)
    assert got[f"P@{cutoff}/min"] == pytest.approx(hits / possible)
    area = sum(max(precisions[at:]) for at in range(hits)) / possible
    assert got[f"mAP@{cutoff}/voc"] == pytest.approx(area)
    assert got["R-precision"] == pytest.approx(sum(ranking[: sum(ranking)]) / sum(ranking))
    assert got["near ties"] == 0
    if cutoff >= len(ranking):
        assert got["mAP@all"] == pytest.approx(got[f"mAP@{cutoff}/min"])
        assert got["mAP@all/voc"] == pytest.approx(area)


def test_one_ranking_many_numbers():
    # hit, miss, miss, hit, miss, hit; K = 4 sees two of the three relevant items
    gallery = [[1.0, slope] for slope in (0.1, 0.2, 0.3, 0.4, 0.5, 0.6)]
    got = evaluate([[2.0, 0.0]], ["a"], gallery, list("abbaba"), k=(2, 4, 10), voc=True)
    wanted = {
        "mAP@all": (1 + 2 / 4 + 3 / 6) / 3, "mAP@all/voc": (1 + 1 / 2 + 1 / 2) / 3,
        "mAP@2/min": 1 / 2, "mAP@2/hits": 1, "mAP@2/voc": 1 / 2, "P@2": 1 / 2, "P@2/min": 1 / 2,
        "mAP@4/min": 1.5 / 3, "mAP@4/hits": 1.5 / 2, "mAP@4/voc": 1.5 / 3, "P@4": 2 / 4, "P@4/min": 2 / 3,
        "mAP@10/min": 2 / 3, "mAP@10/hits": 2 / 3, "mAP@10/voc": 2 / 3, "P@10": 3 / 10, "P@10/min": 1,
        "R-precision": 1 / 3, "chance": 3 / 6,
    }  # fmt: skip
    assert {name: got[name] for name in wanted} == pytest.approx(wanted)


def random_problem(rng, queries=40, items=100, dimensions=48, classes=5, same=10):
    """Features in general position, but for some gallery items that look the same and are of several classes."""
    gallery = rng.standard_normal((items, dimensions)).astype(np.float32)
    gallery[rng.permutation(items)[:same]] = gallery[0]
    query = rng.standard_normal((queries, dimensions)).astype(np.float32)
    return query, rng.integers(classes, size=queries), gallery, rng.integers(classes, size=items)


@pytest.mark.skipif(not OPENBLAS, reason="the same bits everywhere are promised for OpenBLAS")
@pytest.mark.parametrize("shape", [(40, 700, 48), (7, 33, 512), (70, 301, 100), (3, 5, 3), (130, 550, 192)])
def test_chunks_threads_and_orders_do_not_change_a_bit(shape):
    rng = np.random.default_rng(5)
    query, q, gallery, g = random_problem(rng, *shape)
    options = {"k": (1, 10, 50), "per_query": True, "voc": True}
    reference = evaluate(query, q, gallery, g, **options)

    def same(other, order=slice(None)):
        for name, values in reference["per query"].items():
            np.testing.assert_array_equal(other["per query"][name], values[order], err_msg=name)
            assert other[name] == pytest.approx(reference[name], abs=1e-12)
            assert other[f"macro {name}"] == pytest.approx(reference[f"macro {name}"], abs=1e-12)

    for chunk in (1, 3, 17, 64, 1000):
        same(evaluate(query, q, gallery, g, chunk=chunk, **options))
    shuffle, turn = rng.permutation(len(g)), rng.permutation(len(q))
    same(evaluate(query, q, gallery[shuffle], g[shuffle], **options))
    same(evaluate(query[turn], q[turn], gallery, g, **options), turn)
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            same(evaluate(query, q, gallery, g, **options))
    finally:
        torch.set_num_threads(threads)
    scores, places = search(query, gallery, 5)
    for chunk in (1, 30):
        for one, other in zip((scores, places), search(query, gallery, 5, chunk=chunk), strict=True):
            np.testing.assert_array_equal(one, other)


@FEW
@given(cases(), st.integers(0, 99), st.sampled_from([1, 2, 5]), st.sampled_from(["cpu", "cpu:0"]))
def test_the_order_of_tied_gallery_items_is_of_no_account(case, seed, chunk, device):
    order = np.random.default_rng(seed).permutation(len(case["gallery"]))
    shuffled = case | {side: case[side][order] for side in ("gallery", "gallery_labels", "gallery_ids") if side in case}
    if any(relevant.any() for _, relevant in scores_of(case)):
        assert evaluate(**shuffled, voc=True, chunk=chunk, device=device) == pytest.approx(
            evaluate(**case, voc=True), abs=1e-12
        )


def test_pieces_of_a_large_class_are_put_together_again():
    # 3000 relevant items make pieces of 21 queries
    rng = np.random.default_rng(0)
    query, q, gallery, g = random_problem(rng, 60, 3100, 8, 1)
    g[3000:] = 1
    rows = evaluate(query, q, gallery, g, k=10, per_query=True)["per query"]
    assert len(retrieval._pieces(np.zeros(60, int), np.array([3000]))) == 3
    for row in (0, 20, 21, 41, 42, 59):
        alone = evaluate(query[[row]], q[[row]], gallery, g, k=10)
        assert rows["mAP@all"][row] == pytest.approx(alone["mAP@all"], abs=1e-12)


def test_the_code_for_a_gpu_gives_the_values_of_numpy(monkeypatch):
    query, q, gallery, g = random_problem(np.random.default_rng(3), same=0)
    options = {
        "k": (1, 10, 30),
        "per_query": True,
        "voc": True,
        "query_ids": range(40),
        "gallery_ids": [*range(50)] * 2,
    }
    reference = evaluate(query, q, gallery, g, **options)
    calls, real = [], retrieval._ranks_on_device
    monkeypatch.setattr(retrieval, "_ranks_on_device", lambda *given: calls.append(given) or real(*given))
    for device, chunk in (("cpu:0", None), (torch.device("cpu:0"), 7)):
        other = evaluate(query, q, gallery, g, **options, device=device, chunk=chunk)
        for name, values in reference.pop("per query", {}).items() or other["per query"].items():
            np.testing.assert_allclose(other["per query"][name], values, rtol=0, atol=1e-9, err_msg=name)
        del other["per query"]
        assert other == pytest.approx(reference, abs=1e-9)
    assert all(isinstance(given[0], torch.Tensor) for given in calls)
    assert len(calls) >= 5 * 2
    scores, places = search(query, gallery, 7)
    other_scores, other_places = search(query, gallery, 7, device="cpu:0")
    np.testing.assert_array_equal(places, other_places)
    np.testing.assert_allclose(scores, other_scores, atol=1e-6)


def test_products_are_float32_whatever_the_process_allows():
    query, q, gallery, g = random_problem(np.random.default_rng(4))
    reference = evaluate(query, q, gallery, g, device="cpu:0", per_query=True)
    seen = []

    class Spy(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
            if "mm" in str(operator):
                precisions = torch.backends.cuda.matmul.fp32_precision, torch.backends.mkldnn.matmul.fp32_precision
                seen.append((precisions, args[0].dtype))
            return operator(*args, **(kwargs or {}))

    torch.set_float32_matmul_precision("medium")
    before = torch.backends.cuda.matmul.fp32_precision, torch.backends.mkldnn.matmul.fp32_precision
    try:
        with torch.autocast("cpu", torch.bfloat16), Spy():
            other = evaluate(query, q, gallery, g, device="cpu:0", per_query=True)
        after = torch.backends.cuda.matmul.fp32_precision, torch.backends.mkldnn.matmul.fp32_precision
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")
    assert before == after == ("tf32", "bf16")
    assert seen == [(("ieee", "ieee"), torch.float32)]
    np.testing.assert_array_equal(other["per query"]["mAP@all"], reference["per query"]["mAP@all"])


@pytest.mark.parametrize("device", ["cpu", "cpu:0"])
def test_every_float_type_and_layout_is_the_same_features(device):
    query, q, gallery, g = random_problem(np.random.default_rng(6))
    coarse = torch.from_numpy(query).bfloat16(), torch.from_numpy(gallery).bfloat16()  # exact in every other type
    half = torch.from_numpy(query).half(), torch.from_numpy(gallery).half()
    for forms, kinds in ((coarse, [torch.float32, torch.float64]), (half, [torch.float32, torch.float64])):
        reference = evaluate(forms[0].float(), q, forms[1].float(), g, device=device)
        assert evaluate(forms[0], q, forms[1], g, device=device) == reference
        for kind in kinds:
            left, right = forms[0].to(kind), forms[1].to(kind)
            assert evaluate(left.requires_grad_(), q, right, g, device=device) == reference
            left = left.detach().numpy()
            assert evaluate(np.asfortranarray(left), q, right.numpy()[::-1], g[::-1], device=device) == reference
            assert evaluate(left.tolist(), q, right, g, device=device) == reference
    numpy_half = [side.numpy() for side in half]
    assert numpy_half[0].dtype == np.float16
    assert evaluate(numpy_half[0], q, numpy_half[1], g, device=device) == reference


def test_lengths_do_not_matter_however_large_or_small():
    query, q, gallery, g = random_problem(np.random.default_rng(7))
    query, gallery = query.astype(np.float64), gallery.astype(np.float64)
    reference = evaluate(query, q, gallery, g)
    assert evaluate(query * 2.0**1000, q, gallery * 2.0**-1000, g) == reference
    lengths = 2.0 ** np.arange(-50, 50)[:, None]
    assert evaluate(query, q, gallery * lengths, g) == reference


def test_labels_and_ids_of_any_container():
    query, q, gallery, g = random_problem(np.random.default_rng(8))
    words = np.array(["cat", "ant", "dog", "bee", "owl"])
    numbers = evaluate(query, q, gallery, g, query_ids=np.arange(40), gallery_ids=np.arange(100))
    for ql, gl in (
        (torch.from_numpy(q), list(g)), (q.astype(np.uint8), g.tolist()), (pd.Series(q), tuple(g)),
        (words[q], words[g].tolist()), (pd.Series(words[q]), words[g].astype(object)), (list(words[q]), words[g]),
    ):  # fmt: skip
        for make in (
            list,
            torch.tensor,
            lambda ids: [None if i >= 40 else f"{i:03}" for i in ids],
            lambda ids: [(i,) for i in ids],
        ):
            ids = {"query_ids": make(range(40)), "gallery_ids": make(range(100))}
            assert evaluate(query, ql, gallery, gl, **ids) == pytest.approx(numbers, abs=1e-12)
    assert evaluate(query, q, gallery, g)["mAP@all"] != numbers["mAP@all"]


def test_the_id_none_has_no_twin_and_one_id_may_have_several():
    case = {
        "query": [[1.0, 0.0]] * 2,
        "query_labels": [1, 1],
        "gallery": [[1.0, 0.1], [1.0, 0.2], [1.0, 0.3], [1.0, 0.4]],
    }
    case["gallery_labels"] = [0, 1, 1, 0]
    got = evaluate(**case, query_ids=[None, "x"], gallery_ids=["x", None, "x", None], k=1, per_query=True)
    assert got["per query"]["mAP@all"].tolist() == pytest.approx([(1 / 2 + 2 / 3) / 2, 1])
    assert got["per query"]["chance"].tolist() == [2 / 4, 1 / 2]


def test_queries_without_relevant_items_are_left_out_and_counted():
    gallery, labels = [[1.0, 0.1], [1.0, 0.2]], ["dog", "cat"]
    query = [[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]
    got = evaluate(query, ["cat", "emu", "cat"], gallery, labels, k=1, per_query=True, per_class=True)
    assert got["queries"] == 3
    assert got["queries without relevant items"] == 1
    assert got["mAP@all"] == (1 / 2 + 1) / 2
    np.testing.assert_array_equal(got["per query"]["mAP@all"], [0.5, np.nan, 1.0])
    assert got["per class"]["mAP@all"] == {"cat": 0.75}
    assert got["per class"]["queries"] == {"cat": 2}
    # the last relevant item is the query's twin
    got = evaluate(query, ["cat", "dog", "cat"], gallery, labels, query_ids=[1, 2, 3], gallery_ids=[4, 3], k=1)
    assert got["queries without relevant items"] == 1


@pytest.mark.parametrize("device", ["cpu", "cpu:0"])
@pytest.mark.parametrize(
    ("cosines", "labels", "near"),
    [
        ([0.5, 0.5 - 5e-7], [1, 0], 1),
        ([0.5, 0.5 + 5e-7], [1, 0], 1),
        ([0.5, 0.5 - 3e-6], [1, 0], 0),
        ([0.5, 0.5 + 3e-6], [1, 0], 0),
        ([0.5, 0.5], [1, 0], 1),
        ([0.5, 0.5, 0.2], [1, 1, 0], 0),
        ([0.5, 0.2, 0.2 + 5e-7], [1, 0, 0], 0),
        ([0.9, 0.5, 0.5 - 3e-7, 0.5 - 6e-7], [0, 1, 1, 0], 1),
        ([0.5, 0.5 + 5e-7], [1, 1], 0),
        ([0.9, 0.5, 0.2, 0.2 - 5e-7], [1, 0, 1, 0], 1),
        ([0.9, 0.9 + 5e-7, 0.2], [1, 0, 1], 1),
    ],
)
def test_near_ties_are_between_relevant_and_irrelevant(cosines, labels, near, device):
    case = {"query": [[1.0, 0.0]], "query_labels": [1], "gallery_labels": labels, "device": device}
    case["gallery"] = np.stack([cosines, np.sqrt(1 - np.square(cosines))], axis=1)
    assert evaluate(**case)["near ties"] == near
    ids = [str(number) if label else "twin" for number, label in enumerate(labels)]
    assert evaluate(**case, query_ids=["twin"], gallery_ids=ids)["near ties"] == 0  # the irrelevant ones take no part


def test_memory_is_bounded_by_the_chunk():
    rng = np.random.default_rng(0)
    query, q, gallery, g = random_problem(rng, 700, 20000, 16, 10)  # all scores: 56 MB
    tracemalloc.start()
    try:
        evaluate(query, q, gallery, g, chunk=64)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        search(query, gallery, 10, chunk=64)
        peak = max(peak, tracemalloc.get_traced_memory()[1])
    finally:
        tracemalloc.stop()
    assert peak < 20e6


def test_the_chunk_by_default_holds_a_block_of_scores(monkeypatch):
    query, q, gallery, g = random_problem(np.random.default_rng(0), 300, 200, 16, 3)
    lengths, real = [], retrieval._pieces
    monkeypatch.setattr(retrieval, "_pieces", lambda labels, sizes: lengths.append(len(labels)) or real(labels, sizes))
    for block, wanted in ((2**24, [300]), (200 * 130, [128, 128, 44]), (1, [64] * 4 + [44])):
        monkeypatch.setattr(retrieval, "BLOCK", block)
        evaluate(query, q, gallery, g)
        assert lengths == wanted
        lengths.clear()


def test_the_example_of_the_documentation():
    result = doctest.testmod(retrieval)
    assert result.attempted >= 2
    assert result.failed == 0


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"query": [1.0, 0.0]}, ValueError, r"query features have shape \(2,\): give \[items, dimensions\]"),
        ({"gallery": np.zeros((0, 2)), "gallery_labels": []}, ValueError, r"gallery features have shape \(0, 2\)"),
        ({"gallery": np.ones((2, 3))}, ValueError, "query has 2 dimensions, the gallery 3"),
        ({"gallery": [[1.0, 0.0], [1.0, np.nan]]}, ValueError, "Row 1 of the gallery features holds NaN or infinity"),
        ({"query": torch.tensor([[torch.inf, 1.0]])}, ValueError, "Row 0 of the query features holds NaN or infinity"),
        ({"gallery": [[1.0, 0.0], [0.0, 0.0]]}, ValueError, "Row 1 of the gallery features is a zero vector"),
        ({"query": [[1, 0]]}, TypeError, "query features are int64: give floating-point"),
        ({"query": [[1j, 0]]}, TypeError, "query features are complex128"),
        ({"query_labels": ["cat", "dog"]}, ValueError, "There are 2 query_labels for 1 query features"),
        ({"gallery_labels": ["cat"]}, ValueError, "There are 1 gallery_labels for 2 gallery features"),
        ({"query_labels": [3]}, TypeError, "they are int and str"),
        ({"gallery_labels": ["cat", 3]}, TypeError, "they are int and str"),
        ({"query_labels": [3.0], "gallery_labels": [3.0, 4.0]}, TypeError, "they are float"),
        ({"query_labels": [True], "gallery_labels": [True, False]}, TypeError, "they are bool"),
        ({"query_labels": [["cat"]]}, TypeError, "they are list and str"),
        ({"query_labels": ["emu"]}, ValueError, "No query has a relevant item in the gallery"),
        ({"k": 0}, ValueError, "k must be at least 1, not 0"),
        ({"k": (5, -1)}, ValueError, "k must be at least 1, not -1"),
        ({"k": (5, 1.5)}, TypeError, "k must be a positive integer, not 1.5"),
        ({"k": True}, TypeError, "k must be a positive integer, not True"),
        ({"chunk": 0}, ValueError, "chunk must be at least 1, not 0"),
        ({"query_ids": [1]}, ValueError, "Give both query_ids and gallery_ids, or neither"),
        ({"query_ids": [1], "gallery_ids": [1]}, ValueError, "There are 1 gallery_ids for 2 gallery features"),
        ({"query_ids": [1], "gallery_ids": ["1", "2"]}, TypeError, "query_ids are int and gallery_ids str"),
    ],
)
def test_bad_input_gets_one_sentence(change, error, message):
    with pytest.raises(error, match=message) as caught:
        evaluate(**TWO_SIDES | change)
    assert "\n" not in str(caught.value)
    shared = {"query", "gallery", "chunk", "query_ids", "gallery_ids"}
    if change.keys() <= shared:
        with pytest.raises(error, match=message):
            search(**{side: TWO_SIDES[side] for side in ("query", "gallery")} | change, k=1)


def test_the_first_bad_row_is_named_though_rows_are_sorted_and_not_all_count():
    query, q, gallery, g = random_problem(np.random.default_rng(9))
    q[33] = 99  # without a relevant item, but read all the same
    query[[33, 38]], gallery[[71, 92]] = np.nan, 0
    with pytest.raises(ValueError, match="Row 33 of the query"):
        evaluate(query, q, gallery, g)
    query[[33, 38]] = 1
    with pytest.raises(ValueError, match="Row 71 of the gallery features is a zero"):
        evaluate(query, q, gallery, g)
    many = np.ones((70_000, 16), np.float32)  # read in two steps
    many[69_000] = 0
    with pytest.raises(ValueError, match=r"Row 69000 of the gallery"):
        search(many[:1], many, 1)


@FEW
@given(cases(), st.integers(1, 30), st.sampled_from([None, 1, 2]), st.sampled_from(["cpu", "cpu:0"]))
def test_search_is_a_stable_sort(case, k, chunk, device):
    ids = {name: case[name] for name in ("query_ids", "gallery_ids") if name in case}
    ask = {"query": case["query"], "gallery": case["gallery"], **ids, "chunk": chunk, "device": device}
    items = len(case["gallery"])
    kept = np.ones((len(case["query"]), items), bool)
    if ids:
        kept = ids["query_ids"][:, None] != ids["gallery_ids"]
    fewest = kept.sum(1).min()
    if k > fewest:
        with pytest.raises(ValueError, match=f"ask for at most {fewest}"):
            search(**ask, k=k)
        return
    scores, places = search(**ask, k=k)
    assert (scores.dtype, places.dtype) == (np.float32, np.int64)
    for row, keep in enumerate(kept):
        left = case["query"][row] / np.linalg.norm(case["query"][row])
        cosines = case["gallery"] / np.linalg.norm(case["gallery"], axis=1, keepdims=True) @ left
        wanted = [item for item in np.argsort(-cosines, kind="stable") if keep[item]][:k]
        assert places[row].tolist() == wanted
        assert scores[row].tolist() == cosines[wanted].tolist()


def test_search_needs_no_labels_and_k_of_at_least_one():
    query, _, gallery, _ = random_problem(np.random.default_rng(10), same=0)
    scores, places = search(torch.from_numpy(query), torch.from_numpy(gallery), 100)
    normalise = torch.nn.functional.normalize
    cosines = normalise(torch.from_numpy(query).double()) @ normalise(torch.from_numpy(gallery).double()).T
    np.testing.assert_allclose(np.take_along_axis(cosines.numpy(), places, 1), scores, atol=1e-6)
    assert (np.sort(places, axis=1) == np.arange(100)).all()
    assert (np.diff(scores, axis=1) <= 0).all()
    with pytest.raises(ValueError, match="k must be at least 1, not 0"):
        search(query, gallery, 0)
