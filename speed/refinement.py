"""Refinement of pseudo-labels at the size of QuickDraw: seconds and memory of every rule.

    python speed/refinement.py            # 300,000 pictures, 345 classes; writes speed/refinement.json
    python speed/refinement.py --quick    # a hundredth of it, nothing written

Each rule runs alone in a process of its own.  Beside "confidence" stands what one would write first, a
loop over pictures, on a part of them.
"""

import argparse
import json
import multiprocessing
import resource
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from clair.files import atomic_bytes
from clair.pseudo_labels import RULES, pseudo_label

PICTURES, CLASSES, WIDTH, PART = 300_000, 345, 512, 3_000


def problem(pictures: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Unit features [N, D] around class directions, and noisy class texts [C, D]."""
    rng = torch.Generator().manual_seed(0)
    centres = torch.randn(CLASSES, WIDTH, generator=rng)
    x = torch.randn(pictures, WIDTH, generator=rng).mul_(2).add_(centres[torch.arange(pictures) % CLASSES])
    t = centres + torch.randn(CLASSES, WIDTH, generator=rng)
    return F.normalize(x, dim=1), F.normalize(t, dim=1)


def naive(x: np.ndarray, t: np.ndarray, scale: float, share: float) -> np.ndarray:
    """Picture by picture: label, confidence, and whether enough others of the class are surer."""
    found = []
    for picture in x:
        scores = np.exp(scale * (t @ picture))
        found.append((int(scores.argmax()), float(scores.max() / scores.sum())))
    keep = []
    for i, (label, confidence) in enumerate(found):
        others = [j for j, (other, _) in enumerate(found) if other == label]
        ahead = sum(found[j][1] > confidence or (found[j][1] == confidence and j < i) for j in others)
        keep.append(ahead < np.ceil(share * len(others) - 1e-9))
    return np.array(keep)


def _measure(rule: str, pictures: int, pipe: multiprocessing.connection.Connection) -> None:
    x, t = problem(pictures)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    pseudo_label(x, t, scale=30.0, rule=rule, rounds=1)
    seconds = time.perf_counter() - start
    above = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**20
    pipe.send({"rule": rule, "pictures": pictures, "seconds, one round": round(seconds, 2),
               "GiB above the features": round(above, 2)})  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    pictures, context = PICTURES // 100 if args.quick else PICTURES, multiprocessing.get_context("spawn")
    result: dict = {"classes": CLASSES, "width": WIDTH, "rules": []}
    for rule in RULES:
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=_measure, args=(rule, pictures, sender))
        process.start()
        sender.close()
        result["rules"].append(receiver.recv())
        process.join()
        print(json.dumps(result["rules"][-1]), flush=True)
    x, t = problem(PART)
    start = time.perf_counter()
    expected = naive(x.numpy(), t.numpy(), 30.0, 0.6)
    slow = time.perf_counter() - start
    start = time.perf_counter()
    labels = pseudo_label(x, t, scale=30.0, share=0.6)
    fast = time.perf_counter() - start
    assert (labels.keep.numpy() == expected).mean() > 0.999  # rounding may swap two of nearly equal confidence
    result["naive"] = {"pictures": PART, "loop seconds": round(slow, 3), "seconds": round(fast, 4)}
    print(json.dumps(result["naive"]), flush=True)
    if not args.quick:
        atomic_bytes(Path(__file__).with_suffix(".json"), (json.dumps(result, indent=1) + "\n").encode())


if __name__ == "__main__":
    sys.exit(main())
