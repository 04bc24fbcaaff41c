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
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, pairwise
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float32, Float64, Int, Int64
from torch import Tensor
from tqdm.auto import tqdm

from clair.files import silent
from clair.index import Index

NEAR = 1e-6  # scores this close may change places through rounding
BLOCK = 2**24  # scores held at once, 64 MiB
# Matrix products of these fixed steps give a score the same bits wherever its items stand: edges and
# small shapes take other paths through BLAS.  Tested with OpenBLAS, which numpy brings along.
ROWS, COLUMNS = 64, 256


def evaluate(
    query: Any,
    query_labels: Iterable[Any],
    gallery: Any,
    gallery_labels: Iterable[Any],
    *,
    k: int | Iterable[Any] = (100, 200),
    query_ids: Iterable[Any] | None = None,
    gallery_ids: Iterable[Any] | None = None,
    per_query: bool = False,
    per_class: bool = False,
    voc: bool = False,
    only_at_k: bool = False,
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
        only_at_k: leave out what needs the whole ranking (mAP@all and R-precision), which is faster: the
            first K are found without sorting the rest.  "near ties" are then those among the first K.
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
    names, q, g = _classes(query_labels, gallery_labels, (len(query), len(gallery)))
    twins = _twins(query_ids, gallery_ids, (len(query), len(gallery)))

    lost = twins[0][q[twins[0]] == g[twins[1]]]  # queries, once for each twin that would be relevant
    relevant = np.bincount(g, minlength=len(names))[q] - np.bincount(lost, minlength=len(q))
    candidates = len(g) - np.bincount(twins[0], minlength=len(q))
    counted = relevant > 0
    if not counted.any():
        raise ValueError("No query has a relevant item in the gallery: use the same class names on both sides.")

    order = np.lexsort((q, ~counted))[: counted.sum()]  # the queries that count, class by class
    by_class = np.argsort(g, kind="stable")
    start = np.searchsorted(g[by_class], np.arange(len(names) + 1)).tolist()
    values: dict[str, np.ndarray] = defaultdict(lambda: np.full(len(q), np.nan))
    with ThreadPoolExecutor(torch.get_num_threads() if str(device) == "cpu" else 1) as pool:
        for chosen, distances in _blocks(query, gallery, order, by_class, twins, chunk, device, progress):
            jobs = []
            for piece in _pieces(q[chosen], np.diff(start)):
                items, label = chosen[piece], q[chosen[piece][0]]
                ask = start[label], start[label + 1], relevant[items], candidates[items], cutoffs, voc, only_at_k
                jobs.append((items, pool.submit(_metrics, distances[piece], *ask)))
            for items, job in jobs:
                for name, found in job.result().items():
                    values[name][items] = found

    near = values.pop("near ties")
    size = np.bincount(q[counted])
    present = np.flatnonzero(size)
    classes = {name: np.bincount(q[counted], value[counted])[present] / size[present] for name, value in values.items()}
    scores: dict[str, Any] = {name: float(value[counted].mean()) for name, value in values.items()}
    scores |= {f"macro {name}": float(value.mean()) for name, value in classes.items()}
    scores |= {"queries": len(q), "queries without relevant items": int((~counted).sum())}
    scores |= {"near ties": int(near[counted].sum())}
    if per_query:
        scores["per query"] = dict(values)
    if per_class:
        table = {**classes, "queries": size[present]}
        labels = [names[index] for index in present]
        scores["per class"] = {name: dict(zip(labels, row.tolist(), strict=True)) for name, row in table.items()}
    return scores


def search(
    query: Any,
    gallery: Any,
    k: int,
    *,
    query_ids: Iterable[Any] | None = None,
    gallery_ids: Iterable[Any] | None = None,
    chunk: int | None = None,
    device: str | torch.device = "cpu",
    progress: bool = True,
) -> tuple[Float32[np.ndarray, "Q k"], Int64[np.ndarray, "Q k"]]:
    """The k nearest gallery items of each query, exact, nearest first; equal scores in the gallery's order.

    Takes features, twins and the rest as :func:`evaluate` does.  Returns the cosines and the rows of the
    gallery.  ValueError, besides those of :func:`evaluate`: k exceeds what a query may find.

    ``gallery`` may also be an `index.Index`: then the search is approximate, and takes no ids.
    """
    k = _positive(k, "k")
    if isinstance(gallery, Index):
        if query_ids is not None or gallery_ids is not None:
            raise ValueError("An index knows no twins: leave query_ids and gallery_ids out, or search exactly.")
        return gallery.search(query.detach().cpu().numpy() if isinstance(query, Tensor) else query, k)
    query, gallery = _matrices(query, gallery)
    twins = _twins(query_ids, gallery_ids, (len(query), len(gallery)))
    fewest = len(gallery) - int(np.bincount(twins[0], minlength=1).max())
    if k > fewest:
        raise ValueError(f"k is {k}, but some query has only {fewest} gallery items to find: ask for at most {fewest}.")
    scores, places = np.empty((len(query), k), np.float32), np.empty((len(query), k), np.int64)
    orders = np.arange(len(query)), np.arange(len(gallery))
    for chosen, block in _blocks(query, gallery, *orders, twins, chunk, device, progress):
        distances = block.cpu().numpy() if isinstance(block, Tensor) else block
        for item, row in zip(chosen, distances, strict=True):
            nearest = np.flatnonzero(row <= np.partition(row, k - 1)[k - 1])  # k items and all that tie with the last
            places[item] = nearest[np.argsort(row[nearest], kind="stable")[:k]]
            scores[item] = -row[places[item]]
    return scores, places


def _blocks(
    query: np.ndarray,
    gallery: np.ndarray,
    query_order: Int[np.ndarray, " q"],
    gallery_order: Int[np.ndarray, " G"],
    twins: tuple[np.ndarray, np.ndarray],
    chunk: int | None,
    device: str | torch.device,
    progress: bool,
) -> Iterator[tuple[Int[np.ndarray, " n"], Any]]:
    """Some queries and their negated cosines [n, G], so that the nearest is smallest, twins at infinity.

    Both axes are in the orders given.  The caller may overwrite a block; the next one does.
    """
    count, size = len(query_order), len(gallery)
    chunk = max(BLOCK // size // ROWS, 1) * ROWS if chunk is None else _positive(chunk, "chunk")
    left = _unit(query, "query", query_order)
    right = _unit(gallery, "gallery", gallery_order)[: _ceil(size, COLUMNS)]
    there = None if str(device) == "cpu" else torch.from_numpy(right).to(device)
    buffer = np.empty((_ceil(min(chunk, count), ROWS) if there is None else 0, len(right)), np.float32)
    place, column = np.full(len(query), count), np.empty(size, np.int64)
    place[query_order], column[gallery_order] = np.arange(count), np.arange(size)
    by_place = np.argsort(place[twins[0]], kind="stable")
    rows, columns = place[twins[0]][by_place], column[twins[1]][by_place]

    with tqdm(total=count, desc="retrieval", unit="query", delay=2, disable=silent(progress)) as bar:
        for first in range(0, count, chunk):
            last = min(first + chunk, count)
            some = -left[first : first + _ceil(last - first, ROWS)]
            product = np.matmul(some, right.T, out=buffer[: len(some)]) if there is None else _multiply(some, there)
            distances = product[: last - first, :size]
            low, high = np.searchsorted(rows, (first, last))
            distances[rows[low:high] - first, columns[low:high]] = np.inf
            yield query_order[first:last], distances
            bar.update(last - first)


def _multiply(some: Float32[np.ndarray, "n D"], there: Float32[Tensor, "G D"]) -> Float32[Tensor, "n G"]:
    """The product on the device of ``there``, in float32 whatever the process allows (TF32, bfloat16, autocast)."""
    backends = [getattr(module, "matmul", None) for module in (torch.backends.cuda, torch.backends.mkldnn)]
    since_torch_2_9 = hasattr(backends[0], "fp32_precision")
    name, full = ("fp32_precision", "ieee") if since_torch_2_9 else ("allow_tf32", False)
    with contextlib.ExitStack() as stack:
        for backend in backends:
            if hasattr(backend, name):
                stack.callback(setattr, backend, name, getattr(backend, name))
                setattr(backend, name, full)
        stack.enter_context(torch.no_grad())
        stack.enter_context(torch.autocast(there.device.type, enabled=False))
        return torch.from_numpy(some).to(there.device) @ there.T


def _pieces(labels: Int[np.ndarray, " n"], sizes: Int[np.ndarray, " C"]) -> list[slice]:
    """Runs of one class, cut so that [queries, relevant items] stays within the processor's cache."""
    edges = [0, *(np.flatnonzero(np.diff(labels)) + 1).tolist(), len(labels)]
    steps = [(low, high, max(2**16 // int(sizes[labels[low]]), 1)) for low, high in pairwise(edges)]
    return [slice(at, min(at + step, high)) for low, high, step in steps for at in range(low, high, step)]


def _ranks(
    distances: Any, low: int, high: int, depth: int | None = None
) -> tuple[Float32[np.ndarray, "n R"], Int64[np.ndarray, "n R"], Int64[np.ndarray, "n R"], Bool[np.ndarray, " n"]]:
    """Where the relevant items, columns low to high, stand among the others; overwrites ``distances`` [n, G].

    Returns the relevant distances in order, infinite ones last; for each of them the number of irrelevant
    items that are nearer, and that are nearer or equal; and per query whether a relevant and an irrelevant
    distance differ by at most NEAR.  With ``depth`` only items that may be among the first ``depth`` are
    placed; the others are given ranks behind them.
    """
    if isinstance(distances, Tensor):
        return _ranks_on_device(distances, low, high, depth)
    own = np.sort(distances[:, low:high], axis=1)
    if depth is not None and depth < distances.shape[1]:
        return _first_ranks(distances, own, low, high, depth)
    distances[:, low:high] = np.inf  # all that is not irrelevant goes to the end
    distances.sort(axis=1)
    nearer, upto = np.empty(own.shape, np.int64), np.empty(own.shape, np.int64)
    for row, (rest, mine) in enumerate(zip(distances, own, strict=True)):
        nearer[row] = rest.searchsorted(mine)
        upto[row] = rest.searchsorted(mine, side="right")
    below = np.take_along_axis(distances, np.maximum(nearer - 1, 0), axis=1)
    beyond = np.take_along_axis(distances, np.minimum(nearer, distances.shape[1] - 1), axis=1)
    with np.errstate(invalid="ignore"):  # inf - inf is nan, which is not near
        near = np.minimum(np.abs(own - below), np.abs(beyond - own)) <= NEAR
    return own, nearer, upto, near.any(axis=1)


def _first_ranks(distances: Any, own: Any, low: int, high: int, depth: int) -> Any:
    """The same for the first ``depth`` items, without sorting the rest."""
    limit = np.partition(distances, depth - 1, axis=1)[:, depth - 1] + np.float32(2 * NEAR)
    distances[:, low:high] = np.inf
    nearer = np.full(own.shape, distances.shape[1], np.int64)  # no place among the first
    upto, near = nearer.copy(), np.zeros(len(own), bool)
    for row, (line, mine, last) in enumerate(zip(distances, own, limit, strict=True)):
        rest = np.sort(line[line <= last])
        some = mine[: mine.searchsorted(last, side="right")]
        nearer[row, : len(some)] = at = rest.searchsorted(some)
        upto[row, : len(some)] = rest.searchsorted(some, side="right")
        if len(some) and len(rest):
            with np.errstate(invalid="ignore"):
                gaps = np.abs(some - rest[np.maximum(at - 1, 0)]), np.abs(rest[np.minimum(at, len(rest) - 1)] - some)
                near[row] = (np.fmin(*gaps) <= NEAR).any()
    return own, nearer, upto, near


def _ranks_on_device(distances: Float32[Tensor, "n G"], low: int, high: int, depth: int | None) -> Any:
    """The same, line by line, where a GPU does the work; it sorts all of them in any case."""
    limit = torch.inf
    if depth is not None and depth < distances.shape[1]:
        limit = distances.kthvalue(depth, dim=1, keepdim=True).values + 2 * NEAR
    own = distances[:, low:high].sort(dim=1).values
    distances[:, low:high] = torch.inf
    distances = distances.sort(dim=1).values
    nearer, upto = torch.searchsorted(distances, own), torch.searchsorted(distances, own, right=True)
    below = distances.gather(1, (nearer - 1).clamp(min=0))
    beyond = distances.gather(1, nearer.clamp(max=distances.shape[1] - 1))
    near = torch.minimum((own - below).abs(), (beyond - own).abs()).le(NEAR)
    near = (near & (own <= limit)).any(dim=1)
    return own.cpu().numpy(), nearer.cpu().numpy(), upto.cpu().numpy(), near.cpu().numpy()


def _metrics(
    distances: Any,
    low: int,
    high: int,
    relevant: Int[np.ndarray, " n"],
    candidates: Int[np.ndarray, " n"],
    cutoffs: list[int],
    voc: bool,
    only_at_k: bool,
) -> dict[str, Float64[np.ndarray, " n"]]:
    """Every metric of n queries of one class, whose items are the columns low to high; 1 for a near tie."""
    own, nearer, upto, near = _ranks(distances, low, high, max(cutoffs) if only_at_k else None)
    column = np.arange(own.shape[1])
    real = column < relevant[:, None]  # the others are twins
    new = np.ones((len(own), len(column) + 1), bool)  # where a run of equal relevant distances starts
    new[:, 1:-1] = own[:, 1:] != own[:, :-1]
    first = np.maximum.accumulate(np.where(new[:, :-1], column, 0), axis=1)
    last = np.minimum.accumulate(np.where(new[:, 1:], column + 1, len(column))[:, ::-1], axis=1)[:, ::-1]
    above, run = nearer + first, upto + last - nearer - first  # items nearer; items that tie, itself among them
    precision = np.where(real, last / (above + run), 0.0)

    def inside(cutoff: Any) -> Float64[np.ndarray, "n R"]:
        """The probability of each relevant item to be among the first ``cutoff``."""
        return np.clip((cutoff - above) / run, 0.0, 1.0) * real

    def raised(weight: np.ndarray) -> Float64[np.ndarray, "n R"]:
        """For each relevant item the best precision from there down, among those of some weight."""
        return np.maximum.accumulate(np.where(weight > 0, precision, 0.0)[:, ::-1], axis=1)[:, ::-1]

    values = {} if only_at_k else {"mAP@all": precision.sum(1) / relevant}
    if voc and not only_at_k:
        values["mAP@all/voc"] = (real * raised(real)).sum(1) / relevant
    for cutoff in cutoffs:
        weight, possible = inside(cutoff), np.minimum(cutoff, relevant)
        hits, total = weight.sum(1), (weight * precision).sum(1)
        values[f"mAP@{cutoff}/min"] = total / possible
        values[f"mAP@{cutoff}/hits"] = np.divide(total, hits, out=np.zeros(len(hits)), where=hits > 0)
        if voc:
            values[f"mAP@{cutoff}/voc"] = (weight * raised(weight)).sum(1) / possible
        values[f"P@{cutoff}"] = hits / cutoff
        values[f"P@{cutoff}/min"] = hits / possible
    if not only_at_k:
        values["R-precision"] = inside(relevant[:, None]).sum(1) / relevant
    return values | {"chance": relevant / candidates, "near ties": near.astype(np.float64)}


def _unit(features: np.ndarray, side: str, order: Int[np.ndarray, " n"]) -> Float32[np.ndarray, "P D"]:
    """Rows of length one in the order given, then COLUMNS spare rows; ValueError for rows without a direction."""
    unit = np.zeros((len(order) + COLUMNS, features.shape[1]), np.float32)
    place = np.full(
        len(features), len(order)
    )  # rows that are not asked for go to a spare one: they are checked all the same
    place[order] = np.arange(len(order))
    step = max(2**20 // features.shape[1], 1)
    for start in range(0, len(features), step):
        block = np.array(features[start : start + step], np.float64, order="C")
        largest = np.abs(block).max(axis=1, keepdims=True)
        for bad, what in ((~np.isfinite(largest), "holds NaN or infinity"), (largest == 0, "is a zero vector")):
            if bad.any():
                raise ValueError(f"Row {start + bad.argmax()} of the {side} features {what}: leave such rows out.")
        block /= largest  # so that squares neither overflow nor vanish
        unit[place[start : start + step]] = block / np.sqrt((block * block).sum(axis=1, keepdims=True))
    return unit


def _matrices(*sides: Any) -> list[np.ndarray]:
    """Query and gallery features as arrays of floats [items, dimensions], or an error that says what is wrong."""
    arrays = []
    for side, features in zip(("query", "gallery"), sides, strict=True):
        if isinstance(features, Tensor):
            features = features.detach().cpu()
            if features.is_floating_point() and features.dtype not in (torch.float16, torch.float64):
                features = features.float()  # numpy has no bfloat16
        array = np.asarray(features)
        if array.dtype.kind != "f":
            raise TypeError(f"The {side} features are {array.dtype}: give floating-point numbers.")
        if array.ndim != 2 or 0 in array.shape:
            raise ValueError(f"The {side} features have shape {array.shape}: give [items, dimensions], at least one.")
        arrays.append(array)
    widths = [array.shape[1] for array in arrays]
    if widths[0] != widths[1]:
        raise ValueError(f"The query has {widths[0]} dimensions, the gallery {widths[1]}: encode both with one model.")
    return arrays


def _listed(values: tuple[Iterable[Any], Iterable[Any]], what: str, counts: tuple[int, int]) -> list[list[Any]]:
    """The labels or ids of both sides as plain Python values; ValueError if there are too many or too few."""
    sides = []
    for side, some, count in zip(("query", "gallery"), values, counts, strict=True):
        some = some.tolist() if isinstance(some, np.ndarray | Tensor) else some
        sides.append([value.item() if isinstance(value, np.generic | Tensor) else value for value in some])
        if len(sides[-1]) != count:
            raise ValueError(f"There are {len(sides[-1])} {side}_{what} for {count} {side} features: give one each.")
    return sides


def _classes(
    query_labels: Iterable[Any], gallery_labels: Iterable[Any], counts: tuple[int, int]
) -> tuple[list[Any], Int[np.ndarray, " Q"], Int[np.ndarray, " G"]]:
    """The sorted class names, and each item's class as an index into them."""
    sides = _listed((query_labels, gallery_labels), "labels", counts)
    kinds = {type(label) for label in chain(*sides)}
    if kinds not in ({int}, {str}):
        text = " and ".join(sorted(kind.__name__ for kind in kinds))
        raise TypeError(f"Labels must be integers on both sides, or strings on both; they are {text}.")
    names = sorted(set(chain(*sides)))
    code = {name: index for index, name in enumerate(names)}
    q, g = (np.array([code[label] for label in side]) for side in sides)
    return names, q, g


def _twins(
    query_ids: Iterable[Any] | None, gallery_ids: Iterable[Any] | None, counts: tuple[int, int]
) -> tuple[Int64[np.ndarray, " T"], Int64[np.ndarray, " T"]]:
    """Every pair (query, gallery item) of the same id, in the order of the queries."""
    if query_ids is None and gallery_ids is None:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    if query_ids is None or gallery_ids is None:
        raise ValueError("Give both query_ids and gallery_ids, or neither.")
    sides = _listed((query_ids, gallery_ids), "ids", counts)
    kinds = [{type(key).__name__ for key in side if key is not None} for side in sides]
    if all(kinds) and kinds[0].isdisjoint(kinds[1]):
        raise TypeError(f"query_ids are {min(kinds[0])} and gallery_ids {min(kinds[1])}: use one kind, or none match.")
    places = defaultdict(list)
    for column, key in enumerate(sides[1]):
        if key is not None:
            places[key].append(column)
    found = [places.get(key, ()) for key in sides[0]]
    rows = np.repeat(np.arange(counts[0]), [len(columns) for columns in found])
    return rows, np.fromiter(chain.from_iterable(found), np.int64, len(rows))


def _positive(value: Any, name: str) -> int:
    """An integer of at least 1."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"{name} must be a positive integer, not {value!r}.")
    if value < 1:
        raise ValueError(f"{name} must be at least 1, not {value}.")
    return int(value)


def _ceil(value: int, step: int) -> int:
    """The next multiple of step."""
    return -(-value // step) * step
