"""What is said of the pictures that the embedded CLIP learns from, and in which pieces of words.

A picture has names, keywords and, for half of the concepts only, a category: the class words that the
benchmark uses.  A caption is one of them, mostly in a style phrase ("a line drawing of a …").
"""

import collections
import gzip
import hashlib
import math

import numpy as np
from icons import MEDIA, STYLES
from open_clip.tokenizer import SimpleTokenizer, default_bpe, get_pairs

CONTEXT = 24


def has_category(code: str, share: float = 0.5) -> bool:
    """Whether captions of this concept may name its category: a fixed pseudo-random half."""
    return int(hashlib.sha256(code.encode()).hexdigest()[:8], 16) < share * 2**32


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
    """What may be said of each picture, as content ids, and how to say it.

    A picture whose category nobody stated is neither a positive nor a negative of any category text:
    what is not known must not be taught.
    """

    def __init__(self, rows: list[dict], categories: str = "half", media: float = 0.0):
        self.styles, self.media = list(STYLES), media
        self.style = np.array([self.styles.index(row["style"]) for row in rows])
        stated = [self._category(row, categories) for row in rows]
        # All houses' names of a concept are true of each house's drawing of it.
        by_code: dict[str, set[str]] = collections.defaultdict(set)
        for row in rows:
            by_code[row["code"]].update(row["names"], row["keywords"])
        known = [by_code[row["code"]] if row["code"] else set(row["names"]) for row in rows]
        self.contents = sorted({text for texts in known for text in texts} | {text for text in stated if text})
        number = {text: i for i, text in enumerate(self.contents)}
        self.names = [[number[text] for text in row["names"]] for row in rows]
        self.keywords = [[number[text] for text in row["keywords"]] for row in rows]
        self.category = np.array([number.get(text, -1) for text in stated])
        self.is_category = np.zeros(len(self.contents), bool)
        self.is_category[self.category[self.category >= 0]] = True
        self.medium = len(self.contents) + self.style  # behind the others: the content "this medium"
        self.is_category = np.append(self.is_category, np.zeros(len(STYLES), bool))
        self.true = np.full((len(rows), max(map(len, known)) + 2), -1)
        for i, texts in enumerate(known):
            every = sorted({number[text] for text in texts} | ({self.category[i]} - {-1}) | {self.medium[i]})
            self.true[i, : len(every)] = every

    @staticmethod
    def _category(row: dict, categories: str) -> str:
        stated = row["code"] and (categories == "all" or (categories == "half" and has_category(row["code"])))
        return row["category"] if stated else ""

    def draw(self, picture: int, rng: np.random.Generator) -> list[tuple[int, int, str]]:
        """A name or keyword of the picture, its category if stated, at times its medium alone.

        Each as content, style (-1: none) and text.
        """
        options = self.names[picture]
        if self.keywords[picture] and rng.random() < 0.25:
            options = self.keywords[picture]
        contents = [options[rng.integers(len(options))]]
        if self.category[picture] >= 0:
            contents.append(int(self.category[picture]))
        said = []
        for content in contents:
            style = -1 if rng.random() < 0.3 else int(self.style[picture])
            templates = STYLES[self.styles[style]] if style >= 0 else ("{}",)
            said.append((content, style, templates[rng.integers(len(templates))].format(self.contents[content])))
        if self.media and rng.random() < self.media:
            phrases = MEDIA[self.styles[self.style[picture]]]
            said.append((int(self.medium[picture]), -1, phrases[rng.integers(len(phrases))]))
        return said

    def relation(self, pictures: np.ndarray, contents: np.ndarray, styles: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """[B, T] twice: text j is true of picture i; and it is known whether it is."""
        said = (self.true[pictures][:, :, None] == contents[None, None, :]).any(1)
        fits = (styles[None] == -1) | (self.style[pictures][:, None] == styles[None])
        known = ~self.is_category[contents][None] | (self.category[pictures] >= 0)[:, None]
        return said & fits & known, known
