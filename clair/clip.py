"""CLIP models through open_clip: the embedded `iconclip`, or any other by name and weights.

model = load_clip("iconclip")
x = model.encode_images(bench.train["line"])                       # [N, D], unit length
t = model.encode_classes(bench.seen, bench.templates["line"])      # [C, D], unit length
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from pickle import UnpicklingError

import numpy as np
import open_clip
import safetensors.torch
import torch
from jaxtyping import Float, Int, UInt8
from open_clip.tokenizer import SimpleTokenizer
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm.auto import tqdm

from clair.datasets import did_you_mean
from clair.files import silent
from clair.images import ImageSet, to_unit

WEIGHTS = Path(__file__).parent / "weights"
ICONCLIP = {"": "iconclip.safetensors", "early": "iconclip-early.safetensors"}  # tag -> the embedded weights


class Clip:
    """A CLIP with its tokenizer; every feature it gives is float32, on the CPU, of unit length.

    ``module`` is the open_clip model in eval mode, ``scale`` the κ that its softmax multiplies
    cosines with, ``weights_digest`` a key of all its weights.
    """

    def __init__(self, name: str, module: nn.Module, tokenize: Callable[..., Tensor], device: torch.device):
        self.name = name
        self.module = module.eval().to(device)
        self.tokenize = tokenize
        self.device = device

    @property
    def scale(self) -> float:
        return float(self.module.logit_scale.detach().exp())

    @property
    def image_size(self) -> int:
        size = self.module.visual.image_size
        return int(size[0] if isinstance(size, tuple) else size)

    def weights_digest(self) -> str:
        total = hashlib.sha256()
        for name, value in sorted(self.module.state_dict().items()):
            total.update(name.encode() + value.detach().cpu().contiguous().float().numpy().tobytes())
        return total.hexdigest()[:16]

    def normalise(self, unit: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 3 H W"]:
        """Pixels in 0..1 to what this model was trained on."""
        visual = self.module.visual
        mean, std = (torch.tensor(v, device=unit.device)[:, None, None] for v in (visual.image_mean, visual.image_std))
        return (unit - mean) / std

    def forward_images(self, unit: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B D"]:
        """Unit-length features of pixels in 0..1, with gradient; what training calls."""
        return F.normalize(self.module.encode_image(self.normalise(unit)).float(), dim=-1)

    @torch.no_grad()
    def encode_images(
        self, images: ImageSet | UInt8[np.ndarray, "N H W 3"], batch: int = 256, progress: bool = False
    ) -> Float[Tensor, "N D"]:
        """Features of pictures, in their order."""
        pixels = images.pixels if isinstance(images, ImageSet) else images
        if len(pixels) == 0:
            raise ValueError("There is no picture to encode: the image set is empty.")
        parts = []
        for start in tqdm(range(0, len(pixels), batch), desc="features", disable=silent(progress)):
            chunk = torch.from_numpy(np.ascontiguousarray(pixels[start : start + batch])).to(self.device)
            parts.append(self.forward_images(to_unit(chunk, self.image_size)).cpu())
        return torch.cat(parts)

    @torch.no_grad()
    def encode_texts(self, texts: Sequence[str]) -> Float[Tensor, "N D"]:
        """Features of texts; ValueError where a text is longer than the model's context and would be cut."""
        tokens = self.tokens(texts).to(self.device)
        parts = [self.module.encode_text(part).float().cpu() for part in tokens.split(512)]
        return F.normalize(torch.cat(parts), dim=-1)

    def tokens(self, texts: Sequence[str]) -> Int[Tensor, "N L"]:
        """Token ids; ValueError where a text would be cut."""
        length = int(self.module.context_length)
        ids = self.tokenize([*texts, ""], context_length=4 * length)
        padding = ids[-1, -1]  # 0 for CLIP's own tokenizer, another id for others
        cut = (ids[:-1, length:] != padding).any(1)
        if cut.any():
            text = texts[int(cut.nonzero()[0])]
            raise ValueError(f"The text {text!r} is longer than {self.name}'s context of {length} tokens: shorten it.")
        return ids[:-1, :length]

    def encode_classes(self, classes: Sequence[str], templates: Sequence[str]) -> Float[Tensor, "C D"]:
        """One feature a class: the mean over templates ("a sketch of a {}"), of unit length."""
        if not classes or not templates:
            raise ValueError("Give at least one class name and one template.")
        texts = [template.format(name) for name in classes for template in templates]
        features = self.encode_texts(texts).reshape(len(classes), len(templates), -1)
        return F.normalize(features.mean(1), dim=-1)


def load_clip(name: str = "iconclip", pretrained: str = "", device: str = "auto") -> Clip:
    """Load a CLIP: ``"iconclip"``, or an open_clip model with a weights tag or a local checkpoint.

    iconclip has weights of its own, and under the tag ``"early"`` those of early in its training.

    Raises ValueError for an unknown model, tag or device and FileNotFoundError for a missing file.
    """
    target = pick_device(device)
    if name == "iconclip":
        return _iconclip(target, pretrained)
    known = open_clip.list_models()
    if name not in known:
        raise ValueError(_near(name, known))
    tags = open_clip.list_pretrained_tags_by_model(name)
    if not pretrained:
        named = f", or one of {', '.join(tags)}" if tags else ""
        raise ValueError(f"Say which weights of {name} to load: a file{named}.")
    if pretrained not in tags and not Path(pretrained).is_file():
        named = ", ".join(tags) or "it has none"
        raise FileNotFoundError(f"{pretrained!r} is neither a file nor a tag of {name} ({named}).")
    try:
        module = open_clip.create_model(name, pretrained=pretrained)
    except (RuntimeError, KeyError, UnpicklingError, SafetensorError) as error:
        if pretrained in tags:  # a download that failed speaks for itself
            raise
        raise ValueError(f"{pretrained} does not hold weights of {name}: give a checkpoint of this model.") from error
    return Clip(name, module, open_clip.get_tokenizer(name), target)


def _near(name: str, known: list[str]) -> str:
    sentence = did_you_mean("model", name, ["iconclip", *known])
    return sentence.split(" Known: ")[0] + " The names are those of open_clip.list_models(), and 'iconclip'."


class Residual(nn.Module):
    """A 3 x 3 convolution whose result is added to what it saw."""

    def __init__(self, width: int, norm: Callable[[int], nn.Module] | None):
        super().__init__()
        self.conv = convolution(width, width, norm, stride=1)

    def forward(self, x: Float[Tensor, "B W h w"]) -> Float[Tensor, "B W h w"]:
        return F.relu(x + self.conv(x))


def convolution(inside: int, outside: int, norm: Callable[[int], nn.Module] | None, stride: int = 2) -> nn.Module:
    conv = nn.Conv2d(inside, outside, 3, stride, 1, bias=norm is None)
    return nn.Sequential(conv) if norm is None else nn.Sequential(conv, norm(outside))


def conv_stem(width: int, norm: Callable[[int], nn.Module] | None = None) -> nn.Module:
    """iconclip's first layers, in place of a linear patch embedding: [B, 3, H, W] -> [B, width, H/16, W/16].

    Early convolutions let a vision transformer learn from few pictures (Xiao et al., 2021).  Training
    puts a batch norm behind each convolution; the weights that are loaded have it folded in.
    """
    layers: list[nn.Module] = []
    for inside, outside in pairwise((3, width // 8, width // 4, width // 2, width)):
        layers += [convolution(inside, outside, norm), nn.ReLU()]
        if outside in (width // 4, width // 2):
            layers.append(Residual(outside, norm))
    return nn.Sequential(*layers, nn.Conv2d(width, width, 1))


def create_iconclip(norm: Callable[[int], nn.Module] | None = None) -> nn.Module:
    """iconclip with random weights: open_clip's model, its patch embedding replaced by `conv_stem`."""
    module = open_clip.CLIP(**json.loads((WEIGHTS / "iconclip.json").read_text("utf-8")))
    module.visual.image_mean, module.visual.image_std = open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD
    module.visual.conv1 = conv_stem(module.visual.conv1.out_channels, norm)
    return module


def _iconclip(device: torch.device, pretrained: str) -> Clip:
    path = WEIGHTS / ICONCLIP[pretrained] if pretrained in ICONCLIP else Path(pretrained)
    if not path.is_file():
        tags = ", ".join(map(repr, ICONCLIP))
        raise FileNotFoundError(f"{pretrained!r} is neither a file nor one of iconclip's own weights ({tags}).")
    module = create_iconclip()
    try:
        module.load_state_dict(safetensors.torch.load_file(path))
    except (RuntimeError, SafetensorError) as error:
        raise ValueError(f"{path} does not hold weights of iconclip: give a checkpoint of this model.") from error
    tokenizer = SimpleTokenizer(bpe_path=str(WEIGHTS / "iconclip-bpe.txt.gz"), context_length=module.context_length)
    return Clip("iconclip", module, tokenizer, device)


def pick_device(device: str = "auto") -> torch.device:
    """ "auto" takes CUDA, then Apple's MPS, then the CPU."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        return torch.empty(0, device=device).device  # "cuda" is a good name even where there is none
    except (RuntimeError, AssertionError) as error:  # NotImplementedError is a RuntimeError
        raise ValueError(f"There is no device {device!r} here: use auto, cpu, cuda, cuda:0 or mps.") from error
