"""Train the embedded CLIP.

    npm install --prefix iconclip && python iconclip/icons.py     # the pictures, once
    python iconclip/train.py --minutes 40                         # resumes from its checkpoint

Contrastive training as in CLIP, with two differences that the small caption set asks for: a text is
a positive of every picture in the batch that it is true of, and the loss averages over positives.
"""

import argparse
import collections
import gzip
import json
import math
import time
from pathlib import Path

import numpy as np
import open_clip
import safetensors.numpy
import safetensors.torch
import torch
from icons import ICON_SETS, STYLES
from open_clip.tokenizer import SimpleTokenizer, default_bpe, get_pairs
from torch.nn import functional as F

from clair.files import atomic_bytes, cache_root
from clair.images import to_unit, view

WEIGHTS = Path(__file__).parent.parent / "clair" / "weights"
CONTEXT, LENGTH = 24, 18  # captions are cut at LENGTH tokens in training: the text mask is causal


def narrow_vocabulary(texts: list[str], size: int) -> bytes:
    """The merges of CLIP's tokenizer that these texts need most, as a gzipped merge file.

    Any other word is spelt with shorter pieces, down to single letters, so nothing is unknown.
    """
    full = SimpleTokenizer(context_length=CONTEXT)
    with gzip.open(default_bpe()) as file:
        lines = file.read().decode("utf-8").split("\n")
    used: collections.Counter[tuple[str, str]] = collections.Counter()
    for word, count in collections.Counter(" ".join(texts).split()).items():
        pieces = (*word[:-1], word[-1] + "</w>")
        while len(pieces) > 1:
            pair = min(get_pairs(pieces), key=lambda pair: full.bpe_ranks.get(pair, math.inf))
            if pair not in full.bpe_ranks:
                break
            used[pair] += count
            merged, i = [], 0
            while i < len(pieces):
                join = i + 1 < len(pieces) and pieces[i : i + 2] == pair
                merged.append("".join(pair) if join else pieces[i])
                i += 2 if join else 1
            pieces = tuple(merged)
    kept = {pair for pair, _ in used.most_common(size - 512 - 2)}
    chosen = [pair for pair in sorted(kept, key=full.bpe_ranks.__getitem__)]
    text = "\n".join([lines[0], *(" ".join(pair) for pair in chosen)])
    return gzip.compress(text.encode(), mtime=0)


class Captions:
    """What may be said of each picture, as content ids, and how to say it."""

    def __init__(self, rows: list[dict]):
        self.styles = list(STYLES)
        self.style = np.array([self.styles.index(row["style"]) for row in rows])
        self.is_icon = np.array([row["source"] in ICON_SETS for row in rows])
        contents = sorted({text for row in rows for text in (*row["names"], *row["keywords"], row["category"]) if text})
        number = {text: i for i, text in enumerate(contents)}
        self.contents = contents
        self.names = [[number[text] for text in row["names"]] for row in rows]
        self.keywords = [[number[text] for text in row["keywords"]] for row in rows]
        self.category = [number.get(row["category"], -1) for row in rows]
        width = 16
        self.true = np.full((len(rows), width), -1)
        for i in range(len(rows)):
            self.keywords[i] = self.keywords[i][: width - 2]
            every = [*self.names[i], self.category[i], *self.keywords[i]]
            self.true[i, : len(every)] = every

    def draw(self, picture: int, rng: np.random.Generator) -> tuple[int, int, str]:
        """A caption of the picture: its content, its style (-1 for none) and the text."""
        options, chance = self.names[picture], rng.random()
        if self.category[picture] >= 0 and chance < 0.45:
            options = [self.category[picture]]
        elif self.keywords[picture] and chance > 0.8:
            options = self.keywords[picture]
        content = options[rng.integers(len(options))]
        if rng.random() < 0.3:
            return content, -1, self.contents[content]
        style = int(self.style[picture])
        templates = STYLES[self.styles[style]]
        return content, style, templates[rng.integers(len(templates))].format(self.contents[content])

    def positives(self, pictures: np.ndarray, contents: np.ndarray, styles: np.ndarray) -> np.ndarray:
        """[B, B]: text j is true of picture i."""
        said = (self.true[pictures][:, :, None] == contents[None, None, :]).any(1)
        fits = (styles[None] == -1) | (self.style[pictures][:, None] == styles[None])
        return said & fits


def contrast(image: torch.Tensor, text: torch.Tensor, scale: torch.Tensor, positive: torch.Tensor) -> torch.Tensor:
    """Symmetric contrastive loss, averaged over each row's positives."""
    logits = scale * image @ text.T
    rows = (F.log_softmax(logits, 1) * positive).sum(1) / positive.sum(1)
    columns = (F.log_softmax(logits, 0) * positive).sum(0) / positive.sum(0)
    return -(rows.mean() + columns.mean()) / 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=40, help="length of the cosine schedule, in minutes here")
    parser.add_argument("--seconds-a-step", type=float, default=0.75, help="to turn minutes into steps")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--icons", type=float, default=0.25, help="share of icons; the rest are emoji")
    parser.add_argument("--warm", action="store_true", help="start from the committed weights")
    parser.add_argument("--out", type=Path, default=WEIGHTS)
    args = parser.parse_args()
    steps = int(args.minutes * 60 / args.seconds_a_step)

    source = cache_root() / "iconclip"
    pictures = torch.from_numpy(safetensors.numpy.load_file(source / "pictures.safetensors")["pictures"])
    captions = Captions(json.loads((source / "samples.json").read_text()))
    config = json.loads((WEIGHTS / "iconclip.json").read_text())
    bpe = WEIGHTS / "iconclip-bpe.txt.gz"
    if not bpe.exists():
        texts = [*captions.contents, *[template for style in STYLES.values() for template in style] * 50]
        atomic_bytes(bpe, narrow_vocabulary(texts, config["text_cfg"]["vocab_size"]))
    tokenizer = SimpleTokenizer(bpe_path=str(bpe), context_length=CONTEXT)
    assert tokenizer.vocab_size == config["text_cfg"]["vocab_size"], tokenizer.vocab_size

    torch.manual_seed(0)
    open_clip.add_model_config(WEIGHTS / "iconclip.json")
    model = open_clip.create_model("iconclip")
    if args.warm:
        weights = safetensors.torch.load_file(WEIGHTS / "iconclip.safetensors")
        model.load_state_dict({name: value.float() for name, value in weights.items()})
    decay = [p for p in model.parameters() if p.ndim >= 2]
    plain = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": decay, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=args.rate, betas=(0.9, 0.98))
    average = {name: value.clone() for name, value in model.state_dict().items()}
    rng = torch.Generator().manual_seed(0)
    checkpoint, start = source / "checkpoint.pt", 0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        average, start = state["average"], state["step"]
    mean, std = (torch.tensor(value)[:, None, None] for value in (model.visual.image_mean, model.visual.image_std))
    emoji, icons = np.flatnonzero(~captions.is_icon), np.flatnonzero(captions.is_icon)
    tokens: dict[str, torch.Tensor] = {}
    visual, textual = torch.compile(model.visual), torch.compile(encode_text)
    began = time.time()
    for step in range(start, steps):
        draws = np.random.default_rng([1, step])
        rng.manual_seed(step)
        rate = args.rate * min(1, (step + 1) / 150) * (0.5 + 0.5 * math.cos(math.pi * step / steps))
        for group in optimizer.param_groups:
            group["lr"] = rate
        few = round(args.icons * args.batch)
        batch = np.concatenate([draws.choice(icons, few, False), draws.choice(emoji, args.batch - few, False)])
        said = [captions.draw(int(picture), draws) for picture in batch]
        contents, styles = (np.array([part[k] for part in said]) for k in (0, 1))
        positive = torch.from_numpy(captions.positives(batch, contents, styles)).float()
        for _, _, text in said:
            if text not in tokens:
                tokens[text] = tokenizer([text], context_length=LENGTH)[0]
        ids = torch.stack([tokens[text] for _, _, text in said])
        pixels = (view(to_unit(pictures[torch.from_numpy(batch)]), rng) - mean) / std
        with torch.autocast("cpu", torch.bfloat16):
            image = F.normalize(visual(pixels).float(), dim=-1)
            text = F.normalize(textual(model, ids).float(), dim=-1)
        loss = contrast(image, text, model.logit_scale.exp().clamp(max=100), positive)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        keep = min(0.998, step / (step + 50))
        with torch.no_grad():
            for name, value in model.state_dict().items():
                average[name].lerp_(value, 1 - keep)
        if step % 50 == 0 or step == steps - 1:
            scale = round(model.logit_scale.exp().item(), 2)
            row = {"step": step, "loss": round(loss.item(), 4), "rate": rate, "scale": scale}
            row["seconds"] = round(time.time() - began, 1)
            print(json.dumps(row), flush=True)
        if step % 500 == 499 or step == steps - 1:
            state = {
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "average": average,
                "step": step + 1,
            }
            torch.save(state, checkpoint.with_suffix(".tmp"))
            checkpoint.with_suffix(".tmp").replace(checkpoint)
            half = {name: value.half().contiguous() for name, value in average.items() if name != "attn_mask"}
            atomic_bytes(args.out / "iconclip.safetensors", safetensors.torch.save(half))


def encode_text(model: torch.nn.Module, ids: torch.Tensor) -> torch.Tensor:
    """open_clip's text encoding on ids [B, L] that may be cut behind the end of text (the mask is causal)."""
    length = ids.shape[1]
    x = model.token_embedding(ids) + model.positional_embedding[:length]
    x = model.ln_final(model.transformer(x, attn_mask=model.attn_mask[:length, :length]))
    return x[torch.arange(len(x)), ids.argmax(-1)] @ model.text_projection


if __name__ == "__main__":
    main()
