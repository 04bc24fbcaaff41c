"""The record of a run: one JSON file, written last, that says what was done and what came out."""

import ast
import functools
import json
import math
import platform
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from clair.emoji import PACKAGES as RENDERERS
from clair.files import atomic_bytes, digest, versions

SCHEMA = 1
PACKAGES = ("torch", "open-clip-torch", "numpy", "pillow", *RENDERERS)
NEEDED = ("schema", "key", "method", "params", "recipe", "metrics", "label quality", "cost", "provenance")
REPOSITORY = Path(__file__).resolve().parent.parent


@functools.cache
def code_digest() -> str:
    """A key of the code that runs take; comments, layout and docstrings do not change it, nor do plots and reports."""
    parts = []
    for path in sorted(Path(__file__).parent.glob("*.py")):
        if path.name in ("plots.py", "check.py", "intervals.py", "__main__.py"):
            continue
        tree = ast.parse(path.read_text("utf-8"))
        for node in ast.walk(tree):
            body = getattr(node, "body", None)
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
                node.body = body[1:] or [ast.Pass()]  # type: ignore[index]
        parts.append([path.name, ast.dump(tree)])
    return digest(parts)


def provenance() -> dict[str, Any]:
    """Where a run was made: commit, versions, hardware, threads."""

    def git(*words: str) -> str:
        try:
            done = subprocess.run(["git", *words], cwd=REPOSITORY, capture_output=True, text=True, timeout=20)
        except (OSError, subprocess.TimeoutExpired):
            return ""
        return done.stdout.strip() if done.returncode == 0 else ""

    return {
        "commit": git("rev-parse", "HEAD"),
        # Records and built pages may differ; code and notebooks may not.
        "dirty": bool(git("status", "--porcelain", "--", "clair")),
        "code": code_digest(),
        "python": platform.python_version(),
        "packages": versions(PACKAGES),
        "machine": platform.machine(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU",
        "threads": torch.get_num_threads(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
    }


def write(record: dict[str, Any], folder: Path) -> Path:
    """Write a record under its name, whole or not at all; returns its path."""
    check(record)
    path = Path(folder) / f"{name(record)}.json"
    atomic_bytes(path, (json.dumps(record, indent=1, sort_keys=True, default=_plain) + "\n").encode())
    return path


def name(record: dict[str, Any]) -> str:
    """`emoji-line-flat-split0-seed0-clair-1a2b3c4d`."""
    p = record["params"]
    where = "" if p["report"] == "test" else f"-{p['report']}"
    what = f"{p['dataset']}-{p['query']}-{p['gallery']}-split{p['split']}-seed{p['seed']}"
    return f"{what}-{record['method']}{where}-{record['key'][:8]}"


def check(record: dict[str, Any]) -> None:
    """ValueError unless the record is complete and its numbers are finite."""
    missing = [key for key in NEEDED if key not in record]
    if missing:
        raise ValueError(f"The record lacks {', '.join(missing)}: was its run interrupted?")
    if record["schema"] != SCHEMA:
        raise ValueError(f"The record has schema {record['schema']}, this library reads {SCHEMA}: run it again.")
    for direction, rows in record["metrics"].items():
        for row, values in rows.items():
            for metric, value in values.items():
                if isinstance(value, float) and not math.isfinite(value):
                    raise ValueError(f"The record's {metric} of {row} ({direction}) is {value}.")


def read(path: Path) -> dict[str, Any]:
    """Read and check one record."""
    try:
        record = json.loads(Path(path).read_text("utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not a whole record ({error}): delete it and run again.") from error
    check(record)
    return record


def collect(folder: Path, *, allow_mixed: bool = False) -> pd.DataFrame:
    """All records of a folder as one tidy table: a row per method, direction, map and metric.

    Refuses records of dirty or of different code unless ``allow_mixed``.
    """
    records = [read(path) for path in sorted(Path(folder).glob("*.json"))]
    if not records:
        raise FileNotFoundError(f"There is no record in {folder}: make some with `make records`.")
    codes = {record["provenance"]["code"] for record in records}
    dirty = [name(record) for record in records if record["provenance"]["dirty"]]
    if not allow_mixed and (len(codes) > 1 or dirty):
        why = f"{len(codes)} versions of the code" if len(codes) > 1 else f"uncommitted code ({dirty[0]}, …)"
        raise ValueError(f"The records in {folder} come from {why}: make them again, or pass allow_mixed=True.")
    rows = []
    for record in records:
        p = record["params"]
        own = f"{p['query']}->{p['gallery']}"  # the run's own direction comes first
        for direction in sorted(record["metrics"], key=lambda name: (name != own, name)):
            for carried, values in record["metrics"][direction].items():
                for metric, value in values.items():
                    if isinstance(value, int | float):
                        rows.append(
                            {
                                "dataset": p["dataset"],
                                "split": p["split"],
                                "seed": p["seed"],
                                "report": p["report"],
                                "method": record["method"],
                                "direction": direction,
                                "map": carried,
                                "metric": metric,
                                "value": value,
                            }
                        )
    return pd.DataFrame(rows)


def markdown(table: pd.DataFrame, metrics: tuple[str, ...] = ("mAP@all", "P@10")) -> str:
    """A small table for the README: means over splits and seeds, a row per method and map."""
    table = table[table.report == "test"]
    directions = list(dict.fromkeys(table.direction))
    mean = table.groupby(["method", "map", "direction", "metric"]).value.mean()
    heads = [f"{metric} {direction.replace('->', ' → ')}" for direction in directions for metric in metrics]
    lines = ["| | " + " | ".join(heads) + " |", "|---|" + "---:|" * len(heads)]
    for method in ("frozen", "clair"):
        for carried in ("none", *sorted(set(table["map"]) - {"none"})):
            if (method, carried) not in mean.index:
                continue
            cells = [f"{mean[method, carried, d, metric]:.3f}" for d in directions for metric in metrics]
            lines.append(f"| {row_name(method, carried)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def row_name(method: str, carried: str) -> str:
    """How a method and its map are called in tables and figures."""
    return {"frozen": "frozen CLIP", "clair": "CLAIR"}.get(method, method) + (
        "" if carried == "none" else " + text map"
    )


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    raise TypeError(f"A record holds plain values only, not {type(value).__name__}.")
