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
# # A The embedded CLIP
#
# *Runs on a laptop CPU in under a minute · no parameters · trains a toy; the real training is read from
# its log*
#
# **What you will learn**: what `iconclip` is, what it learned from and what it has met; its recipe, run
# here at toy length; how good it is, where, and how we know that it did not copy.
#
# **What you should know**: chapters 1 and 2; a little PyTorch.
#
# ## Why train a CLIP at all
#
# The method needs a model that knows images and texts. A web-scale CLIP {cite}`clip` cannot be
# downloaded where this book is built, and a book that starts with a download is not read on a train.
# So the book brings a small one of its own. It plays the part that CLIP plays in the paper: it has met
# nearly everything, it labels with many errors, and its pictures of one thing in two styles lie apart.
#
# It is a stand-in. In this book "unseen" means unseen while training *for retrieval*: iconclip has met
# the benchmark's concepts, in other hands' drawings, as a web-scale CLIP has met dogs and cups.
#
# ## The model
#
# A vision transformer with four blocks of width 192 reads 64 × 64 pixels as 16 tokens. Its patch
# embedding is a small stack of convolutions, as early convolutions help a transformer to learn from few
# pictures {cite}`convstem`. The text tower has two blocks of width 128 and the 4,096 word pieces of
# CLIP's tokenizer that the captions need most; rarer words are spelt with shorter pieces.

# %% tags=["imports"]
import json
import sys

import matplotlib.pyplot as plt
import numpy as np
import torch
from open_clip.tokenizer import SimpleTokenizer
from PIL import Image, ImageDraw

import clair
from clair import emoji, plots
from clair.clip import ICONCLIP, WEIGHTS, Clip, create_iconclip
from clair.records import REPOSITORY

RECIPE = REPOSITORY / "iconclip"
sys.path.insert(0, str(RECIPE))
import captions
import icons
import train

plots.use_style()

# %%
model = clair.load_clip("iconclip", device="cpu")
parts = {"image tower": model.module.visual, "text tower": model.module.transformer}
for name, part in parts.items():
    print(f"{name:<12}{sum(p.numel() for p in part.parameters()):>10,} parameters")
print(f"{'word pieces':<12}{model.module.token_embedding.weight.numel():>10,}")
print(f"in all {sum(p.numel() for p in model.module.parameters()):,}, κ = {model.scale:.1f}")
for tag, file in ICONCLIP.items():
    print(f"{file}: {(WEIGHTS / file).stat().st_size / 1e6:.1f} MB" + (f'   load_clip("iconclip", "{tag}")' if tag else ""))

# %% [markdown]
# ## What it learned from
#
# Named icons and emoji from npm packages, **never OpenMoji or Twemoji**, which the benchmark is drawn
# from, and no set under a share-alike licence. (Two sets of that kind, `emojione-v1` and `arcticons`,
# both CC BY-SA 4.0, would have been useful. Whether weights are an adaptation of the pictures they
# learned from is an open question; without such sets nobody has to ask it.) Each licence below is the
# one that the package states. The `noto-emoji` font is under the Open Font License, which binds
# fonts, not the pictures that are set with them.

# %%
about = json.loads((RECIPE / "sources.json").read_text())
print(f"{'source':<27}{'licence':<11}" + "".join(f"{style[:7]:>8}" for style in icons.STYLES))
for name, source in about["sources"].items():
    counts = "".join(f"{count or '':>8}" for count in source["pictures"].values())
    print(f"{name:<27}{source['licence']:<11}{counts}".rstrip())
share_alike = [name for name, source in about["sources"].items() if "-SA" in source["licence"]]
print(f"{about['pictures']:,} pictures; {about['concepts']:,} emoji concepts")
print(f"{about['icons that are an emoji']:,} pictures of icons are called as an emoji is")
print(f"share-alike sets: {share_alike or 'none'}")
assert not share_alike

# %% [markdown]
# **Styles.** A coloured picture gives two more: its edges as pen strokes ("a line drawing of a …") and
# the picture with those strokes on top ("an outlined color drawing of a …"). So every style of the
# benchmark is met, each by other hands.
#
# **Captions** are names and keywords. For a fixed pseudo-random half of the concepts they may also be
# the *category*, the class words of the benchmark, because web captions name categories too, but not
# everywhere. Where nobody stated a picture's category, category texts are not negatives of it either:
# what is not known must not be taught.
#
# ## Did it copy?
#
# Each training picture was compared with each benchmark picture, twice: by the root mean square of
# their pixel differences (at 32 × 32, ink centred) and by a perceptual hash of 64 bits. What is nearer
# than the thresholds was dropped before training.

# %% mystnb={"figure": {"caption": "Distance from each benchmark picture to the nearest picture that was trained on. What near-copies there were, left of the dotted line, had been dropped. What to see: most pictures are far from anything met in training; flat pictures come closest, since two houses may draw a plain circle alike.", "name": "fig-nearest"}, "image": {"alt": "Three stepped histograms of distances, one for each domain, with a dotted line near the left end that marks the threshold."}}
near = json.loads((RECIPE / "nearest.json").read_text())
figure, axis = plt.subplots(figsize=(6.0, 2.6))
for number, domain in enumerate(emoji.DOMAINS):
    axis.hist(near[domain]["rms"], bins=np.arange(0, 0.4, 0.01), histtype="step", linewidth=1.6,
              color=plots.COLOURS[number], linestyle=("-", "--", "-.")[number], label=domain)
axis.axvline(near["pixels"], color="black", linestyle=":")
axis.set(xlabel="root mean square of pixel differences (0 to 1)", ylabel="benchmark pictures")
axis.legend()
print(f"dropped: {about['near-copies dropped']} (nearer than {near['pixels']}, or at most {near['bits']} bits)")
for domain in emoji.DOMAINS:
    print(f"{domain}: half are farther than {np.median(near[domain]['rms']):.3f} from all training pictures")
    for pair in near[domain]["closest by pixels"][:4]:
        print(f"   {pair['distance']:.3f}  {pair['benchmark']}  |  {pair['training']}")
    for pair in near[domain]["closest by hash"][:2]:
        print(f"   {pair['distance']:>2.0f} bits {pair['benchmark']}  |  {pair['training']}")

# %% [markdown]
# The closest pairs are discs, drops, white canes and other shapes that leave little to invent. (The
# training pictures are not part of the repository, so the pairs are listed by name.
# `iconclip/icons.py` renders them where npm is at hand.)
#
# ## The recipe, at toy length
#
# The training is contrastive as in CLIP: the feature of a picture should be closer to its caption's than
# to others'. Three things differ, because thousands of pictures share a small stock of captions.
#
# 1. A text is a positive of *every* picture in the batch that it is true of.
# 2. Each positive is contrasted by itself with the negatives, so positives do not compete.
# 3. A text whose truth is unknown is neither a positive nor a negative.
#
# With $P_i$ the positives and $N_i$ the negatives of picture $i$, $t$ the texts and $\kappa$ the scale,
#
# $$\ell_i = \frac{1}{|P_i|} \sum_{p \in P_i} \log\Big(1 + \sum_{n \in N_i} e^{\kappa (x_i \cdot t_n - x_i \cdot t_p)}\Big), \tag{A.1}$$
#
# and the same from the texts' side.
#
# While it trains, a second head tells the emoji's concept from the picture's feature. It gives the image
# tower something to learn while the text tower still says the same of everything; then it is thrown
# away. Weights are averaged over the last steps.
#
# That classifier makes all houses' drawings of a concept alike, more than web captions would. So a short
# second stage does without it, and half of the pictures are also described by their medium alone ("a
# line drawing"), as pictures on the web are. After it, a picture's feature says how it is drawn, too.
#
# Here is the very same code on toy pictures that the cell draws itself: sixteen shapes in two styles.

# %%
rng = np.random.default_rng(0)
shapes = {"disc": 0, "triangle": 3, "square": 4, "hexagon": 6}
colours = {"red": "#c22", "green": "#282", "blue": "#24c", "yellow": "#fc2"}


def toy(shape, colour, style):
    picture = Image.new("RGB", (64, 64), "white")
    draw, (x, y), size = ImageDraw.Draw(picture), rng.integers(26, 38, 2), int(rng.integers(12, 24))
    look = {"fill": colours[colour]} if style == "flat" else {"outline": "black", "width": 3, "fill": colours[colour]}
    if shapes[shape]:
        draw.regular_polygon((int(x), int(y), size), shapes[shape], rotation=int(rng.integers(0, 30)), fill=colours[colour],
                             outline=look.get("outline"), width=look.get("width", 1))
    else:
        draw.ellipse((x - size, y - size, x + size, y + size), **look)
    return np.asarray(picture)


rows, drawn = [], []
for number, (shape, colour) in enumerate((s, c) for s in shapes for c in colours):
    for style in ("flat", "outlined") * 6:
        drawn.append(toy(shape, colour, style))
        rows.append({"source": "toy", "style": style, "names": [f"{colour} {shape}"], "keywords": [],
                     "category": shape, "code": f"toy {number}"})
tokenizer = SimpleTokenizer(bpe_path=str(WEIGHTS / "iconclip-bpe.txt.gz"), context_length=captions.CONTEXT)
plan = train.Plan(steps=120, batch=16, icons=0.0, rate=5e-4)
losses = []
average = train.train(torch.from_numpy(np.stack(drawn)), rows, plan, tokenizer, categories="all",
                      log=lambda row: losses.append(row["loss"]))
module = create_iconclip()
module.load_state_dict(train.folded(average))
student = Clip("toy", module, tokenizer, torch.device("cpu"))
fresh = [(shape, colour, style) for shape in shapes for colour in colours for style in ("flat", "outlined")]
x = student.encode_images(np.stack([toy(*one) for one in fresh]))
names = [f"{colour} {shape}" for shape in shapes for colour in colours]
t = student.encode_classes(names, icons.STYLES["flat"])
right = np.mean([names[i] == f"{colour} {shape}" for i, (shape, colour, _) in zip((x @ t.T).argmax(1), fresh, strict=True)])
assert losses[-1] < losses[0]
assert right > 3 / len(names)
print(f"the loss went down, and new toy pictures are named far better than by chance (1 in {len(names)})")

# %% [markdown]
# ## The real run
#
# `make iconclip` renders the pictures and trains on two CPU cores (it needs npm). This is its log.

# %% mystnb={"figure": {"caption": "The first stage of the real training: contrastive plus concept loss, the concept loss alone, and the scale of the softmax. What to see: after a slow start both losses fall until the rate goes down, and still do then; the run is limited by time.", "name": "fig-iconclip-log"}, "image": {"alt": "Three small line plots over the training steps: the total loss and the concept loss fall, the scale rises."}}
lines = [json.loads(line) for line in (RECIPE / "log.jsonl").read_text().splitlines()]
log, finish = ([row for row in lines if row["stage"] == stage] for stage in (1, 2))
steps = [row["step"] for row in log]
figure, axes = plt.subplots(1, 3, figsize=(7.4, 2.2))
for axis, name, title in zip(axes, ("loss", "concept", "scale"), ("loss", "concept loss", "scale κ"), strict=True):
    axis.plot(steps, [row[name] for row in log], color=plots.COLOURS[0], linewidth=1.4)
    axis.axvline(train.LEVEL * log[-1]["step"], color="black", linewidth=0.8, linestyle=":")
    axis.set(title=title, xlabel="step")
figure.tight_layout()
for stage, rows_of in enumerate((log, finish), start=1):
    print(
        f"stage {stage}: {rows_of[-1]['step'] + 1:,} steps of {train.Plan(steps=1).batch} pictures "
        f"in {rows_of[-1]['seconds'] / 60:.0f} minutes"
    )
print(f"the rate goes down from step {train.LEVEL * (log[-1]['step'] + 1):,.0f}; `early` is step {train.EARLY:,}")

# %% [markdown]
# ## How good is it?
#
# Zero-shot accuracy among all classes of the benchmark, texts averaged over the domain's templates. The
# two halves of the concepts are apart: those whose captions may have named their category, and those
# never told.

# %%
emojis, pictures = emoji.load()
names = np.array(list(emoji.CLASSES))
labels = np.array([item.label for item in emojis])
told = np.array([captions.has_category(emoji.concept(item.code)) for item in emojis])
accuracy = {}
print(f"{'weights':<10}{'domain':<8}{'top-1':>7}{'top-5':>7}{'told':>7}{'not told':>10}   among {len(names)} classes")
for tag in ICONCLIP:
    encoder = clair.load_clip("iconclip", tag, device="cpu")
    for domain in emoji.DOMAINS:
        texts = encoder.encode_classes(list(names), emoji.TEMPLATES[domain])
        best = names[(encoder.encode_images(pictures[domain]) @ texts.T).topk(5).indices.numpy()]
        hit = best == labels[:, None]
        accuracy[tag, domain] = hit[:, 0]
        print(
            f"{tag or 'iconclip':<10}{domain:<8}{hit[:, 0].mean():>7.3f}{hit.any(1).mean():>7.3f}"
            f"{hit[told, 0].mean():>7.3f}{hit[~told, 0].mean():>10.3f}"
        )
assert all(accuracy["", domain].mean() > accuracy["early", domain].mean() for domain in emoji.DOMAINS)

# %% [markdown]
# Being told helps a concept much. But the half that was never told is also named far better than by
# chance. That half is where the model has to conclude from likeness.
#
# Per class, the three domains side by side:

# %%
print(f"{'class':<26}" + "".join(f"{domain:>8}" for domain in emoji.DOMAINS) + "   concepts")
for name in sorted(names, key=lambda name: -sum(accuracy["", d][labels == name].mean() for d in emoji.DOMAINS)):
    cells = "".join(f"{accuracy['', domain][labels == name].mean():>8.2f}" for domain in emoji.DOMAINS)
    print(f"{name:<26}{cells}{(labels == name).sum():>8}")

# %% [markdown]
# ## Summary
#
# * iconclip is small, ours, and trained on two CPU cores in the minutes printed above; it is a stand-in.
# * It has met the benchmark's concepts, not its pictures.
# * It names flat pictures best and strokes worst.
#
# ## Exercises
#
# 1. In (A.1) let positives compete, as in the usual softmax over all texts. What is the least value that
#    the loss of a picture with two positives can reach?
# 2. Why may a caption be cut after 16 tokens in training, when the model's context is 24?
#
# ```{dropdown} Solutions
# 1. With two positives of equal cosine each gets at most half of the softmax, so the loss stays at
#    $\log 2$ however sure the model is, and its gradient keeps pushing. In (A.1) it goes to zero; the
#    next cell shows both. 2. The text tower's attention is causal: no token sees what comes after it,
#    and the feature is read at the end-of-text token. What stands behind that token cannot matter.
# ```

# %% tags=["hide-cell"]
for scale in (1.0, 5.0, 20.0):
    logits = scale * torch.tensor([[1.0, 1.0, -1.0, -1.0]])
    true = torch.tensor([[True, True, False, False]])
    ours = train.contrast(logits, true, torch.ones_like(true)).item()
    usual = -(logits.log_softmax(1)[true]).mean().item()
    print(f"scale {scale:>4}: ours {ours:.4f}, competing {usual:.4f} (log 2 = {np.log(2):.4f})")
