"""An approximate index on disk, for galleries that outgrow memory or patience.

    index = Index.build(chunks, "gallery.index")           # chunks of features, e.g. of a memory map
    scores, places = clair.search(query, Index("gallery.index"), k=10)

`clair.search` is exact and needs the gallery's features in memory.  This one keeps a graph of
neighbours in a file (HNSW by the library usearch, extra ``index``), which is mapped, not read, and
misses a few of the true neighbours: measure how many with `recall`.  Metrics are never computed on it.
"""

import json
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Int64

from clair.files import atomic_bytes


class Index:
    """A finished index in a file; searching maps it from disk."""

    def __init__(self, path: Path | str):
        """Open the index at ``path``; FileNotFoundError or ValueError say what is wrong with it."""
        self.path = Path(path)
        if not self.path.exists() or not _about(self.path).exists():
            raise FileNotFoundError(f"There is no index at {self.path}: make one with Index.build.")
        about = json.loads(_about(self.path).read_text("utf-8"))
        self.count, self.width = about["count"], about["width"]
        self._index = _usearch().restore(str(self.path), view=True)
        if self._index is None or len(self._index) != self.count:
            raise ValueError(f"{self.path} is not a whole index: build it again.")

    @classmethod
    def build(
        cls,
        chunks: Iterable[Any],
        path: Path | str,
        *,
        dtype: str = "i8",
        links: int = 16,
        effort: int = 128,
        threads: int = 0,
    ) -> "Index":
        """Index unit-length features that come chunk by chunk [n, D]; rows are numbered as they come.

        ``dtype`` is what a number is stored as ("i8", one byte, or "f16", "f32"), ``links`` the neighbours
        kept a picture, ``effort`` how many are looked at for them; more of either is slower and misses
        less.  With ``threads`` 1 the same features give the same file; 0 takes all cores.

        Raises ValueError for chunks of different widths, no features or NaN.
        """
        index, count, width = None, 0, 0
        for chunk in chunks:
            rows = np.ascontiguousarray(chunk, dtype=np.float32)
            if rows.ndim != 2 or (index is not None and rows.shape[1] != width):
                raise ValueError(f"A chunk of features has shape {rows.shape}: give [items, {width or 'dimensions'}].")
            if not np.isfinite(rows).all():
                raise ValueError("The features hold NaN or infinity: leave such rows out.")
            if index is None:
                width = rows.shape[1]
                kind = _usearch()
                index = kind(ndim=width, metric="cos", dtype=dtype, connectivity=links, expansion_add=effort)
            index.add(np.arange(count, count + len(rows)), rows, threads=threads)
            count += len(rows)
        if index is None or count == 0:
            raise ValueError("There are no features to index.")
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        os.close(handle)
        try:
            index.save(temporary)
            os.replace(temporary, path)
        finally:
            Path(temporary).unlink(missing_ok=True)
        atomic_bytes(_about(path), (json.dumps({"count": count, "width": width, "dtype": dtype}) + "\n").encode())
        return cls(path)

    def search(
        self, query: Any, k: int, *, effort: int = 128
    ) -> tuple[Float32[np.ndarray, "Q k"], Int64[np.ndarray, "Q k"]]:
        """About the ``k`` nearest rows of each query, nearest first: cosines and row numbers."""
        rows = np.ascontiguousarray(query, dtype=np.float32)
        if rows.ndim != 2 or rows.shape[1] != self.width:
            raise ValueError(f"The query features have shape {rows.shape}: give [queries, {self.width}].")
        if not 1 <= k <= self.count:
            raise ValueError(f"k is {k}: ask for 1 to {self.count} items.")
        self._index.expansion_search = max(effort, k)
        found = self._index.search(rows, k)
        keys = np.asarray(found.keys, np.int64).reshape(len(rows), k)
        scores = 1 - np.asarray(found.distances, np.float32).reshape(len(rows), k)
        return scores, keys


def recall(approximate: Int64[np.ndarray, "Q k"], exact: Int64[np.ndarray, "Q k"]) -> float:
    """The share of true neighbours that were found."""
    pairs = zip(approximate, exact, strict=True)
    return float(np.mean([len(np.intersect1d(some, true)) / len(true) for some, true in pairs]))


def _about(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")


def _usearch() -> Any:
    try:
        from usearch.index import Index as Usearch
    except ImportError as error:
        raise ModuleNotFoundError("An index needs the library usearch: pip install 'clair[index]'.") from error
    return Usearch
