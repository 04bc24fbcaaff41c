"""What the README and the text pages say is true: their code runs, their numbers come from records."""

import re

import pytest

from clair import records

ROOT = records.REPOSITORY


def blocks(path, language):
    return re.findall(rf"^```{language}\n(.*?)^```", (ROOT / path).read_text("utf-8"), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("path", ["README.md", "book/c_your_own_data.md"])
def test_python_blocks_run(path):
    found = blocks(path, "python")
    assert found
    for block in found:
        exec(compile(block, path, "exec"), {"__name__": "block"})


def test_the_table_in_the_readme_is_what_the_records_say():
    text = (ROOT / "README.md").read_text("utf-8")
    shown = re.search(r"<!-- table:.*?-->\n(.*?)\n<!-- /table -->", text, re.DOTALL)
    assert shown, "the README has lost its table"
    table = records.collect(ROOT / "papermill_runs" / "records")
    assert shown.group(1).strip() == records.markdown(table)
    splits = {"one": 1, "two": 2, "three": 3, "four": 4, "five": 5}[
        re.search(r"Means over (\w+) splits", text).group(1)
    ]
    assert table.split.nunique() == splits


def test_make_targets_named_in_the_readme_exist():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    named = set(re.findall(r"\bmake ([a-z]+)", (ROOT / "README.md").read_text("utf-8")))
    assert named
    assert named <= targets


@pytest.mark.parametrize("path", ["README.md", "book/index.md", "book/c_your_own_data.md", "CONTRIBUTING.md"])
def test_relative_links_lead_somewhere(path):
    text = (ROOT / path).read_text("utf-8")
    for target in re.findall(r"\]\((?!https?:|#)([^)]+)\)", text):
        place = (ROOT / path).parent / target
        assert place.exists() or place.with_suffix(".py").exists() or place.with_suffix(".md").exists(), target
