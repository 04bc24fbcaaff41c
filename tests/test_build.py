"""The script that builds the book: what it keeps of an output, what it refuses, when it runs again."""

import importlib.util
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

ROOT = Path(__file__).resolve().parents[1]
spec = importlib.util.spec_from_file_location("build", ROOT / "book" / "build.py")
build = importlib.util.module_from_spec(spec)
spec.loader.exec_module(build)


def test_images_are_dropped_and_texts_kept():
    output = new_output("display_data", {"image/png": "AAAA", "text/plain": "<Figure>"}, metadata={"width": 3})
    assert build.lean(output, "x") == new_output("display_data", {"text/plain": "<Figure>"})


def test_a_path_of_this_machine_is_refused():
    with pytest.raises(SystemExit, match=r"01_x\.py prints a path"):
        build.lean(new_output("stream", text=f"saved in {ROOT}/out"), "01_x.py")


def test_neighbouring_prints_are_joined():
    parts = [new_output("stream", name=name, text=text) for name, text in (("stdout", "a\n"), ("stdout", "b\n"))]
    assert [part.text for part in build.join_streams([*parts, new_output("stream", name="stderr", text="c")])] == [
        "a\nb\n",
        "c",
    ]


@pytest.mark.parametrize(
    ("html", "loads"),
    [
        ('<script src="https://cdn.example/x.js"></script>', True),
        ('<link rel="stylesheet" href="http://cdn.example/x.css">', True),
        ("<img alt='' src='//cdn.example/x.png'>", True),
        ('<script src="../_static/mathjax/tex-mml-chtml.js"></script>', False),
        ('<a href="https://arxiv.org">a link is not a load</a>', False),
    ],
)
def test_loads_from_the_network_are_found(html, loads):
    assert bool(build.LOADS.search(html)) == loads


def test_a_notebook_runs_again_for_its_code_and_not_for_its_prose(tmp_path, monkeypatch):
    runs = []

    def pretend(source, target, **_):
        notebook = nbformat.read(source, 4)
        runs.append(1)
        build.code_cells(notebook)[0].outputs = [new_output("stream", text=f"run {len(runs)}")]
        nbformat.write(notebook, target)

    monkeypatch.setattr(build, "EXECUTED", tmp_path)
    monkeypatch.setattr(build.papermill, "execute_notebook", pretend)

    def output(prose: str, code: str) -> str:
        notebook = new_notebook(cells=[new_markdown_cell(prose), new_code_cell(code)])
        build.execute(notebook, "01_x")
        return notebook.cells[1].outputs[0].text

    assert output("Hello.", "1 + 1") == "run 1"
    assert output("Good morning.", "1 + 1") == "run 1"
    assert output("Good morning.", "1 + 2") == "run 2"
    assert len(list(tmp_path.iterdir())) == 1  # the older run is not kept
