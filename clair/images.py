"""Sets of unlabelled pictures, and the batches and views that training draws from them."""

import hashlib
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class ImageSet:
    """Pictures of one domain, without labels.

    ``pixels`` is uint8 [N, H, W, 3]; ``keys`` names each row (a code point, a relative path) and is
    for reports and for telling twins apart, never for training.
    """

    domain: str
    keys: tuple[str, ...]
    pixels: UInt8[np.ndarray, "N H W 3"]

    def __post_init__(self) -> None:
        if len(self.keys) != len(self.pixels):
            raise ValueError(f"{len(self.keys)} keys for {len(self.pixels)} pictures: give one key a picture")

    def __len__(self) -> int:
        return len(self.keys)

    def take(self, rows: np.ndarray) -> "ImageSet":
        """The rows asked for, in that order."""
        return replace(self, keys=tuple(self.keys[row] for row in rows), pixels=self.pixels[rows])

    def digest(self) -> str:
        """A key of the pictures and their order."""
        return hashlib.sha256(self.pixels.tobytes()).hexdigest()[:16]


def content_order(pixels: UInt8[np.ndarray, "N H W 3"]) -> np.ndarray:
    """An order of the rows that depends on the pictures alone.

    Files are usually listed class by class; training must not even see that.
    """
    order = sorted(range(len(pixels)), key=lambda row: hashlib.sha256(pixels[row].tobytes()).digest())
    return np.array(order, dtype=np.int64)


def to_unit(pixels: UInt8[Tensor, "B H W 3"], size: int | None = None) -> Float[Tensor, "B 3 _ _"]:
    """uint8 to floats in 0..1, channels first, resized to a square of ``size`` where needed."""
    unit = pixels.permute(0, 3, 1, 2).float() / 255
    if size is not None and unit.shape[-2:] != (size, size):
        unit = F.interpolate(unit, (size, size), mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
    return unit


def view(unit: Float[Tensor, "B 3 H W"], rng: torch.Generator, strength: float = 1.0) -> Float[Tensor, "B 3 H W"]:
    """A random view of each picture: turned, scaled, stretched, shifted, mirrored, its ink tinted.

    What leaves the frame is gone and what enters is white.  ``strength`` 0 gives the pictures back.
    """
    if strength == 0:
        return unit
    count = len(unit)

    def uniform(low: float, high: float) -> Tensor:
        return torch.empty(count).uniform_(low, high, generator=rng)

    angle = strength * uniform(-0.3, 0.3)
    scale, stretch = (uniform(low, high) ** strength for low, high in ((0.85, 1.35), (0.85, 1.18)))
    across, down = strength * uniform(-0.2, 0.2), strength * uniform(-0.2, 0.2)
    mirror = torch.where(uniform(0.0, 1.0) < 0.5, -1.0, 1.0)
    gain = 1 + strength * 0.25 * (2 * torch.rand(count, 3, 1, 1, generator=rng) - 1)
    cos, sin = torch.cos(angle) * scale, torch.sin(angle) * scale
    first = torch.stack([cos * mirror, -sin * stretch, across], -1)
    second = torch.stack([sin * mirror, cos * stretch, down], -1)
    grid = F.affine_grid(torch.stack([first, second], 1), list(unit.shape), align_corners=False)
    ink = 1 - unit  # white is where there is no ink, so that the sampler's zero padding is white
    ink = F.grid_sample(ink, grid.to(unit.device), padding_mode="zeros", align_corners=False)
    return 1 - (ink * gain.to(unit.device)).clamp(max=1)


def class_aware_batch(
    classes: list[np.ndarray], count: int, *, per_class: int, size: int, rng: np.random.Generator
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Rows of one batch: some pseudo-classes, a few pictures of each, in every domain.

    ``classes`` holds per domain the pseudo-label of each row [N_d], -1 where it is not trusted.
    ``count`` pseudo-classes are drawn and ``per_class`` trusted pictures of each (with replacement
    only where there are fewer); each domain is then filled up to ``size`` rows with pictures whose
    label is not trusted, or any.  Returns per domain the rows [size] and their labels [size].
    """
    if size < count * per_class:
        raise ValueError(f"size {size} is less than {count} classes x {per_class} pictures: raise size")
    present = np.unique(np.concatenate(classes))
    present = present[present >= 0]
    drawn = rng.permutation(present)[:count]
    rows = []
    for labels in classes:
        picked: list[np.ndarray] = []
        for label in drawn:
            members = np.flatnonzero(labels == label)
            if len(members):
                picked.append(rng.choice(members, per_class, replace=len(members) < per_class))
        chosen = np.concatenate(picked) if picked else np.empty(0, dtype=np.int64)
        rest = np.flatnonzero(labels < 0)
        if len(rest) == 0:
            rest = np.arange(len(labels))
        missing = size - len(chosen)
        rows.append(np.concatenate([chosen, rng.choice(rest, missing, replace=len(rest) < missing)]))
    return rows, [labels[picked] for labels, picked in zip(classes, rows, strict=True)]
