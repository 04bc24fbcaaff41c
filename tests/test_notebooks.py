"""The committed notebooks are run, compared, lean, and the same as their .py halves."""

import copy
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jupytext
import nbformat
import papermill
import pytest
import yaml
from jupytext.compare import compare_notebooks

ROOT = Path(__file__).resolve().parents[1]
BOOK = ROOT / "book"
NOTEBOOKS = sorted(BOOK.glob("*.ipynb"))
SOURCES = sorted(BOOK.glob("[0-9a-z]*_*.py"))
IGNORED = {"nbval-ignore-output", "nbval-skip", "nbval-raises-exception", "skip-execution"}
IGNORED_COMMENT = re.compile(r"#\s*(NBVAL_IGNORE_OUTPUT|NBVAL_SKIP|NBVAL_RAISES_EXCEPTION)", re.IGNORECASE)

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def code_cells(path: Path) -> list[nbformat.NotebookNode]:
    return [cell for cell in nbformat.read(path, 4).cells if cell.cell_type == "code"]


def is_ignored(cell: nbformat.NotebookNode) -> bool:
    return bool(IGNORED & set(cell.metadata.get("tags", [])) or IGNORED_COMMENT.search(cell.source))


def compared_texts(cell: nbformat.NotebookNode) -> list[str]:
    """The outputs that nbval compares and that say something: the bare name of a figure does not."""
    texts = [output.get("text") or output.get("data", {}).get("text/plain", "") for output in cell.outputs]
    return [] if is_ignored(cell) else [text for text in texts if text.strip() and not text.startswith("<Figure")]


def test_every_notebook_is_one_of_a_pair():
    assert NOTEBOOKS
    assert [path.stem for path in NOTEBOOKS] == [path.stem for path in SOURCES]


def test_every_page_of_the_toc_exists_and_every_notebook_is_in_it():
    pages = re.findall(r"(?:root|file): *(\S+)", (ROOT / "_toc.yml").read_text())
    assert all((ROOT / f"{page}.md").exists() or (ROOT / f"{page}.ipynb").exists() for page in pages), pages
    assert {f"book/{path.stem}" for path in NOTEBOOKS} <= set(pages)
    assert yaml.safe_load((ROOT / "_toc.yml").read_text())["root"] == pages[0]


@each_notebook
def test_the_pair_is_in_step(path):
    """After an edit of the .py: `make notebooks`."""
    compare_notebooks(jupytext.read(path), jupytext.read(path.with_suffix(".py")), fmt="py:percent")


@each_notebook
def test_every_code_cell_was_run_once_and_in_order(path):
    # Cells without a count are not compared by nbval at all.
    counts = [cell.execution_count for cell in code_cells(path)]
    assert counts == list(range(1, len(counts) + 1))


@each_notebook
def test_no_output_is_an_error(path):
    assert not [cell.source for cell in code_cells(path) for out in cell.outputs if out.output_type == "error"]


@each_notebook
def test_enough_is_compared(path):
    cells = code_cells(path)
    assert sum(len(compared_texts(cell)) for cell in cells) >= 5
    assert sum(map(is_ignored, cells)) <= 0.3 * len(cells)


@each_notebook
def test_no_image_bytes(path):
    kinds = {kind for cell in code_cells(path) for output in cell.outputs for kind in output.get("data", {})}
    assert not [kind for kind in kinds if kind.startswith("image/")]
    assert "data:image" not in path.read_text()


@each_notebook
def test_kernel_and_parameters(path):
    assert nbformat.read(path, 4).metadata.kernelspec.name == "python3"
    if any(re.search(r"^dataset\b.*=", cell.source, re.MULTILINE) for cell in code_cells(path)):
        assert "dataset" in papermill.inspect_notebook(str(path)), "tag the cell that sets dataset as `parameters`"


def test_nbval_notices_one_changed_number(tmp_path):
    """A true copy passes, and one with another digit in an output fails: cut short, to be quick."""

    def first_number(path: Path) -> int:
        """Of the cells that show a compared number, the place of the first."""
        cells = nbformat.read(path, 4).cells
        shows = [c.cell_type == "code" and bool(re.search(r"\d", "".join(compared_texts(c)))) for c in cells]
        return shows.index(True) if True in shows else len(cells)

    path = min(NOTEBOOKS, key=first_number)
    true = nbformat.read(path, 4)
    true.cells = true.cells[: first_number(path) + 1]
    false = copy.deepcopy(true)
    output = next(out for out in false.cells[-1].outputs if re.search(r"\d", str(out)))
    holder, key = (output, "text") if "text" in output else (output.data, "text/plain")
    holder[key] = re.sub(r"\d", lambda digit: str((int(digit[0]) + 1) % 10), holder[key], count=1)
    nbformat.write(true, tmp_path / "true.ipynb")
    nbformat.write(false, tmp_path / "false.ipynb")
    shutil.copy(BOOK / "conftest.py", tmp_path)

    def compare(name: str) -> subprocess.CompletedProcess:
        options = ["-p", "no:cacheprovider", "-c", str(ROOT / "pyproject.toml"), "--nbval", name]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-m", "pytest", *options]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)

    passes, fails = compare("true.ipynb"), compare("false.ipynb")
    assert passes.returncode == 0, passes.stdout
    assert fails.returncode == 1, fails.stdout
    assert "Cell outputs differ" in fails.stdout
    assert re.search(r"\b1 failed", fails.stdout)
