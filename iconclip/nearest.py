"""How close the training pictures of the embedded CLIP come to the pictures of the benchmark.

Two houses may draw a red circle alike.  Each training picture is compared with each benchmark
picture by the root mean square of their pixel differences (0..1, at 32 x 32, ink centred) and by a
perceptual hash (bits that differ among 64); near-copies are dropped from training, and the nearest
training picture of every benchmark picture is written down.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from scipy import fft

from clair import emoji
from clair.files import atomic_bytes

PIXELS, BITS = 0.08, 2  # nearer than either is a near-copy


class Named(Protocol):
    source: str
    style: str
    names: list[str]


def small(pictures: np.ndarray) -> np.ndarray:
    """uint8 [N, 64, 64, 3] -> ink in 0..1 [N, 32 * 32 * 3], its centre of mass moved to the middle."""
    ink = 1 - pictures.reshape(-1, 32, 2, 32, 2, 3).mean((2, 4), dtype=np.float32) / 255
    mass = ink.sum(-1)
    for axis in (1, 2):
        places = np.arange(32, dtype=np.float32)
        centre = (mass.sum(3 - axis) @ places) / np.maximum(mass.sum((1, 2)), 1e-6)
        for shift in np.unique(moves := np.floor(16 - centre).astype(int)):
            rows = moves == shift
            ink[rows] = np.roll(ink[rows], shift, axis)
        mass = ink.sum(-1)
    return ink.reshape(len(ink), -1)


def hashes(inks: np.ndarray) -> np.ndarray:
    """Perceptual hashes as ±1 [N, 64]: the signs of the 64 lowest frequencies against their median."""
    grey = inks.reshape(-1, 32, 32, 3).mean(-1)
    low = fft.dctn(grey, axes=(1, 2))[:, :8, :8].reshape(len(grey), 64)
    return np.where(low > np.median(low, axis=1, keepdims=True), 1, -1).astype(np.float32)


def near_copies(pictures: np.ndarray, rows: Sequence[Named], report: Path | None = None) -> np.ndarray:
    """Which pictures [N] nearly equal one of the benchmark.

    ``report`` gets, for each domain, the distances from every benchmark picture to the nearest of
    these pictures and the names of the closest pairs.
    """
    emojis, benchmark = emoji.load()
    inks = np.concatenate([small(pictures[i : i + 4096]) for i in range(0, len(pictures), 4096)])
    marks, power = hashes(inks), (inks**2).sum(1)
    found, near = np.zeros(len(pictures), bool), {}
    for domain in emoji.DOMAINS:
        targets = small(benchmark[domain])
        signs, energy = hashes(targets), (targets**2).sum(1)
        pairs = []  # of each benchmark picture: the nearest by pixels and the nearest by hash
        for start in range(0, len(targets), 128):
            part = slice(start, start + 128)
            square = power[:, None] + energy[None, part] - 2 * inks @ targets[part].T
            distance = np.sqrt(np.maximum(square, 0) / inks.shape[1])
            bits = (64 - marks @ signs[part].T) / 2
            found |= ((distance < PIXELS) | (bits <= BITS)).any(1)
            for best, alike, column in zip(distance.argmin(0), bits.argmin(0), range(distance.shape[1]), strict=True):
                pairs.append((float(distance[best, column]), best, int(bits[alike, column]), alike))
        near[domain] = {
            "rms": [round(pair[0], 3) for pair in pairs],
            "bits": [pair[2] for pair in pairs],
            "closest by pixels": _closest(emojis, rows, [pair[:2] for pair in pairs]),
            "closest by hash": _closest(emojis, rows, [pair[2:] for pair in pairs]),
        }
    if report is not None:
        atomic_bytes(report, (json.dumps({"pixels": PIXELS, "bits": BITS} | near) + "\n").encode())
    return found


def _closest(
    emojis: list[emoji.Emoji], rows: Sequence[Named], pairs: list[tuple[float, int]], count: int = 8
) -> list[dict]:
    nearest = sorted(range(len(pairs)), key=lambda i: (pairs[i][0], i))[:count]
    return [
        {
            "benchmark": emojis[i].name,
            "distance": round(pairs[i][0], 3),
            "training": f"{rows[pairs[i][1]].names[0]} ({rows[pairs[i][1]].source}, {rows[pairs[i][1]].style})",
        }
        for i in nearest
    ]
