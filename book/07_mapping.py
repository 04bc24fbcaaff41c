# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 7 The mapping, derived
#
# *Runs on a laptop CPU in under a minute · no parameters*
#
# **What you will learn**: a map from one domain to the other in closed form, learnt from texts alone;
# why the plain least-squares answer fails; limits, rank and conditioning, each checked by number; what
# texts know about pictures and what they get wrong.
#
# **What you should know**: chapter 2; least squares; the singular value decomposition.
#
# ## The claim
#
# > **[paper]** A cross-domain mapping in closed form, learnt using only CLIP's text embeddings, projects
# > image features from one domain to the other.
#
# **[reading]** Which closed form, the abstract does not say. The rows of $A, B \in \mathbb{R}^{C \times D}$
# are the seen classes' texts in the two domains, "a line drawing of a bird" and "an emoji of a bird". A
# matrix $W$ with $AW \approx B$ carries one style to the other. The hope is that it does so for pictures,
# of classes that have no row.

# %% tags=["imports"]
from itertools import permutations

import numpy as np
import torch
from torch.nn import functional as F

import clair
from clair import emoji, plots
from clair.intervals import bootstrap
from clair.mapping import METHODS, identity_ridge

plots.use_style()

# %%
model = clair.load_clip("iconclip", device="cpu")
bench = clair.load_benchmark("emoji", "line", "flat", split=0)
A, B = (model.encode_classes(bench.seen, bench.templates[domain]).double() for domain in bench.domains)
C, D = A.shape
print(f"C = {C} classes, D = {D} dimensions; singular values of A from {torch.linalg.svdvals(A)[0]:.2f} to {torch.linalg.svdvals(A)[-1]:.3f}")

# %% [markdown]
# ## Why not plain least squares
#
# There are fewer classes than dimensions, $C < D$, so $AW = B$ has infinitely many solutions. They agree
# on the span of the texts and are free outside of it. The least-norm one, $W = A^+ B$, sends everything
# outside to *zero*: of a picture's feature it keeps only what some text can say. How much is that?

# %%
x = {domain: model.encode_images(bench.test[domain]).double() for domain in bench.domains}
span = torch.linalg.svd(A, full_matrices=False).Vh  # an orthonormal basis of the texts' span
inside = {domain: float(((x[domain] @ span.T) ** 2).sum(1).mean()) for domain in bench.domains}
print("share of an unseen picture's squared length inside the span of the seen texts:",
      ", ".join(f"{domain} {share:.2f}" for domain, share in inside.items()))  # fmt: skip

# %% [markdown]
# ## The minimiser
#
# So ask for more: fit the texts, and otherwise leave features as they are.
#
# $$W = \arg\min_W \; f(W), \qquad f(W) = \lVert AW - B \rVert^2 + \lambda \lVert W - I \rVert^2. \tag{7.1}$$
#
# $f$ is quadratic and, as $\lambda > 0$, strictly convex: its Hessian is $2(A^\top A + \lambda I)$ for
# each column of $W$, positive definite. So there is exactly one minimiser, where the gradient vanishes:
#
# $$2 A^\top (AW - B) + 2\lambda (W - I) = 0 \iff (A^\top A + \lambda I)\, W = A^\top B + \lambda I.$$
#
# Put $W = I + V$. Then $(A^\top A + \lambda I) V = A^\top (B - A)$, and with the identity
# $(A^\top A + \lambda I)^{-1} A^\top = A^\top (A A^\top + \lambda I)^{-1}$ (multiply out both sides),
#
# $$W = I + A^\top (A A^\top + \lambda I_C)^{-1} (B - A). \tag{7.2}$$
#
# That is a system of size $C$ rather than $D$. Read it from the right: it compares a feature with each
# seen text ($x A^\top$), turns the comparisons into weights, and adds the weighted *style changes*
# $B - A$. What resembles no text is left alone.
#
# The scale of $\lambda$ should not depend on how many names there are, so $\lambda = \lambda_0
# \operatorname{tr}(A^\top A) / D$, with $\lambda_0 = 1$ by default.
#
# **Properties**, each checked in the next cell.
#
# 1. Primal and dual agree, and the gradient of $f$ vanishes.
# 2. $\lambda \to 0$: texts are carried exactly, $AW = B$, and what is orthogonal to all texts stays as it is.
# 3. $\lambda \to \infty$: $W \to I$.
# 4. $W - I$ has rank at most $C$.
# 5. Rotate the whole space by $Q$ and the map rotates along: $W(AQ, BQ) = Q^\top W(A, B)\, Q$.
# 6. The condition number of the system is $(\sigma_1^2 + \lambda) / (\sigma_C^2 + \lambda)$: a larger
#    $\lambda$ is also a safer one.

# %%
penalty, eye = float((A * A).sum()) / D, torch.eye(D, dtype=torch.float64)
W = identity_ridge(A, B, penalty)
primal = torch.linalg.solve(A.T @ A + penalty * eye, A.T @ B + penalty * eye)
gradient = 2 * A.T @ (A @ W - B) + 2 * penalty * (W - eye)
assert torch.allclose(W, primal, atol=1e-10)
assert gradient.abs().max() < 1e-10
exact, weak = identity_ridge(A, B, 1e-10), identity_ridge(A, B, 1e10)
outside = torch.randn(5, D, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
outside = outside - outside @ span.T @ span
assert torch.allclose(A @ exact, B, atol=1e-5)
assert torch.allclose(outside @ exact, outside, atol=1e-6)
assert torch.allclose(weak, eye, atol=1e-6)
rank = int(torch.linalg.matrix_rank(W - eye))
assert rank <= C
Q = torch.linalg.qr(torch.randn(D, D, dtype=torch.float64, generator=torch.Generator().manual_seed(1))).Q
assert torch.allclose(identity_ridge(A @ Q, B @ Q, penalty), Q.T @ W @ Q, atol=1e-9)
sigma = torch.linalg.svdvals(A)
condition = torch.linalg.cond(A @ A.T + penalty * torch.eye(C, dtype=torch.float64))
assert torch.isclose(condition, (sigma[0] ** 2 + penalty) / (sigma[-1] ** 2 + penalty), rtol=1e-6)
print(f"all six hold; rank of W - I is {rank}, the condition number {condition:.0f} (without λ: {(sigma[0] / sigma[-1]) ** 2:.0f})")

# %% [markdown]
# **By hand.** One class, $D = 2$: $A = (1, 0)$, $B = (0, 1)$, $\lambda = 1$. Then $A A^\top + \lambda = 2$
# and $W = I + \frac12 (1, 0)^\top (-1, 1)$.

# %%
hand = identity_ridge(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]]), 1.0)
print(hand.tolist())
assert hand.tolist() == [[0.5, 0.5], [0.0, 1.0]]

# %% [markdown]
# ## Other closed forms
#
# * **shift**: $x + \bar B - \bar A$, one style change for all.
# * **centre**: both domains lose their mean; with the texts' means it is text only, with the means of
#   unlabelled training pictures it is not.
# * **orthogonal**: the rotation nearest to $B = AW$, $W = U V^\top$ of $\operatorname{svd}(A^\top B + \mu I)$.
#   Without $\mu$ it is arbitrary outside the span: a perturbation of $A$ by $10^{-12}$ turns it there.
# * **pseudo-inverse**: $A^+ B$, shown for its failure.

# %%
def procrustes(A, B):
    u, _, vt = torch.linalg.svd(A.T @ B)
    return u @ vt


noise = 1e-12 * torch.randn(A.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
plain = (procrustes(A + noise, B) - procrustes(A, B)).abs().max()
held = (clair.domain_map(A + noise, B, method="orthogonal").matrix - clair.domain_map(A, B, method="orthogonal").matrix).abs().max()
print("a change of 1e-12 in the texts moves the plain rotation visibly:", bool(plain > 1e-3), "and the held one not:", bool(held < 1e-9))
assert plain > 1e-3 > 1e-9 > held

# %% [markdown]
# ## What texts know about pictures
#
# How much of the style change is the same for all classes? If $B - A$ were one row repeated, its first
# singular direction would hold everything. And does the texts' mean change point where the pictures'
# does?

# %%
change = B - A
one = torch.linalg.svdvals(change)
first_share = float(one[0] ** 2 / (one**2).sum())
text_shift = B.mean(0) - A.mean(0)
picture_shift = x["flat"].mean(0) - x["line"].mean(0)
agreement = F.cosine_similarity(text_shift, picture_shift, dim=0).item()
print(f"share of B - A in its first direction: {first_share:.2f}")
print(f"cosine of the texts' shift and the pictures' shift: {agreement:.2f}")
print(f"length of the texts' shift {text_shift.norm():.2f}, of the pictures' {picture_shift.norm():.2f}")

# %% [markdown]
# Texts and pictures have a gap of their own (a text is never as near to a picture as pictures are to each
# other), and within it a style phrase moves a text by as much as *words* differ, not as drawings do.
# Direction and length of the shift are what texts can only guess.
#
# ## All methods, all pairs, unseen classes
#
# Macro mAP@all over the five splits, for each ordered pair; the last column is the mean over the six
# pairs with the interval of its *difference* to doing nothing (appendix [B2](b_domains_and_pairs)).

# %%
emojis, pictures = emoji.load()
row_of = {item.code: row for row, item in enumerate(emojis)}
features = {domain: model.encode_images(pictures[domain]) for domain in emoji.DOMAINS}


def of(images):
    return features[images.domain][[row_of[key] for key in images.keys]]


CASES = {method: {"method": method} for method in METHODS}
CASES |= {f"identity-ridge, λ₀ = {s}": {"method": "identity-ridge", "strength": s} for s in (0.01, 0.1, 10.0)}
CASES |= {"images: centre": {"method": "centre", "images": True}, "images: identity-ridge": {"method": "identity-ridge", "images": True}}
values = {name: {} for name in CASES}
for pair in permutations(emoji.DOMAINS, 2):
    per_class = {name: {} for name in CASES}
    for split in range(emoji.FOLDS):
        part = clair.load_benchmark("emoji", *pair, split)
        texts = [model.encode_classes(part.seen, part.templates[domain]) for domain in pair]
        means = tuple(of(part.train[domain]).mean(0) for domain in pair)
        q, g = (of(part.test[domain]) for domain in pair)
        for name, options in CASES.items():
            given = {key: value for key, value in options.items() if key != "images"}
            carry = clair.domain_map(*texts, **given, means=means if options.get("images") else None)
            scores = clair.evaluate(
                carry(q), part.truth.test[pair[0]], carry.gallery(g), part.truth.test[pair[1]], k=10, per_class=True,
                query_ids=part.test[pair[0]].keys, gallery_ids=part.test[pair[1]].keys,
            )  # fmt: skip
            per_class[name] |= scores["per class"]["mAP@all"]
    for name in CASES:
        values[name][pair] = np.array([per_class[name][c] for c in sorted(per_class[name])])
classes = sorted(per_class["none"])
base = np.mean(list(values["none"].values()), axis=0)
print(f"{'':<26}" + "".join(f"{a[:2] + '→' + b[:2]:>8}" for a, b in permutations(emoji.DOMAINS, 2)) + f"{'mean':>8}  difference to none")
table = {}
for name in CASES:
    mean = np.mean(list(values[name].values()), axis=0)
    table[name] = bootstrap(mean - base, classes)
    print(f"{name:<26}" + "".join(f"{v.mean():>8.3f}" for v in values[name].values()) + f"{mean.mean():>8.3f}  {table[name]}")

# %% [markdown]
# The verdict, read off the intervals:

# %%
for name in CASES:
    if name != "none":
        verdict = "helps" if table[name].low > 0 else "hurts" if table[name].high < 0 else "is not told apart from none"
        print(f"{name:<26}{verdict}")
assert table["pseudo-inverse"].mean < table["identity-ridge"].mean  # what texts do not span is not noise

# %% [markdown]
# ## Summary
#
# | | |
# |---|---|
# | **[paper]** a closed form from texts alone projects pictures | derived; unique; its value on unseen classes is in the table |
# | **[reading]** regularised towards the identity | needed: the least-norm solution throws away what texts do not span |
# | our addition: pictures' means | better guesses of the shift, but no longer text only |
#
# ## Exercises
#
# 1. Show that (7.2) leaves $x$ as it is if $x$ is orthogonal to all rows of $A$.
# 2. What does $W$ become if $B = A$? If $B = 2A$ and $\lambda \to 0$?
# 3. Why is the map learnt from more names than $D$ by the primal system?
#
# ```{dropdown} Solutions
# 1. $x A^\top = 0$, so $xW = x$. 2. $W = I$; and $AW = 2A$ on the span, the identity outside. 3. $A A^\top$ is
# then larger than $A^\top A$ and singular up to $\lambda$; the $D \times D$ system is the smaller and the
# better conditioned one. The next cell checks the first two.
# ```

# %% tags=["hide-cell"]
assert torch.allclose(outside @ W, outside, atol=1e-10)
assert torch.allclose(identity_ridge(A, A, penalty), torch.eye(D, dtype=torch.float64))
double = identity_ridge(A, 2 * A, 1e-10)
assert torch.allclose(A @ double, 2 * A, atol=1e-5)
assert torch.allclose(outside @ double, outside, atol=1e-6)
print("both hold")
