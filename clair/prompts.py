"""Extra learnable prompt tokens, as hooks on an open_clip vision transformer (chapter 8).

That there is an extra set of learnable prompts is the paper's; that they stand beside a frozen
backbone whose LayerNorms may be tuned is this book's reading.
"""

from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn

TRAINABLE = ("prompts", "layernorm", "encoder")


class VisualPrompts(nn.Module):
    """``count`` tokens behind the class token, fresh ones in each of the first ``depth`` blocks.

    ``tokens`` is [depth, count, width].  They are dropped behind the last block, so that any
    pooling sees what it saw before.
    """

    def __init__(self, visual: nn.Module, count: int, depth: int, rng: torch.Generator):
        super().__init__()
        blocks = getattr(getattr(visual, "transformer", None), "resblocks", None)
        if blocks is None:
            raise ValueError("Visual prompts need open_clip's own vision transformer: choose a model like ViT-B-32.")
        if not 1 <= depth <= len(blocks):
            most = len(blocks)
            raise ValueError(f"prompt_depth is {depth}: this model has {most} blocks, choose 1 to {most}.")
        if count < 1:
            raise ValueError(f"prompt_tokens is {count}: choose at least 1.")
        start = 0.02 * torch.randn(depth, count, visual.class_embedding.shape[-1], generator=rng)
        self.tokens = nn.Parameter(start)
        self.count = count
        # Bound methods, so that a deep copy of the model gets hooks bound to the copied prompts.
        visual.ln_pre.register_forward_hook(self._insert)
        for level, block in enumerate(blocks[1:depth], start=1):
            block.register_forward_pre_hook(partial(self._replace, level))
        visual.transformer.register_forward_hook(self._drop)
        visual.prompts = self

    def _insert(self, module: nn.Module, args: object, x: Float[Tensor, "B L W"]) -> Tensor:
        tokens = self.tokens[0].to(x.dtype).expand(len(x), -1, -1)
        return torch.cat([x[:, :1], tokens, x[:, 1:]], dim=1)

    def _replace(self, level: int, module: nn.Module, args: tuple) -> tuple:
        x, *rest = args
        tokens = self.tokens[level].to(x.dtype).expand(len(x), -1, -1)
        return (torch.cat([x[:, :1], tokens, x[:, 1 + self.count :]], dim=1), *rest)

    def _drop(self, module: nn.Module, args: object, x: Tensor) -> Tensor:
        return torch.cat([x[:, :1], x[:, 1 + self.count :]], dim=1)


def trainable(module: nn.Module, what: str) -> list[nn.Parameter]:
    """Freeze an open_clip model but for ``what`` ("prompts+layernorm", …); the parameters that learn.

    "prompts" are the visual prompt tokens, "layernorm" the LayerNorms of the vision tower,
    "encoder" all of the vision tower.
    """
    parts = what.split("+")
    for part in parts:
        if part not in TRAINABLE:
            raise ValueError(f"train={what!r}: {part!r} is unknown, join some of {', '.join(TRAINABLE)} by '+'.")
    module.requires_grad_(False)
    chosen: list[nn.Module] = []
    if "prompts" in parts:
        chosen.append(module.visual.prompts)
    if "layernorm" in parts:
        chosen += [part for part in module.visual.modules() if isinstance(part, nn.LayerNorm)]
    if "encoder" in parts:
        chosen.append(module.visual)
    for part in chosen:
        part.requires_grad_(True)
    return [parameter for parameter in module.parameters() if parameter.requires_grad]
