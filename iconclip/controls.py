"""What do category captions buy?  Three short trainings, with none, with half of them and with all.

    python iconclip/controls.py            # some 70 minutes on two cores; writes iconclip/controls.json

All three take the same steps on the same pictures; only what captions may say differs.  For each: the
accuracy of the two halves of the concepts, of pseudo-labels, and frozen retrieval of unseen classes.
For the report only: nothing is chosen by these numbers.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
from captions import has_category

import clair
from clair import emoji
from clair.files import atomic_bytes, cache_root
from clair.pseudo_labels import quality

HERE = Path(__file__).parent
STEPS = 4000


def judge(weights: str) -> dict:
    """Accuracy by domain and half, pseudo-labels and frozen retrieval, means over the splits."""
    model, (emojis, pictures) = clair.load_clip("iconclip", weights, device="cpu"), emoji.load()
    names, labels = np.array(list(emoji.CLASSES)), np.array([item.label for item in emojis])
    told = np.array([has_category(emoji.concept(item.code)) for item in emojis])
    found: dict = {}
    for domain in emoji.DOMAINS:
        texts = model.encode_classes(list(names), emoji.TEMPLATES[domain])
        right = names[(model.encode_images(pictures[domain]) @ texts.T).argmax(1).numpy()] == labels
        found[domain] = {"told half": round(right[told].mean(), 4), "other half": round(right[~told].mean(), 4)}
    label_accuracy, retrieval = [], []
    for split in range(emoji.FOLDS):
        bench = clair.load_benchmark("emoji", "line", "flat", split)
        x = {domain: model.encode_images(bench.test[domain]) for domain in bench.domains}
        for query, gallery in (bench.domains, bench.domains[::-1]):
            texts = model.encode_classes(bench.seen, bench.templates[query])
            guessed = clair.pseudo_label(model.encode_images(bench.train[query]), texts, scale=model.scale)
            label_accuracy.append(quality(guessed, bench.truth.train[query], bench.seen)["accuracy"])
            scores = clair.evaluate(
                x[query], bench.truth.test[query], x[gallery], bench.truth.test[gallery], k=10,
                query_ids=bench.test[query].keys, gallery_ids=bench.test[gallery].keys,
            )  # fmt: skip
            retrieval.append(scores["mAP@all"])
    for number, domain in enumerate(("line", "flat")):
        found[domain]["pseudo-labels"] = round(float(np.mean(label_accuracy[number::2])), 4)
    found["line -> flat mAP@all"] = round(float(np.mean(retrieval[0::2])), 4)
    found["flat -> line mAP@all"] = round(float(np.mean(retrieval[1::2])), 4)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=STEPS)
    args = parser.parse_args()
    folder, result = cache_root() / "iconclip", {"steps": args.steps}
    for categories in ("none", "half", "all"):
        out = folder / f"control-{categories}.safetensors"
        options = ["--steps", str(args.steps), "--finish", "0", "--categories", categories, "--out", str(out)]
        subprocess.run([sys.executable, HERE / "train.py", *options, "--log", f"{out}.log"], check=True)
        result[categories] = judge(str(out))
        print(categories, json.dumps(result[categories]), flush=True)
    atomic_bytes(HERE / "controls.json", (json.dumps(result, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
