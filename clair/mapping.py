"""Closed-form maps from one domain to the other, learnt from class texts alone (chapter 7).

The paper learns a cross-domain mapping in closed form using only CLIP's text embeddings and
projects image features with it; which closed form is this book's reading.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from clair.files import atomic_bytes

METHODS = ("none", "identity-ridge", "pseudo-inverse", "orthogonal", "shift", "centre")


@dataclass(frozen=True)
class DomainMap:
    """Query features x become normalise(x matrix + shift); gallery features normalise(x + gallery_shift)."""

    method: str
    matrix: Float[Tensor, "D D"]
    shift: Float[Tensor, " D"]
    gallery_shift: Float[Tensor, " D"]

    def __call__(self, x: Float[Tensor, "N D"]) -> Float[Tensor, "N D"]:
        """Carry query features into the gallery's domain."""
        return F.normalize((x.double() @ self.matrix + self.shift).float(), dim=-1)

    def gallery(self, x: Float[Tensor, "N D"]) -> Float[Tensor, "N D"]:
        """What the map asks of gallery features: nothing, unless it centres both domains."""
        return F.normalize((x.double() + self.gallery_shift).float(), dim=-1)

    def save(self, path: Path) -> None:
        tensors = {"matrix": self.matrix, "shift": self.shift, "gallery_shift": self.gallery_shift}
        atomic_bytes(Path(path), safetensors.torch.save(tensors, {"domain_map": json.dumps({"method": self.method})}))

    @classmethod
    def load(cls, path: Path) -> "DomainMap":
        with safetensors.safe_open(path, "pt") as file:
            about = (file.metadata() or {}).get("domain_map")
            if about is None:
                raise ValueError(f"{path} does not hold a domain map saved by this library.")
            return cls(json.loads(about)["method"], *(file.get_tensor(n) for n in ("matrix", "shift", "gallery_shift")))


def domain_map(
    A: Float[Tensor, "C D"],
    B: Float[Tensor, "C D"],
    *,
    method: str = "identity-ridge",
    strength: float = 1.0,
    means: tuple[Float[Tensor, " D"], Float[Tensor, " D"]] | None = None,
) -> DomainMap:
    """The map from the domain of texts ``A`` to that of texts ``B``, row by row the same classes.

    * ``identity-ridge`` (7.1, the default): argmin over W of |AW - B|² + λ|W - I|²;
    * ``pseudo-inverse``: the least-norm solution of AW = B, which forgets what texts do not span;
    * ``orthogonal``: the rotation nearest to B = AW, held to the identity where texts say nothing;
    * ``shift``: x + mean(B) - mean(A);  * ``centre``: each domain minus its mean;  * ``none``.

    λ is ``strength`` times tr(AᵀA)/D, so that it means the same for any number of names.  With
    ``means`` (of the query's and the gallery's pictures) both domains' features have these subtracted,
    and the map is learnt on texts that have their own means subtracted; ``centre`` without them takes
    the means of the texts.
    """
    if A.shape != B.shape or A.ndim != 2:
        shapes = f"{list(A.shape)} and {list(B.shape)}"
        raise ValueError(f"The two text tables must have the same shape [C, D], got {shapes}.")
    if method not in METHODS:
        raise ValueError(f"There is no map {method!r}: use one of {', '.join(METHODS)}.")
    if not strength > 0:
        raise ValueError(f"The strength is {strength}: choose one above 0.")
    A, B = A.double(), B.double()
    zero = torch.zeros(A.shape[1], dtype=torch.float64)
    mean_a, mean_b = (zero, zero) if means is None else (mean.double() for mean in means)
    matrix, shift = torch.eye(A.shape[1], dtype=torch.float64), zero
    if method == "centre" and means is None:
        mean_a, mean_b = A.mean(0), B.mean(0)
    if means is not None:  # pictures and texts lie apart, so each kind is centred on itself
        A, B = A - A.mean(0), B - B.mean(0)
    penalty = strength * float((A * A).sum()) / A.shape[1]
    if method == "identity-ridge":
        matrix = identity_ridge(A, B, penalty)
    elif method == "pseudo-inverse":
        matrix = torch.linalg.pinv(A) @ B
    elif method == "orthogonal":
        u, _, vt = torch.linalg.svd(A.T @ B + penalty * matrix)
        matrix = u @ vt
    elif method == "shift":
        shift = B.mean(0) - A.mean(0)
    return DomainMap(method, matrix, shift - mean_a @ matrix, -mean_b)


def identity_ridge(A: Float[Tensor, "C D"], B: Float[Tensor, "C D"], penalty: float) -> Float[Tensor, "D D"]:
    """argmin over W of |AW - B|² + penalty |W - I|², by the smaller of its two linear systems.

    Setting the gradient to zero gives (AᵀA + λI) W = AᵀB + λI, of size D.  With W = I + V it becomes
    V = Aᵀ(AAᵀ + λI)⁻¹(B - A), of size C (7.2).
    """
    count, width = A.shape
    eye = torch.eye(width, dtype=A.dtype)
    if count < width:
        inner = A @ A.T + penalty * torch.eye(count, dtype=A.dtype)
        return eye + A.T @ torch.linalg.solve(inner, B - A)
    return torch.linalg.solve(A.T @ A + penalty * eye, A.T @ B + penalty * eye)
