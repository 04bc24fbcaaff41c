"""The one path from parameters to records; notebook 10, the command line and the grid all take it."""

import dataclasses
import json
import resource
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clair import records
from clair.clip import Clip, load_clip
from clair.datasets import Benchmark, did_you_mean, load_benchmark
from clair.files import cache_root, digest
from clair.mapping import METHODS as MAPS
from clair.mapping import DomainMap, domain_map
from clair.pseudo_labels import quality
from clair.retrieval import evaluate
from clair.training import Fitted, Recipe, fit, label_training_images, run_key

METHODS = ("frozen", "clair")
REPORTS = ("test", "validation")
CUTOFFS = (10, 100, 200)


@dataclass(frozen=True, kw_only=True)
class Params:
    """The parameters of a run, as in notebook 10 and in ``papermill_runs/params``."""

    dataset: str = "emoji"
    root: str = ""
    query: str = "line"
    gallery: str = "flat"
    split: int = 0
    seed: int = 0
    model: str = "iconclip"
    pretrained: str = ""
    methods: list[str] = field(default_factory=lambda: ["frozen", "clair"])
    recipe: dict[str, Any] = field(default_factory=dict)
    report: str = "test"
    device: str = "auto"
    records: str = ""

    @classmethod
    def from_dict(cls, given: Mapping[str, Any]) -> "Params":
        """ValueError, in one sentence, for an unknown parameter or value; nothing is loaded yet."""
        known = {entry.name: entry for entry in dataclasses.fields(cls)}
        plain = cls()
        for name, value in given.items():
            if name not in known:
                raise ValueError(did_you_mean("parameter", name, list(known)))
            kind = type(getattr(plain, name))
            if type(value) is not kind:
                raise ValueError(f"The parameter {name!r} takes {kind.__name__}, not {value!r}.")
        params = cls(**given)
        for method in params.methods:
            if method not in METHODS:
                raise ValueError(did_you_mean("method", method, METHODS))
        if not params.methods:
            raise ValueError(f"Name at least one method of {', '.join(METHODS)}.")
        if params.report not in REPORTS:
            raise ValueError(did_you_mean("report", params.report, REPORTS))
        if params.seed < 0:
            raise ValueError(f"The seed is {params.seed}: choose 0 or more.")
        recipe = Recipe.from_dict(params.recipe)
        if recipe.map_method not in MAPS:
            raise ValueError(did_you_mean("map", recipe.map_method, MAPS))
        return params


@dataclass
class Run:
    """What a run leaves in memory, for pictures: the benchmark, the models, the records."""

    benchmark: Benchmark
    model: Clip
    maps: dict[str, DomainMap]
    fitted: Fitted | None = None
    records: list[dict[str, Any]] = field(default_factory=list)


def run(given: Mapping[str, Any], *, progress: bool = True) -> Run:
    """Benchmark → images → features → pseudo-labels → fit → mapping → retrieval → records.

    One record a method, written to the folder ``records`` (by default ``records`` in the cache).
    """
    params = Params.from_dict(given)
    recipe = Recipe.from_dict(params.recipe)
    bench = load_benchmark(params.dataset, params.query, params.gallery, params.split, params.root or None)
    model = load_clip(params.model, params.pretrained, params.device)
    a, b = (model.encode_classes(bench.seen, bench.templates[domain]) for domain in bench.domains)
    maps = {
        f"{bench.query}->{bench.gallery}": domain_map(a, b, method=recipe.map_method, strength=recipe.map_strength),
        f"{bench.gallery}->{bench.query}": domain_map(b, a, method=recipe.map_method, strength=recipe.map_strength),
    }
    result = Run(bench, model, maps)
    labels = label_training_images(bench, model, recipe)
    qualities = {domain: quality(labels[domain], bench.truth.train[domain], bench.seen) for domain in bench.domains}
    for method in params.methods:
        key = record_key(params, recipe, method, bench, model)
        encoder = model
        if method == "clair":  # a checkpoint of the same run: gone on with, or if it is whole just loaded
            # Both keys: code may change with the same labels, and labels with the same code, by threads or device.
            path = cache_root() / "fits" / f"{key}-{run_key(bench, model, recipe, labels, params.seed)}.safetensors"
            encoder = result.fitted = fit(
                bench, model, recipe, labels, seed=params.seed, checkpoint=path, progress=progress
            )
        trained = result.fitted if method == "clair" else None
        record = {
            "schema": records.SCHEMA,
            "key": key,
            "method": method,
            "params": dataclasses.asdict(params) | {"records": "", "methods": [method]},
            "recipe": dataclasses.asdict(recipe),
            "metrics": retrieval_metrics(bench, encoder, maps, params.report),
            "label quality": qualities,
            "cost": {
                "training seconds": trained.seconds if trained else 0.0,
                "parameters trained": sum(p.numel() for p in trained.learnt) if trained else 0,
                "images seen": trained.images_seen if trained else 0,
                "peak memory MiB": _peak_mebibytes(),
            },
            "provenance": records.provenance() | {"benchmark": bench.digest(), "weights": model.weights_digest()},
        }
        result.records.append(record)
        records.write(record, Path(params.records) if params.records else cache_root() / "records")
    return result


def record_key(params: Params, recipe: Recipe, method: str, bench: Benchmark, model: Clip) -> str:
    """Equal keys mean the same run: parameters, recipe, pictures, weights and code."""
    chosen = [params.dataset, params.query, params.gallery, params.split, params.seed, params.report, params.device]
    return digest(
        chosen, method, dataclasses.asdict(recipe), bench.digest(), model.weights_digest(), records.code_digest()
    )


def retrieval_metrics(
    bench: Benchmark, encoder: Clip, maps: Mapping[str, DomainMap], report: str = "test"
) -> dict[str, dict[str, dict[str, Any]]]:
    """Zero-shot retrieval in both directions, without a map and with it.

    Queries and gallery are the pictures of the unseen (or validation) classes; a query's own twin,
    the same concept drawn in the other domain, is neither in its gallery nor relevant.
    """
    sets = bench.test if report == "test" else bench.held
    labels = getattr(bench.truth, report)
    features = {domain: encoder.encode_images(sets[domain]) for domain in bench.domains}
    metrics = {}
    for query, gallery in (bench.domains, bench.domains[::-1]):
        direction = f"{query}->{gallery}"
        carry = maps[direction]
        rows: dict[str, tuple[Tensor, Tensor]] = {"none": (features[query], features[gallery])}
        if carry.method != "none":
            rows[carry.method] = (carry(features[query]), carry.gallery(features[gallery]))
        metrics[direction] = {
            row: evaluate(
                x, labels[query], y, labels[gallery], k=CUTOFFS,
                query_ids=np.array(sets[query].keys), gallery_ids=np.array(sets[gallery].keys),
            )
            for row, (x, y) in rows.items()
        }  # fmt: skip
    return metrics


def _peak_mebibytes() -> float:
    """The most memory this process has held; the kernel counts KiB, macOS bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (2**20 if sys.platform == "darwin" else 2**10), 1)


def use_deterministic_torch() -> None:
    """Ask torch for the same bits each time; the command line and the notebooks call this first."""
    torch.use_deterministic_algorithms(True, warn_only=True)


def summary(found: list[dict[str, Any]], metrics: tuple[str, ...] = ("mAP@all", "P@10")) -> str:
    """A small text table of records."""
    lines = [f"{'direction':<14}{'method':<9}{'map':<16}" + "".join(f"{metric:>10}" for metric in metrics)]
    for record in found:
        for direction, rows in record["metrics"].items():
            for carried, values in rows.items():
                cells = "".join(f"{values[metric]:>10.3f}" for metric in metrics)
                lines.append(f"{direction:<14}{record['method']:<9}{carried:<16}{cells}")
    return "\n".join(lines)


def read_params(path: Path) -> dict[str, Any]:
    """A parameter file (YAML or JSON) as a dict; ValueError says what is wrong with it."""
    import yaml

    path = Path(path)
    if not path.is_file():
        known = sorted(file.name for file in path.parent.glob("*.y*ml")) or ["none"]
        raise FileNotFoundError(f"There is no parameter file {path}; in that folder: {', '.join(known)}.")
    try:
        given = (
            json.loads(path.read_text("utf-8")) if path.suffix == ".json" else yaml.safe_load(path.read_text("utf-8"))
        )
    except (yaml.YAMLError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not a parameter file: {' '.join(str(error).split())}") from error
    if not isinstance(given, dict):
        raise ValueError(f"{path} must hold lines like 'dataset: emoji', not {type(given).__name__}.")
    return given
