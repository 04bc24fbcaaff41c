"""The recipe of a run and the training loop (chapter 9).

fitted = fit(bench, model, Recipe(steps=80))
fitted.encode_images(bench.test["line"])      # a Clip like any other
"""

import copy
import dataclasses
import json
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from clair import checkpoints, losses
from clair.clip import Clip
from clair.datasets import Benchmark, did_you_mean
from clair.files import atomic_bytes, digest, silent
from clair.images import class_aware_batch, to_unit, view
from clair.prompts import VisualPrompts, trainable
from clair.pseudo_labels import PseudoLabels, pseudo_label


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Every choice of a run, in one place; each reading of the paper is one field."""

    # pseudo-labels (chapter 3)
    rule: str = "confidence"
    share: float = 0.6  # of each pseudo-class that is trusted
    label_balance: float = 0.5  # rule "prior": 0 leaves CLIP's preferences, 1 makes classes equally frequent
    label_rounds: int = 3  # rules "prototypes" and "gaussian"
    # what learns (chapter 8)
    train: str = "prompts+layernorm"
    prompt_tokens: int = 4
    prompt_depth: int = 1
    # losses (chapters 4, 5, 6, 9)
    temperature: float = 0.1
    instance_weight: float = 1.0
    cluster_weight: float = 1.0
    domain_weight: float = 1.0
    text_weight: float = 1.0
    prototype_momentum: float = 0.9
    # batches and schedule (chapter 9)
    classes_per_batch: int = 8
    images_per_class: int = 2
    images_per_domain: int = 20
    view_strength: float = 0.5
    steps: int = 80
    rate: float = 2e-4
    weight_decay: float = 0.01
    # mapping (chapter 7)
    map_method: str = "identity-ridge"
    map_strength: float = 1.0

    def __post_init__(self) -> None:
        least_of = {"steps": 0, "classes_per_batch": 1, "images_per_class": 1, "prompt_tokens": 1, "label_rounds": 0}
        for name, least in least_of.items():
            if getattr(self, name) < least:
                raise ValueError(f"The recipe's {name} is {getattr(self, name)}: choose {least} or more.")
        for name in ("temperature", "rate", "map_strength"):
            if not getattr(self, name) > 0:
                raise ValueError(f"The recipe's {name} is {getattr(self, name)}: choose a value above 0.")
        if not 0 < self.share <= 1:
            raise ValueError(f"The recipe's share is {self.share}: choose a value above 0 and at most 1.")
        if self.images_per_domain < self.classes_per_batch * self.images_per_class:
            raise ValueError(
                f"The recipe asks for {self.classes_per_batch} classes x {self.images_per_class} pictures but "
                f"images_per_domain is {self.images_per_domain}: raise it."
            )

    @classmethod
    def from_dict(cls, given: Mapping[str, Any]) -> "Recipe":
        """A recipe from plain values; ValueError names an unknown field's nearest one, or the type asked for."""
        fields = {field.name: field for field in dataclasses.fields(cls)}
        values: dict[str, Any] = {}
        for name, value in given.items():
            if name not in fields:
                raise ValueError(did_you_mean("recipe field", name, list(fields)))
            kind = type(fields[name].default)
            if kind is float and type(value) is int:
                value = float(value)
            if type(value) is not kind:
                raise ValueError(f"The recipe field {name!r} takes {kind.__name__}, not {value!r}.")
            values[name] = value
        return cls(**values)


class Fitted(Clip):
    """A CLIP after training: encodes like any, and knows its recipe, its labels and its history."""

    def __init__(self, base: Clip, recipe: Recipe, seed: int):
        module = copy.deepcopy(base.module)  # so that fit never changes the model it is given
        rng = torch.Generator().manual_seed(seed)
        if "prompts" in recipe.train.split("+"):
            VisualPrompts(module.visual, recipe.prompt_tokens, recipe.prompt_depth, rng)
        super().__init__(base.name, module, base.tokenize, base.device)
        self.learnt = trainable(module, recipe.train)
        self.base_digest, self.recipe, self.seed = base.weights_digest(), recipe, seed
        self.images_seen = 0
        self.seconds = 0.0  # of training, over all calls that it took
        self.history: list[dict[str, float]] = []
        self.labels: dict[str, PseudoLabels] = {}

    def save(self, path: Path) -> None:
        """Write what was learnt, and nothing else of the model."""
        tensors = {name: p.detach().cpu() for name, p in self.module.named_parameters() if p.requires_grad}
        about = {"base": self.base_digest, "recipe": dataclasses.asdict(self.recipe), "seed": self.seed}
        atomic_bytes(Path(path), safetensors.torch.save(tensors, {"clair": json.dumps(about)}))

    @classmethod
    def load(cls, path: Path, base: Clip) -> "Fitted":
        """Read what `save` wrote, for the model it was trained from."""
        with safetensors.safe_open(path, "pt") as file:
            about = json.loads((file.metadata() or {}).get("clair", "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if about.get("base") != base.weights_digest():
            raise ValueError(f"{path} was not trained from these weights of {base.name}: load the model it names.")
        fitted = cls(base, Recipe.from_dict(about["recipe"]), about["seed"])
        fitted.module.load_state_dict(tensors, strict=False)
        return fitted


def label_training_images(bench: Benchmark, model: Clip, recipe: Recipe) -> dict[str, PseudoLabels]:
    """Pseudo-labels of both domains from frozen features."""
    return {
        domain: pseudo_label(
            model.encode_images(bench.train[domain]),
            model.encode_classes(bench.seen, bench.templates[domain]),
            scale=model.scale,
            rule=recipe.rule,
            share=recipe.share,
            balance=recipe.label_balance,
            rounds=recipe.label_rounds,
        )
        for domain in bench.domains
    }


class Batches(Dataset):
    """Batch number ``step`` of a run: a function of the seed and the step, whoever asks and when.

    So worker processes give the same batches as none, and a resumed run the same as one that was never
    interrupted.  An item is the pixels of two views [4 n, 3, H, W] (both domains, then both again), the
    trusted pseudo-labels [4 n] (-1 for none) and the weights [4 n].
    """

    def __init__(self, bench: Benchmark, labels: dict[str, PseudoLabels], recipe: Recipe, seed: int, image_size: int):
        self.pixels = [torch.from_numpy(bench.train[domain].pixels) for domain in bench.domains]
        self.trusted = [labels[domain].trusted().numpy() for domain in bench.domains]
        self.confidence = [labels[domain].confidence for domain in bench.domains]
        self.recipe, self.seed, self.image_size = recipe, seed, image_size

    def __len__(self) -> int:
        return self.recipe.steps

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor, Tensor]:
        recipe, rng = self.recipe, np.random.default_rng([self.seed, step])
        count, size = recipe.classes_per_batch, recipe.images_per_domain
        rows, drawn = class_aware_batch(self.trusted, count, per_class=recipe.images_per_class, size=size, rng=rng)
        picked = [torch.from_numpy(r) for r in rows]
        unit = torch.cat([to_unit(p[r], self.image_size) for p, r in zip(self.pixels, picked, strict=True)])
        view_rng = torch.Generator().manual_seed(int(rng.integers(2**62)))
        unit = torch.cat([view(unit, view_rng, recipe.view_strength) for _ in range(2)])
        weights = torch.cat([c[r] for c, r in zip(self.confidence, picked, strict=True)])
        return unit, torch.from_numpy(np.concatenate(drawn)).repeat(2), weights.repeat(2)


def fit(
    bench: Benchmark,
    model: Clip,
    recipe: Recipe | None = None,
    labels: dict[str, PseudoLabels] | None = None,
    *,
    seed: int = 0,
    checkpoint: Path | None = None,
    every: int = 20,
    workers: int = 0,
    progress: bool = True,
) -> Fitted:
    """Train CLAIR on the unlabelled pictures of the seen classes; ``model`` stays as it is.

    Reads ``bench.train``, ``bench.seen`` and ``bench.templates`` only.  The same call gives the same
    bits on one machine with the same number of threads, for any number of ``workers`` (processes that
    prepare batches ahead), and however often it was killed: with ``checkpoint`` the state is written
    to that file every ``every`` steps and the next call goes on from there.

    Raises ValueError where ``checkpoint`` belongs to another run and FloatingPointError where the
    loss is no longer finite.
    """
    recipe = recipe or Recipe()
    labels = labels or label_training_images(bench, model, recipe)
    fitted = Fitted(model, recipe, seed)
    fitted.labels = labels
    texts = torch.stack([model.encode_classes(bench.seen, bench.templates[domain]) for domain in bench.domains])
    optimizer = torch.optim.AdamW(fitted.learnt, lr=recipe.rate, weight_decay=recipe.weight_decay)
    size = recipe.images_per_domain
    items = torch.arange(2 * size).repeat(2)
    domains = torch.tensor([0, 1]).repeat_interleave(size).repeat(2)
    first, key = 0, run_key(bench, model, recipe, labels, seed)
    if checkpoint is not None and Path(checkpoint).exists():
        prototypes, about = checkpoints.load(Path(checkpoint), key, fitted.learnt, optimizer)
        first, fitted.images_seen, fitted.history = about["steps"], about["images seen"], about["history"]
        fitted.seconds = about["seconds"]
    else:
        prototypes = start_prototypes(bench, model, labels, texts)

    batches = DataLoader(
        Batches(bench, labels, recipe, seed, fitted.image_size),
        batch_size=None, sampler=range(first, recipe.steps), num_workers=workers, generator=torch.Generator(),
    )  # fmt: skip
    began = time.perf_counter() - fitted.seconds
    bar = tqdm(batches, desc="training", initial=first, total=recipe.steps, disable=silent(progress))
    for step, (unit, classes, weights) in enumerate(bar, start=first):
        z = fitted.forward_images(unit.to(fitted.device)).cpu()
        terms = {
            "instance": losses.inter_instance(
                z, classes, weights, domains, items=items, temperature=recipe.temperature
            ),
            "cluster": losses.inter_cluster(z, classes, weights, domains, prototypes, temperature=recipe.temperature),
            "domain": losses.inter_domain(z, classes, weights, domains, prototypes, temperature=recipe.temperature),
            "text": losses.text_term(z, classes, weights, domains, texts, scale=model.scale),
        }
        total = sum(getattr(recipe, f"{name}_weight") * value for name, value in terms.items())
        if not torch.isfinite(total):
            raise FloatingPointError(f"The loss is {total.item()} at step {step}: lower the rate ({recipe.rate}).")
        for group in optimizer.param_groups:
            group["lr"] = recipe.rate * (0.5 + 0.5 * math.cos(math.pi * step / recipe.steps))
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        prototypes = move_prototypes(prototypes, z.detach(), classes, weights, domains, recipe.prototype_momentum)
        fitted.images_seen += len(unit)
        fitted.history.append({"step": step, "total": total.item()} | {name: v.item() for name, v in terms.items()})
        fitted.seconds = time.perf_counter() - began
        if checkpoint is not None and ((step + 1) % every == 0 or step + 1 == recipe.steps):
            about = {"steps": step + 1, "images seen": fitted.images_seen, "history": fitted.history}
            about |= {"seconds": fitted.seconds}
            checkpoints.save(Path(checkpoint), key, fitted.learnt, optimizer, prototypes, about)
    return fitted


def run_key(bench: Benchmark, model: Clip, recipe: Recipe, labels: dict[str, PseudoLabels], seed: int) -> str:
    """Equal keys mean that training takes the same steps: pictures, labels, texts, weights, recipe, seed."""
    pictures = [bench.train[domain].digest() for domain in bench.domains]
    told = [part.numpy().tobytes() for d in bench.domains for part in (labels[d].trusted(), labels[d].confidence)]
    words = [bench.domains, bench.seen, [list(bench.templates[domain]) for domain in bench.domains]]
    return digest(pictures, *told, words, model.weights_digest(), dataclasses.asdict(recipe), seed)


def start_prototypes(
    bench: Benchmark, model: Clip, labels: dict[str, PseudoLabels], texts: Float[Tensor, "2 C D"]
) -> Float[Tensor, "2 C D"]:
    """Weighted means of the trusted frozen features; a class without any falls back to its text."""
    found = []
    for domain, text in zip(bench.domains, texts, strict=True):
        label, x = labels[domain], model.encode_images(bench.train[domain])
        only = torch.zeros(len(x), dtype=torch.long)
        sums, mass = losses.cluster_sums(x, label.trusted(), label.confidence, only, len(bench.seen))
        found.append(torch.where(mass[0][:, None] > 0, F.normalize(sums[0], dim=-1), text))
    return torch.stack(found)


def move_prototypes(
    prototypes: Float[Tensor, "2 C D"],
    z: Float[Tensor, "M D"],
    classes: Tensor,
    weights: Tensor,
    domains: Tensor,
    momentum: float,
) -> Float[Tensor, "2 C D"]:
    """Exponential moving average towards the batch's centroids (5.2); absent classes stay."""
    sums, mass = losses.cluster_sums(z, classes, weights, domains, prototypes.shape[1])
    moved = F.normalize(momentum * prototypes + (1 - momentum) * F.normalize(sums, dim=-1), dim=-1)
    return torch.where(mass[..., None] > 0, moved, prototypes)
