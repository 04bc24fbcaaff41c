"""The recipe of the embedded CLIP, without its pictures: captions, loss, folding, near-copies, a toy run."""

import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import safetensors.torch
import torch
from open_clip.tokenizer import SimpleTokenizer
from torch import nn

from clair import emoji
from clair.clip import WEIGHTS, Clip, create_iconclip, load_clip
from clair.records import REPOSITORY

sys.path.insert(0, str(REPOSITORY / "iconclip"))
import captions as words
import icons
import nearest
import train


def row(names, style="flat", category="", code="", keywords=(), source="noto"):
    return {"source": source, "style": style, "names": list(names), "keywords": list(keywords),
            "category": category, "code": code}  # fmt: skip


def codes(stated):
    """Two codes whose concepts do, or do not, have their category stated."""
    return [code for code in map(str, range(100)) if words.has_category(code) == stated][:2]


@pytest.fixture
def rows():
    (told, other), (quiet, _) = codes(True), codes(False)
    return [
        row(["robin"], category="bird", code=told, keywords=["wings"]),
        row(["red robin"], style="line", category="bird", code=told),
        row(["eagle"], category="bird", code=quiet),
        row(["oak"], category="plant", code=other),
        row(["gear"], style="line", source="lucide"),
    ]


# -- captions -----------------------------------------------------------------------------------


def test_about_half_of_the_concepts_have_a_category_and_always_the_same():
    found = [words.has_category(item.code) for item in emoji.catalogue()]
    assert 0.4 < np.mean(found) < 0.6
    assert found == [words.has_category(item.code) for item in emoji.catalogue()]


@pytest.mark.parametrize(("categories", "said"), [("none", set()), ("half", {0, 1, 3}), ("all", {0, 1, 2, 3})])
def test_categories_are_said_of_the_chosen_concepts_only(rows, categories, said):
    found = words.Captions(rows, categories)
    rng = np.random.default_rng(0)
    heard = {i for i in range(5) for _ in range(30) for content, _, _ in found.draw(i, rng)
             if found.contents[content] in ("bird", "plant")}  # fmt: skip
    assert heard == said


def test_what_is_not_known_is_neither_true_nor_false(rows):
    found = words.Captions(rows)
    number = {text: i for i, text in enumerate(found.contents)}
    texts = [("bird", -1), ("robin", -1), ("red robin", -1), ("robin", 2), ("plant", -1), ("wings", -1), ("gear", -1)]
    contents, styles = np.array([number[text] for text, _ in texts]), np.array([style for _, style in texts])
    flat = found.styles.index("flat")
    styles[3] = flat
    true, known = found.relation(np.arange(5), contents, styles)
    T, F = True, False
    # Every house's name is true of every house's drawing, a styled one of that style only.
    assert true[0].tolist() == [T, T, T, T, F, T, F]
    assert true[1].tolist() == [T, T, T, F, F, T, F]
    assert true[2].tolist() == [F] * 7  # nobody said that an eagle is a bird ...
    assert known[2].tolist() == [F, T, T, T, F, T, T]  # ... nor that it is none
    assert true[4].tolist() == [F, F, F, F, F, F, T]
    assert known[3].all()
    assert not (true & ~known).any()


def test_captions_are_names_keywords_and_categories_in_the_pictures_style(rows):
    found, rng = words.Captions(rows), np.random.default_rng(1)
    for i in range(5):
        for _ in range(40):
            for content, style, text in found.draw(i, rng):
                plain = found.contents[content]
                assert plain in {*rows[i]["names"], *rows[i]["keywords"], rows[i]["category"]}
                if style == -1:
                    assert text == plain
                else:
                    assert found.styles[style] == rows[i]["style"]
                    assert text in [template.format(plain) for template in icons.STYLES[rows[i]["style"]]]


def test_the_medium_alone_is_true_of_its_pictures_and_said_at_times(rows):
    never, often, rng = words.Captions(rows), words.Captions(rows, media=0.5), np.random.default_rng(2)
    said = [often.draw(i, rng)[-1] for i in range(5) for _ in range(60)]
    media = [caption for caption in said if caption[0] >= len(often.contents)]
    assert 0.3 < len(media) / len(said) < 0.7
    for content, style, text in media:
        assert style == -1
        assert text in icons.MEDIA[often.styles[content - len(often.contents)]]
    assert all(c < len(never.contents) for i in range(5) for _ in range(30) for c, _, _ in never.draw(i, rng))
    line = len(often.contents) + often.styles.index("line")
    true, known = often.relation(np.arange(5), np.array([line]), np.array([-1]))
    assert true[:, 0].tolist() == [row["style"] == "line" for row in rows]
    assert known.all()


# -- the loss -----------------------------------------------------------------------------------


def naive(logits, true, known):
    rows = []
    for line, positive, certain in zip(logits.tolist(), true.tolist(), known.tolist(), strict=True):
        negatives = sum(np.exp(v) for v, p, c in zip(line, positive, certain, strict=True) if c and not p)
        losses = [-np.log(np.exp(v) / (np.exp(v) + negatives)) for v, p in zip(line, positive, strict=True) if p]
        if losses:
            rows.append(np.mean(losses))
    return np.mean(rows)


@pytest.mark.parametrize("seed", range(5))
def test_the_loss_is_what_it_says(seed):
    rng = torch.Generator().manual_seed(seed)
    logits = torch.randn(6, 9, generator=rng, dtype=torch.float64)
    true, known = torch.rand(6, 9, generator=rng) < 0.3, torch.rand(6, 9, generator=rng) < 0.8
    true[2] = False
    true &= known
    assert train.contrast(logits, true, known).item() == pytest.approx(naive(logits, true, known))


def test_the_loss_has_no_gradient_where_nothing_is_known():
    logits = torch.zeros(2, 3, requires_grad=True)
    true = torch.tensor([[True, False, False], [False, False, False]])
    known = torch.tensor([[True, True, False], [True, True, True]])
    train.contrast(logits, true, known).backward()
    assert logits.grad[0, 2] == 0
    assert (logits.grad[1] == 0).all()  # a row without a positive teaches nothing
    assert logits.grad[0, 0] < 0 < logits.grad[0, 1]


# -- weights ------------------------------------------------------------------------------------


def test_folding_the_batch_norms_changes_no_feature(tmp_path):
    torch.manual_seed(0)
    model = create_iconclip(norm=nn.BatchNorm2d)
    pixels = torch.rand(16, 3, 64, 64)
    model.train()
    for _ in range(3):
        model.visual(pixels)  # moves the running means
    model.eval()
    stored = train.folded(model.state_dict())
    assert {value.dtype for value in stored.values()} == {torch.float16}
    assert not any("running" in name for name in stored)
    safetensors.torch.save_file(stored, tmp_path / "w.safetensors")
    loaded = load_clip("iconclip", str(tmp_path / "w.safetensors"), "cpu")
    with torch.no_grad():
        expected = nn.functional.normalize(model.encode_image(loaded.normalise(pixels)), dim=-1)
        torch.testing.assert_close(loaded.forward_images(pixels), expected, atol=4e-3, rtol=0)  # fp16


def test_text_encoding_of_cut_captions_is_open_clips_own():
    torch.manual_seed(0)
    model = create_iconclip().eval()
    tokenizer = SimpleTokenizer(bpe_path=str(WEIGHTS / "iconclip-bpe.txt.gz"), context_length=words.CONTEXT)
    texts = ["a line drawing of a bird", "heart", "an emoji of a face with a hand"]
    with torch.no_grad():
        cut = train.encode_text(model, tokenizer(texts, context_length=train.LENGTH))
        torch.testing.assert_close(cut, model.encode_text(tokenizer(texts)), atol=1e-5, rtol=0)


# -- near-copies --------------------------------------------------------------------------------


def test_a_shifted_copy_is_found_and_another_drawing_is_not(monkeypatch, tmp_path):
    emojis, pictures = emoji.load(progress=False)
    few = {domain: pictures[domain][40:60] for domain in emoji.DOMAINS}
    monkeypatch.setattr(emoji, "load", lambda progress=True: (emojis[40:60], few))
    copy = np.full((64, 64, 3), 255, np.uint8)
    copy[2:, :-4] = few["flat"][3][:-2, 4:]  # two down, four to the left
    others = [pictures["flat"][300], pictures["color"][500], np.full((64, 64, 3), 255, np.uint8)]
    rows = [SimpleNamespace(source="x", names=[str(i)], style="flat") for i in range(4)]
    found = nearest.near_copies(np.stack([copy, *others]), rows, tmp_path / "report.json")
    assert found.tolist() == [True, False, False, False]
    near = json.loads((tmp_path / "report.json").read_text())["flat"]
    assert len(near["rms"]) == len(near["bits"]) == 20
    first = near["closest by pixels"][0]
    assert first == {"benchmark": emojis[43].name, "distance": near["rms"][3], "training": "0 (x, flat)"}
    assert first["distance"] == min(near["rms"]) < nearest.PIXELS


def test_hashes_are_of_the_ink_and_not_of_its_place():
    picture = np.full((1, 64, 64, 3), 255, np.uint8)
    picture[:, 20:30, 10:40] = 0
    moved = np.full((1, 64, 64, 3), 255, np.uint8)
    moved[:, 30:40, 14:44] = 0
    np.testing.assert_array_equal(nearest.hashes(nearest.small(picture)), nearest.hashes(nearest.small(moved)))


# -- the sources --------------------------------------------------------------------------------


def test_the_benchmarks_houses_are_not_among_the_sources():
    declared = json.loads((REPOSITORY / "iconclip" / "package.json").read_text())["dependencies"]
    used = {f"@iconify-json/{name}" for name in (*icons.EMOJI_SETS, *icons.ICON_SETS)}
    assert set(declared) == used | {"emojilib", f"@fontsource/{icons.FONT}"}
    assert not any("openmoji" in name or "twemoji" in name for name in declared)
    assert all(version[0].isdigit() for version in declared.values())  # exact versions


def test_the_card_names_every_source():
    card = (WEIGHTS / "README.md").read_text("utf-8")
    for name in (*icons.EMOJI_SETS, *icons.ICON_SETS, icons.FONT, "emojilib"):
        assert name in card, name


@pytest.mark.parametrize(("name", "plain"), [("bird-house-2-bold", "bird house"), ("sun-24px", "sun"), ("2", "2")])
def test_words_of_an_icons_name(name, plain):
    assert icons.words(name) == plain


def test_coloured_pictures_give_a_line_and_an_outlined_version():
    svg = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 8 8"><circle cx="4" cy="4" r="3" fill="#e33"/></svg>'
    versions = icons.draw(svg, "flat")
    assert set(versions) == {"flat", "line", "outlined"}
    assert (versions["line"].max(-1) == versions["line"].min(-1)).all()
    assert 0 < (versions["line"] < 128).mean() < 0.2
    assert (versions["outlined"] < 60).all(-1).any()
    assert set(icons.draw(svg, "line")) == {"line"}


# -- a toy run ----------------------------------------------------------------------------------


def toy():
    rng = np.random.default_rng(0)
    colours = rng.integers(0, 200, (12, 3))
    pictures, rows = [], []
    for number, colour in enumerate(colours):
        for size in (10, 16, 22):
            picture = np.full((64, 64, 3), 255, np.uint8)
            picture[32 - size : 32 + size, 32 - size : 32 + size] = colour
            pictures.append(picture)
            rows.append(row([f"thing {number}"], code=str(number), category="bird" if number < 6 else "plant"))
    return torch.from_numpy(np.stack(pictures)), rows


def test_a_toy_run_learns_gives_the_same_bits_and_once_finished_is_loaded(tmp_path):
    pictures, rows = toy()
    tokenizer = SimpleTokenizer(bpe_path=str(WEIGHTS / "iconclip-bpe.txt.gz"), context_length=words.CONTEXT)
    plan, log = train.Plan(steps=12, batch=8, icons=0.0), []
    whole = train.train(pictures, rows, plan, tokenizer, log=log.append)
    assert [line["step"] for line in log] == [0, 11]
    assert log[-1]["concept"] < log[0]["concept"]
    checkpoint = tmp_path / "c.pt"
    train.train(pictures, rows, plan, tokenizer, checkpoint=checkpoint)  # its last step writes the checkpoint
    again = train.train(pictures, rows, plan, tokenizer, checkpoint=checkpoint)  # nothing left to do
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    model = create_iconclip()
    model.load_state_dict(train.folded(whole))
    assert torch.isfinite(Clip("toy", model, tokenizer, torch.device("cpu")).encode_images(pictures.numpy())).all()


def test_the_level_part_of_the_schedule_does_not_depend_on_its_length():
    short, long = train.Plan(steps=1000), train.Plan(steps=5000)
    assert [short.rate_at(step) for step in range(700)] == [long.rate_at(step) for step in range(700)]
    assert short.rate_at(999) < 0.01 * short.rate
    assert short.rate_at(0) < 0.01 * short.rate
