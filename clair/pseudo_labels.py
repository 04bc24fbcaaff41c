"""Pseudo-labels from CLIP and the confidence that refines them (chapter 3).

The paper refines CLIP's noisy labels by a confidence score taken from the similarity of image and
text features; the formulas are this book's reading of it.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

RULES = ("confidence",)


@dataclass(frozen=True)
class PseudoLabels:
    """Labels of N pictures of one domain among C classes.

    ``classes`` [N] is the likeliest class, ``confidence`` [N] its probability, ``keep`` [N] whether
    it is trusted; ``probabilities`` is [N, C].
    """

    classes: Int[Tensor, " N"]
    confidence: Float[Tensor, " N"]
    keep: Bool[Tensor, " N"]
    probabilities: Float[Tensor, "N C"]

    def trusted(self) -> Int[Tensor, " N"]:
        """The class where it is trusted, -1 elsewhere."""
        return torch.where(self.keep, self.classes, -1)


def pseudo_label(
    x: Float[Tensor, "N D"], t: Float[Tensor, "C D"], *, scale: float, rule: str = "confidence", share: float = 0.6
) -> PseudoLabels:
    """Label pictures by their nearest class text and trust the most confident share of each class.

    p = softmax(scale x·t) (equation 3.1), label argmax p, confidence q = max p (3.2).  The quota is
    per pseudo-class, so that easy classes do not crowd out hard ones (3.3): of n pictures that got
    a class, the ceil(share n) most confident are kept.

    ``x`` and ``t`` have unit length; ``scale`` is the CLIP's κ; ``share`` lies in (0, 1].
    """
    if rule not in RULES:
        raise ValueError(f"There is no rule {rule!r} of refinement: use one of {', '.join(RULES)}.")
    if not 0 < share <= 1:
        raise ValueError(f"The share of labels to keep is {share}: choose one above 0 and at most 1.")
    probabilities = torch.softmax(scale * x @ t.T, dim=1)
    confidence, classes = probabilities.max(1)
    return PseudoLabels(classes, confidence, quota(classes, confidence, share), probabilities)


def quota(classes: Int[Tensor, " N"], confidence: Float[Tensor, " N"], share: float) -> Bool[Tensor, " N"]:
    """The most confident share of every class; of equals, the earlier row."""
    keep = torch.zeros(len(classes), dtype=torch.bool)
    for label in classes.unique():
        members = (classes == label).nonzero()[:, 0]
        best = confidence[members].argsort(descending=True, stable=True)
        count = max(1, int(np.ceil(share * len(members) - 1e-9)))  # .28 x 25 is a little above 7
        keep[members[best[:count]]] = True
    return keep


def quality(labels: PseudoLabels, truth: np.ndarray, names: tuple[str, ...], bins: int = 10) -> dict[str, float]:
    """How good the labels are, by true class names [N]; for the report only.

    Accuracy of all and of the trusted, the share trusted, and the expected calibration error over
    ``bins`` equal steps of confidence.
    """
    right = np.array(names)[labels.classes.numpy()] == truth
    confidence, keep = labels.confidence.numpy(), labels.keep.numpy()
    step = np.minimum((confidence * bins).astype(int), bins - 1)
    gaps = [abs(right[step == b].mean() - confidence[step == b].mean()) * (step == b).mean() for b in np.unique(step)]
    return {
        "accuracy": float(right.mean()),
        "accuracy of trusted": float(right[keep].mean()),
        "share trusted": float(keep.mean()),
        "expected calibration error": float(sum(gaps)),
    }
