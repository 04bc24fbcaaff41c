"""The page of hypotheses names the splits that everything is measured on."""

from clair import emoji
from clair.records import REPOSITORY


def test_the_page_names_the_splits_by_their_hash():
    page = (REPOSITORY / "book" / "hypotheses.md").read_text("utf-8")
    assert f"`{emoji.RECORDED['folds']}`" in page
