"""Pseudo-labels from CLIP and the confidence that refines them (chapter 3).

The paper refines CLIP's noisy labels by a confidence score taken from the similarity of image and
text features; the formulas are this book's reading of it.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

RULES = ("confidence", "prior", "prototypes", "propagation", "gaussian")
ROWS, BLOCK = 8192, 512  # pictures handled at once: of [N, C], and of [N, N]


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
    x: Float[Tensor, "N D"],
    t: Float[Tensor, "C D"],
    *,
    scale: float,
    rule: str = "confidence",
    share: float = 0.6,
    balance: float = 0.5,
    rounds: int = 3,
    neighbours: int = 10,
) -> PseudoLabels:
    """Label pictures by CLIP's texts, refine by a rule, trust the most confident share of each class.

    Every rule ends in logits; p = softmax of them (equation 3.1), label argmax p, confidence max p
    (3.2).  The quota is per pseudo-class, so that easy classes do not crowd out hard ones (3.3): of n
    pictures that got a class, the ceil(share n) most confident are kept.

    * ``confidence``: the logits are CLIP's own, scale x·t;
    * ``prior``: less a bias a class, so that no class is favoured (3.4); ``balance`` 0 changes nothing,
      1 makes all classes equally frequent;
    * ``prototypes``: ``rounds`` times, class means of the trusted pictures join the texts (3.5);
    * ``propagation``: labels spread along the graph of each picture's ``neighbours`` (3.6);
    * ``gaussian``: ``rounds`` of EM with one Gaussian a class and a shared covariance (3.7).

    ``x`` and ``t`` have unit length; ``scale`` is the CLIP's κ; ``share`` lies in (0, 1].  Holds
    a few arrays of the size of ``x`` and of the probabilities [N, C], and nothing of size N x N.
    """
    if rule not in RULES:
        raise ValueError(f"There is no rule {rule!r} of refinement: use one of {', '.join(RULES)}.")
    if not 0 < share <= 1:
        raise ValueError(f"The share of labels to keep is {share}: choose one above 0 and at most 1.")
    if not 0 <= balance <= 1:
        raise ValueError(f"The balance is {balance}: choose a value from 0 to 1.")
    logits = x @ (scale * t).T
    if rule == "prior":
        logits -= prior_bias(logits, balance)
    elif rule == "prototypes":
        logits = _with_prototypes(x, t, logits, share, rounds)
    elif rule == "propagation":
        logits = _propagated(x, logits, neighbours)
    elif rule == "gaussian":
        logits = _gaussian(x, logits, rounds)
    return _labels(logits, share)


def _labels(logits: Float[Tensor, "N C"], share: float) -> PseudoLabels:
    """The labels of these logits, which are overwritten by their softmax."""
    for part in logits.split(ROWS):
        part.copy_(torch.softmax(part, dim=1))
    confidence, classes = logits.max(1)
    return PseudoLabels(classes, confidence, quota(classes, confidence, share), logits)


def prior_bias(
    logits: Float[Tensor, "N C"], balance: float, *, tolerance: float = 1e-6, most: int = 500
) -> Float[Tensor, " C"]:
    """The bias b a class to subtract, so that the mean prediction becomes the prior π (3.4).

    b minimises mean_i logsumexp(l_i - b) + π·b, which is convex: where its gradient is zero, the mean
    prediction m(b) equals π.  π ∝ m(0)^(1 - balance).  Iterates b ← b + log(m(b) / π).
    """

    def mean_prediction(bias: Tensor) -> Tensor:
        total = sum(torch.softmax((part - bias).double(), dim=1).sum(0) for part in logits.split(ROWS))
        return torch.as_tensor(total) / len(logits)

    bias = torch.zeros(logits.shape[1], dtype=logits.dtype)
    start = mean_prediction(bias).clamp(min=1e-12)
    prior = start ** (1 - balance)
    prior = prior / prior.sum()
    for _ in range(most):
        step = (mean_prediction(bias).clamp(min=1e-12) / prior).log().to(logits.dtype)
        bias = bias + step
        if step.abs().max() < tolerance:
            break
    return bias


def spread(logits: Float[Tensor, "N C"]) -> float:
    """How far a picture's logits lie apart: their standard deviation over the classes, mean over pictures."""
    return float(logits.std(1, correction=0).mean())


def _with_prototypes(
    x: Float[Tensor, "N D"], t: Float[Tensor, "C D"], logits: Float[Tensor, "N C"], share: float, rounds: int
) -> Float[Tensor, "N C"]:
    """Logits from centred texts and from centred class means of trusted pictures (3.5).

    Image-text and image-image cosines live on different scales, so each part is stretched to the
    spread of CLIP's own logits.  A class without trusted pictures keeps its text.
    """
    target = spread(logits)
    mean = x.mean(0)
    centred = F.normalize(x - mean, dim=1)
    text = centred @ F.normalize(t - t.mean(0), dim=1).T
    text *= target / max(spread(text), 1e-12)
    labels = _labels(text.clone(), share)
    for _ in range(rounds):
        sums = torch.zeros_like(t).index_add_(0, labels.classes[labels.keep],
                                              labels.confidence[labels.keep, None] * centred[labels.keep])  # fmt: skip
        image = centred @ F.normalize(sums, dim=1).T
        empty = sums.norm(dim=1) == 0
        if not empty.all():
            image *= target / max(spread(image[:, ~empty]), 1e-12)
        image[:, empty] = text[:, empty]
        labels = _labels(image + text, share)
    return labels.probabilities.log_()


def _propagated(
    x: Float[Tensor, "N D"], logits: Float[Tensor, "N C"], neighbours: int, *, keep: float = 0.5, steps: int = 10
) -> Float[Tensor, "N C"]:
    """Labels spread along the graph of nearest neighbours: F ← keep·S F + (1 - keep)·P (3.6)."""
    neighbours = min(neighbours, len(x) - 1)
    if neighbours < 1:
        return logits
    first = _labels(logits, 1.0).probabilities
    near = torch.empty(len(x), neighbours, dtype=torch.long)
    weight = torch.empty(len(x), neighbours, dtype=x.dtype)
    for start in range(0, len(x), BLOCK):
        cosines = x[start : start + BLOCK] @ x.T
        cosines[torch.arange(len(cosines)), torch.arange(start, start + len(cosines))] = -2  # not one's own neighbour
        best = cosines.topk(neighbours, dim=1)
        near[start : start + BLOCK], weight[start : start + BLOCK] = best.indices, best.values.clamp(min=0) ** 3
    weight /= weight.sum(1, keepdim=True).clamp(min=1e-12)
    spreading = first.clone()
    for _ in range(steps):
        moved = torch.empty_like(spreading)
        for start in range(0, len(x), BLOCK):
            part = slice(start, start + BLOCK)
            moved[part] = torch.einsum("nk,nkc->nc", weight[part], spreading[near[part]])
        spreading = keep * moved + (1 - keep) * first
    return spreading.clamp_(min=1e-12).log_()


def _gaussian(x: Float[Tensor, "N D"], logits: Float[Tensor, "N C"], rounds: int) -> Float[Tensor, "N C"]:
    """EM of Gaussians with one covariance, begun at and held by CLIP's logits (3.7)."""
    target, soft, both = spread(logits), torch.softmax(logits, dim=1), logits
    mean = x.mean(0)
    total = x.T @ x / len(x) - torch.outer(mean, mean)
    for _ in range(rounds):
        mass = soft.sum(0).clamp(min=1e-6)
        centres = soft.T @ x / mass[:, None] - mean
        inside = total - (centres.T * mass / len(x)) @ centres  # what class means leave unexplained
        inside += (
            0.1 * inside.trace() / len(inside) * torch.eye(len(inside), dtype=x.dtype)
        )  # shrunk: there may be few pictures
        direction = torch.linalg.solve(inside, centres.T).T  # [C, D]
        image = x @ direction.T - (direction @ mean + (direction * centres).sum(1) / 2)
        image *= target / max(spread(image), 1e-12)
        both = logits + image
        soft = torch.softmax(both, dim=1)
    return both


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
