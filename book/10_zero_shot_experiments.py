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
# # 10 Zero-shot experiments
#
# *This is the notebook that papermill runs per data set · parameters: below · one record a method*
#
# **What you will learn**: the whole method in one run; how retrieval is measured; what the map and
# the training buy on classes that were never seen.
#
# **What you should know**: chapters 1 and 2.
#
# ## The claim
#
# > **[paper]** Pseudo-labels refined by confidence, inter-instance, inter-cluster and inter-domain
# > contrastive losses, a closed-form mapping learnt from text embeddings alone, and an extra set of
# > learnable prompts: together they retrieve unseen classes across domains better than the state of
# > the art.
#
# This first form of the chapter compares four rows: frozen CLIP and CLAIR, each without a map and
# with it. Rivals, ablations and error bars over many seeds come in a later chapter.

# %% tags=["imports"]
import os

import numpy as np

import clair
from clair import experiment, plots

experiment.use_deterministic_torch()
plots.use_style()

# %% tags=["parameters"]
dataset: str = "emoji"
root: str = ""
query: str = "line"
gallery: str = "flat"
split: int = 0
seed: int = 0
model: str = "iconclip"
pretrained: str = ""
methods: list = ["frozen", "clair"]
recipe: dict = {}
report: str = "test"
device: str = "auto"
records: str = ""

# %% [markdown]
# ## The run
#
# `clair.run` is the one path that this notebook, the command line and later the grid all take:
#
# 1. label the training pictures by frozen CLIP and trust the most confident share of each class;
# 2. train the prompt tokens and LayerNorms by
#    $L = \lambda_i L_\text{inst} + \lambda_c L_\text{clus} + \lambda_d L_\text{dom} + \lambda_t L_\text{text}$;
# 3. derive the map from the seen classes' texts, $W = I + A^\top (A A^\top + \lambda I)^{-1} (B - A)$;
# 4. retrieve pictures of unseen classes, in both directions, and write one record a method.

# %% tags=["nbval-ignore-output"]
params = {
    "dataset": dataset,
    "root": root,
    "query": query,
    "gallery": gallery,
    "split": split,
    "seed": seed,
    "model": model,
    "pretrained": pretrained,
    "methods": methods,
    "recipe": recipe,
    "report": report,
    "device": device,
    "records": records,
}
result = clair.run(params, progress=not os.environ.get("TQDM_DISABLE"))
print(experiment.summary(result.records))

# %% [markdown]
# Training amplifies the last bits in which machines differ, so the automatic test of this notebook
# does not compare the table above; the next cell checks it within bounds instead.

# %%
bench = result.benchmark
print("methods: ", ", ".join(record["method"] for record in result.records))
print(
    "queries: ", len(bench.test[query]), " gallery:", len(bench.test[gallery])
)
print("unseen:  ", len(bench.unseen), "classes")
for record in result.records:
    for rows in record["metrics"].values():
        for values in rows.values():
            assert (
                0 <= values["P@10"] <= 1
                and values["chance"] <= values["mAP@all"] <= 1
            )
print("every row is above the chance level")

# %% [markdown]
# ## How it is measured
#
# For a query with $R$ relevant pictures among $G$ gallery pictures, sorted by cosine:
#
# * **mAP@all** is the mean over queries of the average precision, un-interpolated;
# * **mAP@K** comes with its normaliser in the name, because the field uses two: `mAP@K/min` divides
#   by $\min(K, R)$, `mAP@K/hits` by the number of hits in the top $K$ (the field likes $K = 200$; our
#   galleries are smaller than that, so we show $K = 10$);
# * **P@K** is hits divided by $K$;
# * **chance** is the mean of $R/G$, what a random order gives about;
# * *macro* means average over classes first, so that large classes don't rule.

# %% tags=["nbval-ignore-output"]
direction = f"{query}->{gallery}"
shown = (
    "mAP@all",
    "mAP@10/min",
    "mAP@10/hits",
    "P@10",
    "P@100",
    "R-precision",
    "chance",
    "macro mAP@all",
)
columns = {
    record["method"] + ("" if carried == "none" else " + map"): values
    for record in result.records
    for carried, values in record["metrics"][direction].items()
}
print(f"{direction:<15}" + "".join(f"{column:>14}" for column in columns))
for name in shown:
    print(
        f"{name:<15}" + "".join(f"{v[name]:>14.3f}" for v in columns.values())
    )

# %% [markdown]
# ## What was trusted
#
# The labels' quality, with the truth used for this report only.

# %% tags=["nbval-ignore-output"]
for domain, values in result.records[0]["label quality"].items():
    print(domain)
    for name, value in values.items():
        print(f"  {name:<28}{value:.2f}")

# %% [markdown]
# ## How training went

# %% mystnb={"figure": {"caption": "The four terms of the loss over the steps of training, thin, with their running mean, thick. What to see: the instance, cluster and text terms fall and level off; the inter-domain term, which asks for the other domain's prototypes, falls least. The schedule is fixed; no step was chosen by looking at results.", "name": "fig-training"}, "image": {"alt": "Four small line plots of loss over steps, one each for the instance, cluster, domain and text term; all but the domain term fall clearly and flatten."}}
if result.fitted is not None and result.fitted.history:
    figure = plots.curves(
        result.fitted.history, ["instance", "cluster", "domain", "text"]
    )
    first, last = (
        result.fitted.history[0]["total"],
        np.mean([h["total"] for h in result.fitted.history[-10:]]),
    )
    assert last < first, "the loss should fall"
    print("the loss fell")

# %% [markdown]
# ## Frozen against CLAIR, picture by picture

# %%
ids = {domain: np.array(bench.test[domain].keys) for domain in bench.domains}
truth = bench.truth.test
rows = np.linspace(0, len(ids[query]) - 1, 4).astype(int)


def nearest(encoder, carry=None, top=10):
    """The gallery rows nearest to the chosen queries, without their twins. -> [rows, top]"""
    x, y = (
        encoder.encode_images(bench.test[domain]) for domain in bench.domains
    )
    if carry is not None:
        x, y = carry(x), carry.gallery(y)
    cosines = (x[rows] @ y.T).numpy()
    cosines[ids[query][rows][:, None] == ids[gallery][None]] = -np.inf
    return np.argsort(-cosines, axis=1, kind="stable")[:, :top]


def show(order):
    hits = truth[gallery][order] == truth[query][rows][:, None]
    names = list(truth[query][rows])
    return plots.retrievals(
        bench.test[query].pixels[rows],
        bench.test[gallery].pixels,
        order,
        hits,
        names,
    )


# %% mystnb={"figure": {"caption": "Frozen CLIP: four unseen queries and their ten nearest gallery pictures. A tick and a frame mark a hit.", "name": "fig-frozen"}, "image": {"alt": "Four rows of a line drawing and its ten nearest flat pictures by frozen features, each marked as hit or miss."}}
figure = show(nearest(result.model))

# %% mystnb={"figure": {"caption": "CLAIR with its text-only map: the same queries. What to see: which rows gained hits and which lost some; not every query profits.", "name": "fig-clair"}, "image": {"alt": "The same four queries with their ten nearest flat pictures by CLAIR with the map, each marked as hit or miss."}}
figure = show(nearest(result.fitted or result.model, result.maps[direction]))

# %% [markdown]
# ## The map, checked
#
# The map is the minimiser of $\|AW - B\|^2 + \lambda \|W - I\|^2$. So its gradient,
# $A^\top(AW - B) + \lambda (W - I)$, must vanish, and the mapped texts must lie closer to their goal.

# %%
A, B = (
    result.model.encode_classes(bench.seen, bench.templates[domain]).double()
    for domain in bench.domains
)
carry = result.maps[direction]
if carry.method == "identity-ridge":
    W = carry.matrix
    penalty = (
        clair.Recipe.from_dict(recipe).map_strength * (A * A).sum() / A.shape[1]
    )
    gradient = A.T @ (A @ W - B) + penalty * (W - W.new_ones(len(W)).diag())
    print("gradient below 1e-9:", bool(gradient.abs().max() < 1e-9))
    print("texts come closer:  ", bool((A @ W - B).norm() < (A - B).norm()))

# %% [markdown]
# ## Summary
#
# | the paper says | we get | where |
# |---|---|---|
# | CLIP's labels can be refined by confidence | the trusted share is more accurate than the whole, see above | `pseudo_labels.py` |
# | a map from texts alone helps | a little, and not in every row: compare with and without in the table of the run | `mapping.py` |
# | training on refined labels helps unseen classes | hardly, with this first stand-in for CLIP: its labels of pen strokes are mostly wrong. The README shows the means over five splits | `training.py` |
# | the whole beats the state of the art | **not tested here yet**: rivals and error bars come with the grid | `experiment.py` |
#
# To run this notebook on other data or another split, change parameters only:
#
# ```bash
# make run DATASET=emoji                     # papermill, with papermill_runs/params/emoji.yaml
# python -m clair run split=1 seed=3         # the same path without a notebook
# ```
#
# ## Exercises
#
# 1. Let the strength $\lambda$ of the map grow without bound. Which row of the table do you get back?
# 2. Why is mAP@10/hits so much higher than mAP@10/min on one and the same ranking?
#
# ```{dropdown} Solutions
# 1. The row without a map: the penalty holds $W$ at the identity. The next cell checks it.
# 2. `hits` divides by the hits that were found in the top 10, so relevant pictures that
#    were missed cost nothing. `min` divides by those that could have been found. The next cell shows
#    it on a ranking of five with two relevant pictures, one of them found at rank 2 of a top 2.
# ```

# %% tags=["hide-cell"]
held_fast = clair.domain_map(A, B, strength=1e12)
x = result.model.encode_images(bench.test[query])
print("identity again:", bool((held_fast(x) - x).abs().max() < 1e-6))
assert (held_fast(x) - x).abs().max() < 1e-6

# %% tags=["hide-cell"]
tiny = clair.evaluate(
    np.array([[1.0, 0.0]]),
    ["cat"],
    np.array([[1.0, 0.1], [1.0, 0.2], [1.0, 0.3], [1.0, 0.4], [1.0, 0.5]]),
    ["dog", "cat", "dog", "dog", "cat"],
    k=(2,),
)
print(
    f"mAP@2/hits {tiny['mAP@2/hits']:.2f}   mAP@2/min {tiny['mAP@2/min']:.2f}"
)
assert np.isclose(tiny["mAP@2/hits"], 0.5) and np.isclose(
    tiny["mAP@2/min"], 0.25
)
