"""Benchmarks: two domains, classes that are seen, held for validation or unseen, and pictures.

bench = load_benchmark("emoji", query="line", gallery="flat", split=0)
bench.train["line"]         # an ImageSet: pictures of seen classes, no labels
bench.truth.test["flat"]    # class names of the unseen pictures: for reports only
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from types import MappingProxyType

import numpy as np

from clair import emoji
from clair.files import digest
from clair.images import ImageSet, content_order

NAMES = ("emoji",)
ROLES = ("train", "validation", "test")


@dataclass(frozen=True)
class Truth:
    """Class names of the rows of every image set, by role and domain; reaches nothing but reports."""

    train: Mapping[str, np.ndarray]
    validation: Mapping[str, np.ndarray]
    test: Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Benchmark:
    """Two domains of one benchmark under one split.

    ``seen``, ``validation`` and ``unseen`` are disjoint class names.  ``train`` holds pictures of
    seen classes, the two domains from disjoint halves of the concepts, so that no pair exists;
    ``held`` those of the validation classes; ``test`` those of the unseen ones.
    """

    name: str
    query: str
    gallery: str
    split: int
    seen: tuple[str, ...]
    validation: tuple[str, ...]
    unseen: tuple[str, ...]
    templates: Mapping[str, tuple[str, ...]]
    train: Mapping[str, ImageSet]
    held: Mapping[str, ImageSet]
    test: Mapping[str, ImageSet]
    truth: Truth

    @property
    def domains(self) -> tuple[str, str]:
        """The query's domain, then the gallery's."""
        return self.query, self.gallery

    def digest(self) -> str:
        """A key of every picture, its place and its class."""
        parts = []
        for role, sets in (("train", self.train), ("validation", self.held), ("test", self.test)):
            for domain in self.domains:
                labels = getattr(self.truth, role)[domain]
                parts.append([role, domain, sets[domain].digest(), list(sets[domain].keys), labels.tolist()])
        return digest(parts, self.seen, self.validation, self.unseen)


def did_you_mean(kind: str, given: object, known: Sequence[str]) -> str:
    """One sentence that says what would be right."""
    near = get_close_matches(str(given), known, n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return f"There is no {kind} {given!r}.{hint} Known: {', '.join(map(str, known))}."


def load_benchmark(
    name: str, query: str = "line", gallery: str = "flat", split: int = 0, root: str | None = None
) -> Benchmark:
    """Load a benchmark by name.

    Raises ValueError, in one sentence, for an unknown name, domain or split.
    """
    if name not in NAMES:
        raise ValueError(did_you_mean("data set", name, NAMES))
    if root:
        raise ValueError(f"The data set {name!r} is drawn from installed packages: leave root empty (got {root!r}).")
    for domain in (query, gallery):
        if domain not in emoji.DOMAINS:
            raise ValueError(did_you_mean("domain", domain, emoji.DOMAINS))
    if query == gallery:
        raise ValueError(f"Query and gallery are both {query!r}: choose two different domains.")
    if isinstance(split, bool) or not isinstance(split, int) or not 0 <= split < emoji.FOLDS:
        raise ValueError(f"There is no split {split!r}: {name} has the splits 0 to {emoji.FOLDS - 1}.")
    return _emoji(query, gallery, split)


def _emoji(query: str, gallery: str, split: int) -> Benchmark:
    emojis, pictures = emoji.load()
    folds, vault = emoji.folds(emojis)
    unseen, held = folds[split], folds[(split + 1) % emoji.FOLDS]
    seen = sorted(set(emoji.CLASSES) - set(unseen) - set(held) - set(vault))
    labels = np.array([item.label for item in emojis])
    codes = np.array([item.code for item in emojis])
    first_half = np.array([hashlib.sha256(code.encode()).digest()[0] % 2 == 0 for code in codes])
    # The half that trains a domain depends on the domains' fixed order, not on which one is the query.
    first, second = sorted((query, gallery), key=emoji.DOMAINS.index)
    rows = {"train": {first: np.isin(labels, seen) & first_half, second: np.isin(labels, seen) & ~first_half}}
    rows["validation"] = dict.fromkeys((query, gallery), np.isin(labels, held))
    rows["test"] = dict.fromkeys((query, gallery), np.isin(labels, unseen))
    sets: dict[str, dict[str, ImageSet]] = {role: {} for role in ROLES}
    truth: dict[str, dict[str, np.ndarray]] = {role: {} for role in ROLES}
    for role in ROLES:
        for domain in (query, gallery):
            chosen = np.flatnonzero(rows[role][domain])
            chosen = chosen[content_order(pictures[domain][chosen])]
            sets[role][domain] = ImageSet(domain, tuple(codes[chosen].tolist()), pictures[domain][chosen])
            truth[role][domain] = labels[chosen]
    return Benchmark(
        name="emoji",
        query=query,
        gallery=gallery,
        split=split,
        seen=tuple(seen),
        validation=tuple(held),
        unseen=tuple(unseen),
        templates=MappingProxyType({domain: emoji.TEMPLATES[domain] for domain in (query, gallery)}),
        train=MappingProxyType(sets["train"]),
        held=MappingProxyType(sets["validation"]),
        test=MappingProxyType(sets["test"]),
        truth=Truth(*(MappingProxyType(truth[role]) for role in ROLES)),
    )
