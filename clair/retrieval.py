"""Exact retrieval: the nearest gallery items of each query, and every metric under its full name.

Queries and gallery items are feature vectors compared by cosine; a gallery item is *relevant* to a
query if it has the query's class.  For one query, R is its number of relevant items, K a cutoff, and
p_j = (relevant items that score at least as high as j) / (all items that do) the precision where a
searcher meets the relevant item j.  "Hits" are the relevant items among the first K.

==============  ======================================================================================
``mAP@all``     mean of p_j over the R relevant items: un-interpolated average precision
``mAP@K/min``   sum of p_j over the hits, divided by min(K, R): all that could have been found
``mAP@K/hits``  the same sum divided by the number of hits (0 without one): misses cost nothing
``P@K``         hits / K, also where fewer than K items are relevant or present
``P@K/min``     hits / min(K, R)
``R-precision`` hits among the first R, divided by R
``chance``      R / gallery size: the P@K of a random order, and nearly its mAP@all
``.../voc``     mAP@all and mAP@K/min with p_j raised to the best precision further down, as in VOC 2010
==============  ======================================================================================

Who uses which: mAP@200/hits UCDR, ProS, ClipPrompt; mAP@200/voc and mAP@all/voc SAKE, ZSE-SBIR;
P@K/min ZSE-SBIR, UCDIR; mAP@all as here scikit-learn.  One ranking can give .37 under one name and .13
under another, so a number is comparable only with its name.  A value is a mean over queries; with
"macro " before its name it is the mean over classes of the mean over the class's queries.

**Ties** never depend on the gallery's order.  Items of equal score share their places: each of them
has the precision at the end of their run (by p_j above, as ``sklearn.metrics.average_precision_score``)
and belongs to the first K with the probability that a random order of the run would put it there.
P@K is therefore the exact expectation over random orders; mAP@K/hits divides by expected hits; with
K of the gallery's size mAP@K/min is mAP@all.

**How.** With the gallery ordered by class the relevant items of a query are a slice.  Sorting only the
*values* of the irrelevant scores and looking the relevant ones up among them gives the ranks of the
relevant items, and every metric follows from those.  No permutation of the gallery is ever sorted.
"""

import contextlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, pairwise
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Float64, Int, Int64
from torch import Tensor
from tqdm.auto import tqdm

NEAR = 1e-6  # scores this close may change places through rounding
BLOCK = 2**24  # scores held at once, 64 MiB; a process needs some 300 MiB above the features
# Products of these fixed steps give each score the same bits wherever its items stand: edges and
# small shapes take other paths through BLAS.  Verified by test with OpenBLAS, numpy's usual one.
ROWS, COLUMNS = 64, 256

Ranks = tuple[Float32[np.ndarray, "n R"], Int64[np.ndarray, "n R"], Int64[np.ndarray, "n R"], Bool[np.ndarray, " n"]]


def evaluate(
    query: Any,
    query_labels: Iterable[Any],
    gallery: Any,
    gallery_labels: Iterable[Any],
    *,
    k: int | Iterable[int] = (100, 200),
    query_ids: Iterable[Any] | None = None,
    gallery_ids: Iterable[Any] | None = None,
    per_query: bool = False,
    per_class: bool = False,
    voc: bool = False,
    chunk: int | None = None,
    device: str | torch.device = "cpu",
    progress: bool = True,
) -> dict[str, Any]:
    """How well queries find the gallery items of their class; the metrics are defined at the top of the file.

    The order of the gallery, ``chunk`` and the number of threads do not change a value.  (Where BLAS
    rounds by position, they change only queries that are counted under "near ties".)

    Args:
        query, gallery: features [Q, D] and [G, D], numpy or torch, of any float type, on any device;
            normalised here in float64, scored in float32 (never TF32).
        query_labels, gallery_labels: Q and G classes, integers or strings, the same kind on both sides.
        k: the cutoffs K.
        query_ids, gallery_ids: what the items show, integers, strings or any hashable.  Gallery items
            with the query's own id, its twins, are in neither its gallery nor its relevant items.  The
            id None has no twin.
        per_query: add "per query", metric -> array [Q] in the order given, NaN without a relevant item.
        per_class: add "per class", metric -> {class: mean over its queries}, and the "queries" of each.
        voc: add the VOC-interpolated values.
        chunk: queries scored at once; by default as many as keep a block of scores at 64 MiB.
        device: "cpu" computes with numpy, the fastest there; any other device of torch, such as "cuda",
            with torch ("cpu:0" runs that code on the CPU).
        progress: show a bar if this takes more than two seconds on a terminal or in a notebook.

    Returns:
        The metrics as floats between 0 and 1 and, as integers, "queries" (all), "queries without relevant
        items" (left out of every mean) and "near ties": counted queries with a relevant and an irrelevant
        item whose float32 scores differ by at most 1e-6, equal scores included.

    Raises:
        ValueError: features that are not [items, dimensions], are empty or differ in dimension; NaN,
            infinity or a zero vector; labels or ids of another length; a cutoff or chunk below 1; no query
            with a relevant item.
        TypeError: features that are no floats; labels that are neither integers nor strings or differ in
            kind between the sides; ids that cannot be compared; a cutoff that is no integer.

    Example:
        >>> scores = evaluate([[1.0, 0.0]], ["cat"], [[1.0, 0.1], [1.0, 0.2]], ["dog", "cat"], k=1)
        >>> scores["mAP@all"], scores["P@1"]
        (0.5, 0.0)
    """
    cutoffs = [_positive(cutoff, "k") for cutoff in (k if isinstance(k, Iterable) else (k,))]
    query, gallery = _matrices(query, gallery)
    names, q, g = _classes(query_labels, gallery_labels, len(query), len(gallery))
    rows, columns = _twins(query_ids, gallery_ids, len(query), len(gallery))

    own = q[rows] == g[columns]  # twins that would have been relevant
    relevant = np.bincount(g, minlength=len(names))[q] - np.bincount(rows[own], minlength=len(q))
    candidates = len(g) - np.bincount(rows, minlength=len(q))
    counted = relevant > 0
    if not counted.any():
        raise ValueError("No query has a relevant item in the gallery: use the same class names on both sides.")

    order = np.lexsort((q, ~counted))[: counted.sum()]  # the queries that count, class by class
    by_class = np.argsort(g, kind="stable")
    start = np.searchsorted(g[by_class], np.arange(len(names) + 1))
    values: dict[str, np.ndarray] = {}
    threads = torch.get_num_threads() if str(device) == "cpu" else 1
    with ThreadPoolExecutor(threads) as pool:
        for chosen, distances in _blocks(query, gallery, order, by_class, rows, columns, chunk, device, progress):

            def measure(piece: slice, chosen: np.ndarray = chosen, distances: Any = distances) -> None:
                items = chosen[piece]
                label = q[items[0]]
                ranks = _ranks(distances[piece], start[label], start[label + 1])
                found = _metrics(*ranks, relevant[items], candidates[items], cutoffs, voc)
                for name, column in found.items():
                    values[name][items] = column

            if not values:
                values = {name: np.full(len(q), np.nan) for name in _metric_names(cutoffs, voc)}
            list(pool.map(measure, _pieces(q[chosen], start)))

    near = values.pop("near ties")
    scores: dict[str, Any] = {name: float(value[counted].mean()) for name, value in values.items()}
    size = np.bincount(q[counted], minlength=len(names))
    present = np.flatnonzero(size)
    classes = {
        name: np.bincount(q[counted], value[counted], len(names))[present] / size[present]
        for name, value in values.items()
    }
    scores |= {f"macro {name}": float(value.mean()) for name, value in classes.items()}
    scores |= {
        "queries": len(q),
        "queries without relevant items": int((~counted).sum()),
        "near ties": int(near[counted].sum()),
    }
    if per_query:
        scores["per query"] = values
    if per_class:
        labels = [names[label] for label in present]
        table = {name: dict(zip(labels, value.tolist(), strict=True)) for name, value in classes.items()}
        scores["per class"] = table | {"queries": dict(zip(labels, size[present].tolist(), strict=True))}
    return scores
