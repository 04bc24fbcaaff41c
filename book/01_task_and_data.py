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
# # 1 The task and the data
#
# *Runs on a laptop CPU in a few seconds · parameters: `dataset`, `query`, `gallery`, `split`*
#
# **What you will learn**: what "zero-shot cross-domain retrieval" asks for; which pictures this book
# works on; who may look at what, and when.
#
# **What you should know**: nothing beyond Python and what a picture is to a computer.
#
# ## The claim
#
# > **[paper]** Given two image domains without labels and without pairs, and the names of the
# > classes, CLIP's noisy pseudo-labels are enough to learn a space in which images of classes *never
# > seen in training* are found across domains.
#
# Three words carry the weight.
#
# * *Cross-domain*: the query is from domain $a$ (here pen drawings), the answers from domain $b$
#   (here flat colour pictures).
# * *Weakly supervised*: nobody says what any training picture shows. There are class names, and CLIP.
# * *Zero-shot*: the classes of the test were not among those names.

# %% tags=["imports"]
import numpy as np

import clair
from clair import plots

plots.use_style()

# %% [markdown]
# The next cell holds the notebook's parameters; papermill replaces them in batch runs.

# %% tags=["parameters"]
dataset: str = "emoji"
root: str = ""
query: str = "line"
gallery: str = "flat"
split: int = 0

# %% [markdown]
# ## One concept, two hands
#
# The embedded benchmark is called `emoji`, and its pictures are real drawings by professional
# illustrators. OpenMoji draws with black pen strokes and fills them with colour; Twemoji draws flat
# shapes without outlines. Keeping only OpenMoji's strokes gives a third domain that looks like a
# sketch. So there are three domains:
#
# | domain | what it is | its part here |
# |---|---|---|
# | `line` | OpenMoji's pen strokes on white | the sketches |
# | `color` | the whole OpenMoji drawing, outlined and coloured | between the two |
# | `flat` | Twemoji: another house, flat, no outlines | the photos |

# %%
bench = clair.load_benchmark(
    dataset, query=query, gallery=gallery, split=split, root=root or None
)
for role, sets in (
    ("train", bench.train),
    ("validation", bench.held),
    ("test", bench.test),
):
    print(
        f"{role:<11}",
        *(
            f"{domain}: {len(sets[domain]):4d} pictures"
            for domain in bench.domains
        ),
        sep="  ",
    )
print(
    "classes    ",
    f"seen: {len(bench.seen)}, validation: {len(bench.validation)}, unseen: {len(bench.unseen)}",
)

# %% [markdown]
# Here are unseen concepts in both domains. Same concept, same column. You match them at a glance;
# their pixels have little in common.

# %% mystnb={"figure": {"caption": "The same unseen concepts as the query domain and the gallery domain draw them. What to see: shape and pose differ, not only colour; the drawings are by different hands.", "name": "fig-domains"}, "image": {"alt": "Two rows of small drawings. The upper row holds black pen drawings on white, the lower row flat coloured pictures of the same concepts."}}
shared = sorted(set(bench.test[query].keys) & set(bench.test[gallery].keys))
chosen = [shared[i] for i in np.linspace(0, len(shared) - 1, 12).astype(int)]
pictures = {
    domain: np.stack(
        [
            bench.test[domain].pixels[bench.test[domain].keys.index(key)]
            for key in chosen
        ]
    )
    for domain in bench.domains
}
figure = plots.grid(pictures)
print(f"{len(shared)} unseen concepts are drawn in both domains")

# %% [markdown]
# How little the pixels say: rank the gallery by pixel distance alone and see how often the first
# answers are of the query's class. A random order would do about as well as the *chance* line.


# %%
def pixel_features(pixels):
    """Ink, shrunk to 16 x 16 and centred: the simplest feature there is. [N, H, W, 3] -> [N, 256]"""
    ink = 255.0 - pixels.mean(-1)
    count, height, width = ink.shape
    small = (
        ink.reshape(count, 16, height // 16, 16, width // 16)
        .mean((2, 4))
        .reshape(count, -1)
    )
    return small - small.mean(1, keepdims=True)


twins = {
    "query_ids": np.array(bench.test[query].keys),
    "gallery_ids": np.array(bench.test[gallery].keys),
}
by_pixels = clair.evaluate(
    pixel_features(bench.test[query].pixels),
    bench.truth.test[query],
    pixel_features(bench.test[gallery].pixels),
    bench.truth.test[gallery],
    k=(10,),
    **twins,
)
print(
    f"pixels  mAP@all {by_pixels['mAP@all']:.3f}   P@10 {by_pixels['P@10']:.3f}"
)
print(f"chance          {by_pixels['chance']:.3f}")
assert by_pixels["mAP@all"] < 2 * by_pixels["chance"]

# %% [markdown]
# The metrics are defined in chapter 10. For now: *mAP@all* is 1 if all relevant pictures stand at the
# top of the ranking and close to the chance level if they are strewn about.
#
# ## The classes
#
# A class is a Unicode subgroup in plain words, such as "bird" or "sports equipment". That is a coarse
# notion on purpose: within a class the pictures differ, so that retrieval has to understand and not
# just to match shapes.

# %%
print("unseen:    ", ", ".join(bench.unseen))
print("validation:", ", ".join(bench.validation))
print("seen:      ", ", ".join(bench.seen[:8]), "…")

# %% [markdown]
# ## Who may look at what
#
# The rules of the game are strict, because it is easy to fool oneself here.
#
# 1. **No pairs.** Each concept exists in every domain, so the training pictures of the two domains
#    are taken from *disjoint halves* of the concepts.
# 2. **No labels.** The image sets carry none. The truth lives apart, in `bench.truth`, and reaches
#    the reports only.
# 3. **No unseen class in training**, neither a picture nor a name.
# 4. **No twin.** A query's own concept in the other domain is neither in its gallery nor relevant, so
#    that "find the same drawing" cannot help.
# 5. **No order.** Rows are sorted by the hash of their pixels: files usually come class by class, and
#    even that would be a hint.

# %%
halves = [set(bench.train[domain].keys) for domain in bench.domains]
names = [set(bench.seen), set(bench.validation), set(bench.unseen)]
assert not halves[0] & halves[1], "a training concept occurs in both domains"
assert not (names[0] & names[1] or names[0] & names[2] or names[1] & names[2])
print("concepts in both training sets:", len(halves[0] & halves[1]))
print(
    "attributes of an image set:    ",
    ", ".join(sorted(vars(bench.train[query]))),
)

# %% [markdown]
# One caution belongs here. *Choosing* the pictures of seen classes for training uses their labels,
# in this book as in all of the literature on this task. A truly unlabelled pile would also hold
# pictures of other things.
#
# ## Whose drawings these are
#
# `line` and `color`: all emojis designed by [OpenMoji](https://openmoji.org), the open-source emoji
# and icon project, licence CC BY-SA 4.0; `line` shows them without their coloured parts.
# `flat`: [Twemoji](https://github.com/jdecked/twemoji), graphics under CC BY 4.0, by Twitter, Inc and
# other contributors. We scaled them to 64 pixels; figures that show them are under the same licences.
#
# ## Summary
#
# * The task: find pictures of unseen classes across domains, after training without labels or pairs.
# * The data: three drawings of each concept; here `line` asks and `flat` answers.
# * Pixels alone are only a little better than chance, so the features must come from elsewhere: from
#   CLIP, in chapter 2.
#
# ## Exercises
#
# 1. Swap query and gallery. Does the chance level change?
# 2. Which pair of domains is the easiest for the pixel features? Guess first.
#
# ```{dropdown} Solutions
# 1. No. Chance is the mean share of relevant pictures in a query's gallery. Both domains hold the
#    same concepts, so the class sizes are the same on both sides.
# 2. `line` and `color`: they share their strokes, pixel by pixel. The next cell checks it.
# ```

# %% tags=["hide-cell"]
swapped = clair.load_benchmark(
    dataset, query=gallery, gallery=query, split=split, root=root or None
)
assert {d: len(swapped.test[d]) for d in bench.domains} == {
    d: len(bench.test[d]) for d in bench.domains
}
pairs = {}
for a, b in (
    (("line", "color"), ("line", "flat"), ("color", "flat"))
    if dataset == "emoji"
    else ()
):
    pair = clair.load_benchmark(dataset, query=a, gallery=b, split=split)
    pairs[a, b] = clair.evaluate(
        pixel_features(pair.test[a].pixels),
        pair.truth.test[a],
        pixel_features(pair.test[b].pixels),
        pair.truth.test[b],
        k=(10,),
        query_ids=np.array(pair.test[a].keys),
        gallery_ids=np.array(pair.test[b].keys),
    )["mAP@all"]
    print(f"{a:>5} -> {b:<5} {pairs[a, b]:.3f}")
assert not pairs or max(pairs, key=pairs.get) == ("line", "color")
