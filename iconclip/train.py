"""Train the embedded CLIP.

    npm install --no-package-lock --prefix iconclip && python iconclip/icons.py     # the pictures, once
    python iconclip/train.py                       # some 90 minutes on two cores; resumes from its checkpoint

Contrastive training as in CLIP, with three differences that the small caption set asks for: a text is
a positive of every picture in the batch that it is true of, each positive is contrasted by itself with
the negatives, and where nobody stated a picture's category, category texts are no negatives of it.
While it trains, a classifier of the emoji's concept helps the image tower along; it is thrown away.
A short second stage does without it and also names the medium alone ("a line drawing"), as web captions
do: the classifier makes all houses' drawings of a concept alike, and a CLIP should know them apart.
"""

import argparse
import collections
import dataclasses
import json
import shutil
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import safetensors.numpy
import safetensors.torch
import torch
from captions import CONTEXT, Captions, narrow_vocabulary
from icons import ICON_SETS, STYLES, concepts
from open_clip.tokenizer import SimpleTokenizer
from torch import nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils.fusion import fuse_conv_bn_eval

from clair.clip import ICONCLIP, WEIGHTS, create_iconclip, load_clip
from clair.emoji import CLASSES
from clair.files import atomic_bytes, cache_root
from clair.images import to_unit, view

LENGTH = 16  # captions are cut at so many tokens in training: the text mask is causal, so nothing else changes
EARLY = 4000  # the step whose weights are kept as the weaker checkpoint
STEPS, FINISH = 14300, 2300  # of the two stages: some 75 and 12 minutes on two cores
LEVEL = 0.7  # share of the steps before the rate goes down


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """The length and the shape of a training."""

    steps: int
    batch: int = 128
    rate: float = 1e-3
    icons: float = 0.25  # share of icons in a batch; the rest are emoji, one a concept
    concept: float = 0.5  # weight of the concept classifier
    media: float = 0.0  # share of pictures whose medium is also named alone

    def rate_at(self, step: int) -> float:
        """Up within 300 steps, level, and down to nothing over the last part.

        The level part does not depend on the number of steps, so a training can be lengthened or cut
        short by resuming it with another number before the way down begins.
        """
        return self.rate * min(1, (step + 1) / 300, (self.steps - step) / ((1 - LEVEL) * self.steps))


def contrast(logits: torch.Tensor, true: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
    """Each row's positives against the row's known negatives, one at a time; the mean over rows that have any."""
    negative = logits.masked_fill(true | ~known, -torch.inf).logsumexp(1, keepdim=True)
    loss = (F.softplus(negative - logits) * true).sum(1) / true.sum(1).clamp(min=1)
    return loss.sum() / true.any(1).sum()


def encode_text(model: torch.nn.Module, ids: torch.Tensor) -> torch.Tensor:
    """open_clip's text encoding on ids [B, L] that may be cut behind the end of text (the mask is causal)."""
    length = ids.shape[1]
    x = model.token_embedding(ids) + model.positional_embedding[:length]
    x = model.ln_final(model.transformer(x, attn_mask=model.attn_mask[:length, :length]))
    return x[torch.arange(len(x)), ids.argmax(-1)] @ model.text_projection


def concept_groups(rows: list[dict], chosen: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
    """The emoji among the chosen rows, gathered by concept, and the icons."""
    groups: dict[str, list[int]] = collections.defaultdict(list)
    icons = []
    for row in chosen:
        if rows[row]["source"] in ICON_SETS:
            icons.append(row)
        else:
            groups[rows[row]["code"]].append(row)
    return [np.array(members) for members in groups.values()], np.array(icons, dtype=np.int64)


def train(
    pictures: torch.Tensor,
    rows: list[dict],
    plan: Plan,
    tokenizer: SimpleTokenizer,
    *,
    categories: str = "half",
    chosen: np.ndarray | None = None,
    warm: Path | None = None,
    checkpoint: Path | None = None,
    save: Callable[[int, dict[str, torch.Tensor]], None] | None = None,
    log: Callable[[dict], None] = lambda row: None,
) -> dict[str, torch.Tensor]:
    """The moving average of the weights after training on the chosen rows (default: all).

    Starts at random weights, or at the average of the checkpoint ``warm``.
    ``pictures`` is uint8 [N, 64, 64, 3], ``rows`` a dict each as `icons.Sample` has fields.  ``log`` is
    called every hundred steps; every five hundred ``checkpoint`` is written, from which the next call
    goes on, and ``save`` called with the step and the average.
    """
    captions = Captions(rows, categories, plan.media)
    torch.manual_seed(0)
    model = create_iconclip(norm=nn.BatchNorm2d)
    # For training only: the emoji's concept, told from the feature by a cosine classifier.  Early on the
    # text tower says nearly the same of every text; this gives the image tower something to learn from.
    number = {code: i for i, code in enumerate(sorted({row["code"] for row in rows} - {""}))}
    concept = torch.tensor([number.get(row["code"], -1) for row in rows])
    head = nn.Parameter(torch.randn(len(number), model.visual.output_dim))
    decay = [p for p in model.parameters() if p.ndim >= 2] + [head]
    plain = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": decay, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=plan.rate, betas=(0.9, 0.98))
    if warm is not None:
        model.load_state_dict(torch.load(warm, weights_only=True)["average"])
    average, start = {name: value.clone() for name, value in model.state_dict().items()}, 0
    if checkpoint is not None and checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        head.data.copy_(state["head"])
        optimizer.load_state_dict(state["optimizer"])
        average, start = state["average"], state["step"]
    mean, std = (torch.tensor(value)[:, None, None] for value in (model.visual.image_mean, model.visual.image_std))
    emoji, icons = concept_groups(rows, np.arange(len(rows)) if chosen is None else chosen)
    few = round(plan.icons * plan.batch)
    tokens: dict[str, torch.Tensor] = {}
    model.visual.to(memory_format=torch.channels_last)
    began, rng = time.time(), torch.Generator()
    for step in range(start, plan.steps):
        draws = np.random.default_rng([1, step])
        rng.manual_seed(step)
        for group in optimizer.param_groups:
            group["lr"] = plan.rate_at(step)
        drawn = draws.choice(len(emoji), plan.batch - few, False)
        batch = np.array([*draws.choice(icons, few, False), *(draws.choice(emoji[k]) for k in drawn)])
        said = sorted({caption for picture in batch for caption in captions.draw(int(picture), draws)})
        contents, styles = (np.array([part[k] for part in said]) for k in (0, 1))
        true, known = (torch.from_numpy(part) for part in captions.relation(batch, contents, styles))
        for _, _, text in said:
            if text not in tokens:
                tokens[text] = tokenizer([text], context_length=LENGTH)[0]
        ids = torch.stack([tokens[text] for _, _, text in said])
        pixels = (view(to_unit(pictures[torch.from_numpy(batch)]), rng) - mean) / std
        pixels = pixels.contiguous(memory_format=torch.channels_last)
        # On so few tokens the CPU's fused attention takes twice as long in training as plain products.
        with torch.autocast("cpu", torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
            image = F.normalize(model.visual(pixels).float(), dim=-1)
            text = F.normalize(encode_text(model, ids).float(), dim=-1)
        logits = model.logit_scale.exp().clamp(max=100) * image @ text.T
        contrastive = (contrast(logits, true, known) + contrast(logits.T, true.T, known.T)) / 2
        guess = 16 * image @ F.normalize(head, dim=-1).T
        told = F.cross_entropy(guess, concept[torch.from_numpy(batch)], ignore_index=-1)
        loss = contrastive + plan.concept * told
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_([*model.parameters(), head], 1.0)
        optimizer.step()
        keep = min(0.999, step / (step + 50))
        with torch.no_grad():
            for name, value in model.state_dict().items():
                average[name].lerp_(value, 1 - keep) if value.is_floating_point() else average[name].copy_(value)
        last = step == plan.steps - 1
        if step % 100 == 0 or last:
            row = {"step": step, "loss": round(loss.item(), 4), "concept": round(told.item(), 4)}
            row |= {"rate": plan.rate_at(step), "scale": round(model.logit_scale.exp().item(), 2)}
            log(row | {"seconds": round(time.time() - began, 1)})
        if step % 500 == 499 or last:
            if checkpoint is not None:
                state = {"model": model.state_dict(), "head": head.detach(), "optimizer": optimizer.state_dict()}
                torch.save(state | {"average": average, "step": step + 1}, checkpoint.with_suffix(".tmp"))
                checkpoint.with_suffix(".tmp").replace(checkpoint)
                if step <= LEVEL * plan.steps:  # from here the training can be gone on with at full rate
                    shutil.copy(checkpoint, checkpoint.with_suffix(".level"))
            if save is not None:
                save(step + 1, average)
    return average


def folded(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The weights as they are loaded: fp16, the batch norms folded into their convolutions."""
    model = create_iconclip(norm=nn.BatchNorm2d).eval()
    model.load_state_dict(state)
    for module in list(model.visual.conv1.modules()):
        if isinstance(module, nn.Sequential) and len(module) == 2 and isinstance(module[1], nn.BatchNorm2d):
            module[0] = fuse_conv_bn_eval(module[0], module[1])
            del module[1]
    return {name: value.half().contiguous() for name, value in model.state_dict().items()}


def report(weights: Path, pictures: torch.Tensor, rows: list[dict], held: np.ndarray) -> None:
    """Zero-shot accuracy on the houses that were left out, by style: what the recipe was chosen by."""
    model, (_, class_of) = load_clip("iconclip", str(weights), device="cpu"), concepts()
    for style in STYLES:
        some = [i for i in np.flatnonzero(held) if rows[i]["style"] == style and class_of.get(rows[i]["code"])]
        if some:
            texts = model.encode_classes(list(CLASSES), STYLES[style])
            best = (model.encode_images(pictures[some].numpy()) @ texts.T).topk(5).indices.numpy()
            hit = np.array(list(CLASSES))[best] == np.array([class_of[rows[i]["code"]] for i in some])[:, None]
            print(
                f"held out, {style}: {len(some)} pictures, top-1 {hit[:, 0].mean():.3f}, top-5 {hit.any(1).mean():.3f}"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=STEPS, help="of the first stage")
    parser.add_argument("--finish", type=int, default=FINISH, help="of the second stage; 0 leaves it out")
    parser.add_argument("--categories", choices=("none", "half", "all"), default="half", help="captioned concepts")
    parser.add_argument("--hold-out", nargs="*", default=[], help="sources to leave out and to test on")
    parser.add_argument("--out", type=Path, default=WEIGHTS / ICONCLIP[""])
    parser.add_argument("--log", type=Path, default=Path(__file__).parent / "log.jsonl", help="a line every 100 steps")
    args = parser.parse_args()
    source = cache_root() / "iconclip"
    if not (source / "samples.json").exists():
        raise SystemExit(f"{source} holds no pictures: run `python iconclip/icons.py` first")
    pictures = torch.from_numpy(safetensors.numpy.load_file(source / "pictures.safetensors")["pictures"])
    rows = json.loads((source / "samples.json").read_text())
    bpe = WEIGHTS / "iconclip-bpe.txt.gz"
    if not bpe.exists():
        size = json.loads((WEIGHTS / "iconclip.json").read_text())["text_cfg"]["vocab_size"]
        phrases = [template for style in STYLES.values() for template in style]
        atomic_bytes(bpe, narrow_vocabulary([*Captions(rows).contents, *phrases * 50], size))
    tokenizer = SimpleTokenizer(bpe_path=str(bpe), context_length=CONTEXT)
    held = np.array([row["source"] in args.hold_out for row in rows])
    checkpoint = source / f"{args.out.stem}.checkpoint"
    if not checkpoint.exists():
        args.log.write_text("")

    def save(step: int, average: dict[str, torch.Tensor]) -> None:
        if step == EARLY:
            atomic_bytes(args.out.with_name(ICONCLIP["early"]), safetensors.torch.save(folded(average)))
        atomic_bytes(args.out, safetensors.torch.save(folded(average)))

    def log(row: dict, stage: int = 1) -> None:
        row = {"stage": stage} | row
        print(json.dumps(row), flush=True)
        with open(args.log, "a") as file:
            file.write(json.dumps(row) + "\n")

    options = {"categories": args.categories, "chosen": np.flatnonzero(~held)}
    train(pictures, rows, Plan(steps=args.steps), tokenizer, checkpoint=checkpoint, save=save, log=log, **options)
    if args.finish:
        plan = Plan(steps=args.finish, rate=3e-4, concept=0.0, media=0.5)
        second = checkpoint.with_suffix(".finish")
        options |= {"warm": checkpoint, "checkpoint": second, "log": partial(log, stage=2)}
        average = train(pictures, rows, plan, tokenizer, **options)
        atomic_bytes(args.out, safetensors.torch.save(folded(average)))
    if held.any():
        report(args.out, pictures, rows, held)


if __name__ == "__main__":
    main()
