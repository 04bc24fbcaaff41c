"""A training that was killed goes on where it stood, and ends with the same bits.

Everything that a step reads and changes is in the file: what learns, the optimizer's moments, the
prototypes and the history.  Batches need no state: each is a function of the seed and the step.
"""

import json
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from clair.files import atomic_bytes


def save(path: Path, key: str, learnt: list[Tensor], optimizer: torch.optim.Optimizer, prototypes: Tensor,
         about: dict[str, Any]) -> None:  # fmt: skip
    """Write the state after a step, whole or not at all; ``about`` holds plain values such as the step."""
    tensors = {"prototypes": prototypes} | {f"learnt.{i}": p.detach() for i, p in enumerate(learnt)}
    for i, moments in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{i}.{name}": torch.as_tensor(value) for name, value in moments.items()}
    plain = {name: value.cpu().contiguous() for name, value in tensors.items()}
    atomic_bytes(path, safetensors.torch.save(plain, {"checkpoint": json.dumps(about | {"key": key})}))


def load(path: Path, key: str, learnt: list[Tensor], optimizer: torch.optim.Optimizer) -> tuple[Tensor, dict[str, Any]]:
    """Put the state back in place; returns the prototypes and what `save` was told.

    Raises ValueError where the file belongs to another run or is none of ours.
    """
    try:
        with safetensors.safe_open(path, "pt") as file:
            about = json.loads((file.metadata() or {}).get("checkpoint", "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} is not a checkpoint ({error}): delete it and train again.") from error
    if about.get("key") != key:
        raise ValueError(
            f"{path} belongs to another run (other pictures, labels, weights, recipe or seed): "
            "delete it, or keep this run's checkpoint elsewhere."
        )
    with torch.no_grad():
        for i, parameter in enumerate(learnt):
            parameter.copy_(tensors[f"learnt.{i}"])
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith("optimizer."):
            _, index, moment = name.split(".")
            state.setdefault(int(index), {})[moment] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return tensors["prototypes"], about
