"""The three contrastive losses and the text term, as pure functions (chapters 4, 5, 6 and 9).

Shapes: M rows (pictures or views) of D-dimensional unit features ``z``; ``classes`` [M] holds each
row's pseudo-label, -1 where it is not trusted; ``weights`` [M] its confidence; ``domains`` [M] is 0
for the query's domain and 1 for the gallery's.  Prototypes and texts are [2, C, D], unit length.
That there are three losses and what they contrast is the paper's; the formulas are our reading.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F


def inter_instance(
    z: Float[Tensor, "M D"],
    classes: Int[Tensor, " M"],
    weights: Float[Tensor, " M"],
    domains: Int[Tensor, " M"],
    *,
    items: Int[Tensor, " M"],
    temperature: float = 0.1,
) -> Float[Tensor, ""]:
    """Confidence-weighted supervised contrast inside each domain (equation 4.1).

    An anchor is drawn to the other views of its own picture (rows with the same ``items`` number,
    strength 1) and to rows of its domain with the same trusted label (strength w_i w_p), against
    all other rows of its domain.  A row whose label is not trusted has its own views only.  Anchors
    without any positive are left out; if none has one, the loss is 0.
    """
    same_domain = domains[:, None] == domains[None]
    self_pair = torch.eye(len(z), dtype=torch.bool, device=z.device)
    logits = (z @ z.T / temperature).masked_fill(~same_domain | self_pair, float("-inf"))
    own_view = (items[:, None] == items[None]) & same_domain & ~self_pair
    same_class = (classes[:, None] == classes[None]) & (classes >= 0)[:, None] & same_domain & ~self_pair
    strength = torch.where(own_view, 1.0, same_class * weights[:, None] * weights[None])
    total = strength.sum(1)
    anchor = total > 0
    if not anchor.any():
        return z.sum() * 0
    log_p = F.log_softmax(logits[anchor], dim=1)
    each = -(strength[anchor] / total[anchor, None] * log_p.masked_fill(strength[anchor] == 0, 0.0)).sum(1)
    return _weighted_mean(each, weights[anchor])


def inter_cluster(
    z: Float[Tensor, "M D"],
    classes: Int[Tensor, " M"],
    weights: Float[Tensor, " M"],
    domains: Int[Tensor, " M"],
    prototypes: Float[Tensor, "2 C D"],
    *,
    temperature: float = 0.1,
) -> Float[Tensor, ""]:
    """Each cluster's centroid in the batch must find its prototype among those of its domain (5.1).

    The mean over the (domain, class) pairs that have a trusted row; 0 if there is none.
    """
    sums, mass = cluster_sums(z, classes, weights, domains, prototypes.shape[1])
    domain, label = (mass > 0).nonzero(as_tuple=True)
    if len(domain) == 0:
        return z.sum() * 0
    centroids = F.normalize(sums[domain, label], dim=-1)
    logits = torch.einsum("nd,ncd->nc", centroids, prototypes[domain]) / temperature
    return F.cross_entropy(logits, label)


def inter_domain(
    z: Float[Tensor, "M D"],
    classes: Int[Tensor, " M"],
    weights: Float[Tensor, " M"],
    domains: Int[Tensor, " M"],
    prototypes: Float[Tensor, "2 C D"],
    *,
    temperature: float = 0.1,
) -> Float[Tensor, ""]:
    """Each trusted row must find its class among the prototypes of the OTHER domain (6.1)."""
    return _against(z, classes, weights, prototypes[1 - domains], 1 / temperature)


def text_term(
    z: Float[Tensor, "M D"],
    classes: Int[Tensor, " M"],
    weights: Float[Tensor, " M"],
    domains: Int[Tensor, " M"],
    texts: Float[Tensor, "2 C D"],
    *,
    scale: float,
) -> Float[Tensor, ""]:
    """Each trusted row must find its class among its own domain's class texts (9.2): the space stays readable."""
    return _against(z, classes, weights, texts[domains], scale)


def cluster_sums(
    z: Float[Tensor, "M D"],
    classes: Int[Tensor, " M"],
    weights: Float[Tensor, " M"],
    domains: Int[Tensor, " M"],
    count: int,
) -> tuple[Float[Tensor, "2 C D"], Float[Tensor, "2 C"]]:
    """Weighted sums of the trusted rows of each domain and class, and the weight they hold."""
    trusted = classes >= 0
    member = F.one_hot(classes.clamp(min=0) + count * domains, 2 * count).to(z.dtype)
    member = member * (weights * trusted)[:, None]
    return (member.T @ z).reshape(2, count, -1), member.sum(0).reshape(2, count)


def _against(
    z: Float[Tensor, "M D"],
    classes: Int[Tensor, " M"],
    weights: Float[Tensor, " M"],
    targets: Float[Tensor, "M C D"],
    scale: float,
) -> Float[Tensor, ""]:
    """Weighted cross-entropy of rows against their own table of targets; 0 where no row is trusted."""
    trusted = classes >= 0
    if not trusted.any():
        return z.sum() * 0
    logits = scale * torch.einsum("md,mcd->mc", z[trusted], targets[trusted])
    return _weighted_mean(F.cross_entropy(logits, classes[trusted], reduction="none"), weights[trusted])


def _weighted_mean(each: Float[Tensor, " N"], weights: Float[Tensor, " N"]) -> Float[Tensor, ""]:
    return (each * weights).sum() / weights.sum().clamp(min=torch.finfo(each.dtype).tiny)
