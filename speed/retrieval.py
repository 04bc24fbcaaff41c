"""How fast and how large evaluation is, beside what users would otherwise write.

    python speed/retrieval.py            # some ten minutes on two cores; writes speed/retrieval.json
    python speed/retrieval.py --quick    # a minute: small sizes, nothing written

All routes get the same random features and labels and are timed in turn, three times over; the best
time of each counts.  Ratios are what to read: seconds depend on the machine.
"""

import argparse
import json
import multiprocessing
import os
import platform
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from scipy.optimize import nnls
from sklearn.metrics import average_precision_score

from clair import evaluate, search
from clair.files import atomic_bytes, versions
from clair.index import Index, recall

SKETCHY, QUICKDRAW = (15_229, 17_101), (92_291, 54_151)  # queries and gallery pictures of the benchmarks
WIDTH, CLASSES = 512, 25


def problem(queries: int, items: int, width: int = WIDTH, classes: int = CLASSES) -> tuple:
    """Features [Q, D] and [G, D] with some class structure, and their labels."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((classes, width), dtype=np.float32)
    labels = [rng.integers(classes, size=count) for count in (queries, items)]
    sides = [centres[each] + 3 * rng.standard_normal((len(each), width), dtype=np.float32) for each in labels]
    return sides[0], labels[0], sides[1], labels[1]


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def ours(query, query_labels, gallery, gallery_labels) -> float:
    return evaluate(query, query_labels, gallery, gallery_labels, k=(100, 200), progress=False)["mAP@all"]


def ours_at_k(query, query_labels, gallery, gallery_labels) -> float:
    return evaluate(query, query_labels, gallery, gallery_labels, k=(100, 200), only_at_k=True, progress=False)["P@200"]


def sklearn_loop(query, query_labels, gallery, gallery_labels) -> float:
    """What most published code does: one query at a time."""
    query, gallery = unit(query), unit(gallery)
    values = []
    for feature, label in zip(query, query_labels, strict=True):
        scores = gallery @ feature
        values.append(average_precision_score(gallery_labels == label, scores))
    return float(np.mean(values))


def argsort_route(query, query_labels, gallery, gallery_labels) -> float:
    """The whole matrix at once: sort the places of all, then count."""
    scores = unit(query) @ unit(gallery).T
    order = np.argsort(-scores, axis=1)
    relevant = gallery_labels[order] == query_labels[:, None]
    hits = relevant.cumsum(1)
    precision = hits / np.arange(1, relevant.shape[1] + 1)
    return float(((precision * relevant).sum(1) / relevant.sum(1)).mean())


def bare_bound(query, query_labels, gallery, gallery_labels) -> float:
    """The least that any exact route has to do: the product, block by block, and a sort of its values."""
    query, gallery = unit(query), unit(gallery)
    total = 0.0
    for start in range(0, len(query), 960):
        scores = query[start : start + 960] @ gallery.T
        scores.sort(axis=1)
        total += float(scores[0, 0])
    return total


def best_times(routes: dict[str, Callable], data: tuple, repeats: int = 3) -> dict[str, dict[str, float]]:
    """Seconds of each route, in turn, so that a slow moment of the machine hits all alike."""
    found: dict[str, list[float]] = {name: [] for name in routes}
    values: dict[str, float] = {}
    for _ in range(repeats):
        for name, route in routes.items():
            start = time.perf_counter()
            values[name] = route(*data)
            found[name].append(time.perf_counter() - start)
    return {name: {"seconds": round(min(times), 4), "value": values[name]} for name, times in found.items()}


def _measure(sizes: tuple[int, int], only_at_k: bool, pipe: multiprocessing.connection.Connection) -> None:
    data = problem(*sizes)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    (ours_at_k if only_at_k else ours)(*data)
    seconds = time.perf_counter() - start
    above = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**20
    pipe.send(
        {
            "queries": sizes[0],
            "gallery": sizes[1],
            "seconds": round(seconds, 2),
            "GiB above the features": round(above, 3),
        }
    )


def in_a_process(sizes: tuple[int, int], only_at_k: bool = False) -> dict[str, float]:
    """Seconds and peak memory of one evaluation, alone in a process of its own."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_measure, args=(sizes, only_at_k, sender))
    process.start()
    sender.close()
    try:
        return receiver.recv()
    finally:
        process.join()


def cost_model(quick: bool) -> dict:
    """seconds = a QGD + b QG log2 G + c QG + d(Q + G)D, fitted on a grid and checked on sizes left out."""
    grid = [(q, g, d) for q in (500, 1500) for g in (4000, 12000) for d in (64, 512)]
    left_out = [(1000, 8000, 256), (3000, 17101, 512)]
    if quick:
        grid, left_out = [(q // 5, g // 5, d) for q, g, d in grid], [(200, 1600, 256)]

    def terms(q: int, g: int, d: int) -> list[float]:
        return [q * g * d, q * g * np.log2(g), (q + g) * d]

    def seconds(q: int, g: int, d: int) -> float:
        return best_times({"ours": ours}, problem(q, g, d))["ours"]["seconds"]

    measured = [seconds(*size) for size in grid]
    rows, values = np.array([terms(*size) for size in grid]), np.array(measured)
    scaled, _ = nnls(rows / values[:, None], np.ones(len(values)))  # relative errors; no price is negative
    checks = []
    for size in left_out:
        real, told = seconds(*size), float(np.dot(terms(*size), scaled))
        checks.append({"size": size, "measured": real, "predicted": round(told, 4)})
    return {"terms": ["Q G D", "Q G log2 G", "(Q + G) D"], "seconds a unit": scaled.tolist(), "checks": checks}


def approximate(quick: bool) -> list[dict]:
    """Building and asking the index on disk, beside the exact search."""
    count, asked = (5_000, 100) if quick else (100_000, 1_000)
    query, _, gallery, _ = problem(asked, count, classes=1000)
    query, gallery = unit(query), unit(gallery)
    start = time.perf_counter()
    _, exact = search(query, gallery, 10, progress=False)
    plain = asked / (time.perf_counter() - start)
    rows = []
    for dtype in ("i8", "f16"):
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            index = Index.build(np.array_split(gallery, 20), Path(folder) / "index", dtype=dtype)
            built = time.perf_counter() - start
            start = time.perf_counter()
            _, places = search(query, index, 10)
            rate = asked / (time.perf_counter() - start)
            rows.append({
                "dtype": dtype, "gallery": count, "build seconds": round(built, 2),
                "MB": round(index.path.stat().st_size / 1e6, 1), "queries a second": round(rate),
                "exact queries a second": round(plain), "recall@10": round(recall(places, exact), 4),
            })  # fmt: skip
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    sizes = (200, 3000) if args.quick else (1000, SKETCHY[1])
    routes = {
        "clair.evaluate": ours, "clair.evaluate, only @K": ours_at_k, "scikit-learn, query by query": sklearn_loop,
        "numpy argsort": argsort_route, "bare product and sort": bare_bound,
    }  # fmt: skip
    result = {
        "sizes": {"queries": sizes[0], "gallery": sizes[1], "width": WIDTH, "classes": CLASSES},
        "routes": best_times(routes, problem(*sizes)),
        "machine": {"cores": os.cpu_count(), "machine": platform.machine(), "threads": torch.get_num_threads(),
                    "python": platform.python_version(), **versions(("numpy", "torch", "scikit-learn"))},
    }  # fmt: skip
    times = {name: row["seconds"] for name, row in result["routes"].items()}
    result["ratios"] = {name: round(seconds / times["clair.evaluate"], 2) for name, seconds in times.items()}
    print(json.dumps(result, indent=1), flush=True)
    result["cost model"] = cost_model(args.quick)
    print(json.dumps(result["cost model"]), flush=True)
    result["index"] = approximate(args.quick)
    print(json.dumps(result["index"]), flush=True)
    whole = [(300, 3000)] if args.quick else [SKETCHY, (5_000, QUICKDRAW[1]), QUICKDRAW]
    result["whole"] = []
    for size in whole:
        result["whole"].append(in_a_process(size))
        print(json.dumps(result["whole"][-1]), flush=True)
    result["whole, only @K"] = in_a_process(whole[0], only_at_k=True)
    if not args.quick:
        atomic_bytes(Path(__file__).with_suffix(".json"), (json.dumps(result, indent=1) + "\n").encode())


if __name__ == "__main__":
    sys.exit(main())
