"""Zero-shot accuracy of the embedded CLIP on the embedded benchmark, among all classes.

    python iconclip/accuracy.py [early | FILE]     # a line per domain

"captioned" are the concepts whose captions may name their category, "uncaptioned" the others; see
captions.py.  For the report only: nothing is chosen by these numbers.
"""

import sys

import numpy as np
from captions import has_category

from clair import emoji, load_clip


def main(weights: str = "") -> None:
    emojis, pictures = emoji.load()
    model = load_clip("iconclip", weights, device="cpu")
    names = np.array(list(emoji.CLASSES))
    labels = np.array([item.label for item in emojis])
    captioned = np.array([has_category(emoji.concept(item.code)) for item in emojis])
    print(f"{len(names)} classes, {len(emojis)} concepts, {captioned.mean():.0%} of them captioned")
    for domain in emoji.DOMAINS:
        texts = model.encode_classes(list(names), emoji.TEMPLATES[domain])
        best = (model.encode_images(pictures[domain]) @ texts.T).topk(5).indices.numpy()
        hit = names[best] == labels[:, None]
        print(
            f"{domain:<6} top-1 {hit[:, 0].mean():.3f}  top-5 {hit.any(1).mean():.3f}  "
            f"captioned {hit[captioned, 0].mean():.3f}  uncaptioned {hit[~captioned, 0].mean():.3f}"
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
