"""Build the book, or write its committed notebooks anew.

    python book/build.py                 the HTML pages, from the notebooks of _toc.yml
    python book/build.py notebooks [01]  run book/NN_*.py and save book/NN_*.ipynb, without images

The pages are built in ``_build/``, which git ignores; only ``notebooks`` writes tracked files.
What is unchanged is not done again: a notebook runs anew when its code, the library, the
weights, the records or the pinned versions differ, and not when only its prose does.
"""

import argparse
import hashlib
import os
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import jupytext
import nbformat
import papermill
import yaml

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "_build"
STAGING, EXECUTED, HTML = BUILD / "staging", BUILD / "executed", BUILD / "html"
# What a notebook's outputs depend on besides its own code.
LIBRARY = (
    "clair/**/*.py", "clair/weights/*", "papermill_runs/records/**/*", "constraints.txt",
    "iconclip/*.py", "iconclip/*.json*", "speed/*.json",
)  # fmt: skip
# What the pages may include or link to, at the same places as in the repository.
STAGED = ("_config.yml", "_toc.yml", "*.md", "LICENSE", "book/**/*", "clair/*.py", *LIBRARY[2:3])
# What MathJax needs to set TeX in a page: the program, its fonts, and extensions loaded on demand.
MATHJAX = ("tex-mml-chtml.js", "output/chtml/fonts/woff-v2/*", "input/tex/extensions/*")
# A page that loads any of these from the network is not readable offline.
LOADS = re.compile(r"""<(?:script|img|iframe|source)[^>]+src=["'](?:https?:)?//[^"']+|<link[^>]+href=["']https?://[^"']+""")


def digest(*parts: str | Path) -> str:
    """One key for texts and files (their names and their bytes)."""
    total = hashlib.sha256()
    for part in parts:
        name, data = (str(part), part.read_bytes()) if isinstance(part, Path) else ("", part.encode())
        total.update(f"{name}:{len(data)}:".encode() + data)
    return total.hexdigest()


def find(*patterns: str) -> list[Path]:
    """The files of the repository that match, without caches."""
    found = {path for pattern in patterns for path in ROOT.glob(pattern) if path.is_file()}
    return sorted(path for path in found if not {"__pycache__", ".ipynb_checkpoints"} & set(path.parts))


def toc_pages() -> list[str]:
    """The pages of _toc.yml in reading order, without endings."""
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text())
    chapters = [c for part in toc.get("parts", [toc]) for c in part.get("chapters", [])]
    return [toc["root"], *(entry["file"] for c in chapters for entry in [c, *c.get("sections", [])])]


def code_cells(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def execute(notebook: nbformat.NotebookNode, name: str, again: bool = False) -> None:
    """Fill in the outputs of ``notebook``, from the last run if that had the same key."""
    code = "\0".join(cell.source + str(cell.metadata.get("tags", [])) for cell in code_cells(notebook))
    key = digest(code, sys.version, *find(*LIBRARY))
    done, part = EXECUTED / f"{name}-{key[:16]}.ipynb", EXECUTED / f"{name}.part.ipynb"
    start = time.perf_counter()
    if again or not done.exists():
        EXECUTED.mkdir(parents=True, exist_ok=True)
        nbformat.write(notebook, part)
        # Away from the tracked files: what a notebook writes beside itself is thrown away.
        options = {"kernel_name": "python3", "progress_bar": False, "extra_arguments": ["--log-level=CRITICAL"]}
        papermill.execute_notebook(part, part, cwd=EXECUTED, **options)
        for old in EXECUTED.glob(f"{name}-*.ipynb"):
            old.unlink()
        part.rename(done)
        print(f"{name}: run in {time.perf_counter() - start:.0f} s", flush=True)
    else:
        print(f"{name}: unchanged", flush=True)
    for cell, ran in zip(code_cells(notebook), code_cells(nbformat.read(done, 4)), strict=True):
        cell.outputs, cell.execution_count = join_streams(ran.outputs), ran.execution_count


def stage() -> None:
    """Lay out the sources of the pages: executed notebooks, text pages, MathJax."""
    shutil.rmtree(STAGING, ignore_errors=True)
    for path in find(*STAGED):
        copy(path, STAGING / path.relative_to(ROOT))
    for page in toc_pages():
        source = ROOT / f"{page}.ipynb"
        if source.exists():
            notebook = nbformat.read(source, 4)
            execute(notebook, source.stem)
            nbformat.write(notebook, STAGING / f"{page}.ipynb")
    spec = find_spec("mathjax")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("MathJax is missing: install django-static-mathjax (it is in the extra `book`).")
    es5 = Path(spec.submodule_search_locations[0]) / "static" / "mathjax" / "es5"
    for path in (path for pattern in MATHJAX for path in es5.glob(pattern)):
        copy(path, STAGING / "book" / "_static" / "mathjax" / path.relative_to(es5))


def copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def build_html() -> None:
    """Build the pages, unless they were built from the same sources, and check them."""
    stage()
    first, mark, archive = HTML / f"{toc_pages()[0]}.html", BUILD / "html.key", BUILD / "clair-book-html.zip"
    key = digest(*sorted(path for path in STAGING.rglob("*") if path.is_file()), Path(__file__).resolve())
    built = mark.exists() and mark.read_text() == key and archive.exists() and not missing_pages()
    if not built:
        mark.unlink(missing_ok=True)
        # From nothing each time: Sphinx repeats no warning of a page that it does not read again.
        for old in (HTML, BUILD / ".doctrees"):
            shutil.rmtree(old, ignore_errors=True)
        command = "import sys; from jupyter_book.cli.main import main; sys.exit(main())"
        options = ["build", "-n", "-W", "--keep-going", "-q", "--path-output", str(ROOT), str(STAGING)]
        result = subprocess.run([sys.executable, "-c", command, *options], stdout=subprocess.PIPE, text=True)
        if result.returncode:
            raise SystemExit(f"{result.stdout}\nThe pages were not built; the reasons are above.")
        shutil.make_archive(str(archive.with_suffix("")), "zip", BUILD, "html")
        mark.write_text(key)
    check_html()
    print(f"The book: {first}")


def missing_pages() -> list[str]:
    return [page for page in toc_pages() if not (HTML / f"{page}.html").exists()]


def check_html() -> None:
    """Every page of _toc.yml is there, and none loads anything from the network."""
    if missing := missing_pages():
        raise SystemExit(f"No HTML for these pages of _toc.yml: {', '.join(missing)}")
    loads = {f"{page.name}: {load}" for page in HTML.rglob("*.html") for load in LOADS.findall(page.read_text())}
    if loads:
        raise SystemExit("The pages load from the network:\n" + "\n".join(sorted(loads)))


def write_notebooks(prefixes: list[str]) -> None:
    """Run the paired .py files whose names start with one of ``prefixes``; save what git keeps."""
    for source in find("book/[0-9a-z]*_*.py"):
        if prefixes and not source.name.startswith(tuple(prefixes)):
            continue
        notebook = jupytext.read(source, fmt="py:percent")
        execute(notebook, source.stem, again=True)
        for cell in code_cells(notebook):
            cell.outputs = [lean(output, source.name) for output in cell.outputs]
        # The same source gives the same file: no versions, no times, no random cell ids.
        notebook.metadata = {"kernelspec": notebook.metadata["kernelspec"], "language_info": {"name": "python"}}
        seen: Counter[str] = Counter()
        for cell in notebook.cells:
            seen[cell.source] += 1
            cell.id = digest(cell.source, str(seen[cell.source]))[:8]
        nbformat.validate(notebook)
        nbformat.write(notebook, source.with_suffix(".ipynb"))
        source.touch()  # jupytext wants the .py to be the newer one of the pair


def join_streams(outputs: list[nbformat.NotebookNode]) -> list[nbformat.NotebookNode]:
    """Join neighbouring prints: where the kernel cut them is chance."""
    joined: list[nbformat.NotebookNode] = []
    for output in outputs:
        if joined and output.output_type == "stream" and joined[-1].get("name") == output.name:
            joined[-1].text += output.text
        else:
            joined.append(output)
    return joined


def lean(output: nbformat.NotebookNode, name: str) -> nbformat.NotebookNode:
    """Without image bytes and run-dependent metadata; refuses paths of this machine."""
    if "data" in output:
        output.data = {kind: data for kind, data in output.data.items() if not kind.startswith("image/")}
        output.metadata = {}
    for path in (str(ROOT), str(Path.home()), sys.prefix):
        if len(path) > 1 and path in str(output):
            raise SystemExit(f"{name} prints a path of this machine, {path}: {output}")
    return output


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", default="html", choices=("html", "notebooks"))
    parser.add_argument("names", nargs="*", help="with notebooks: first letters of the files to run, such as 01")
    arguments = parser.parse_args()
    os.environ["TQDM_DISABLE"] = "1"  # a progress bar is noise in a page
    os.environ["JUPYTER_PREFER_ENV_PATH"] = "1"  # kernel python3 is this Python, not one of the user's
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    if arguments.what == "html":
        build_html()
    else:
        write_notebooks(arguments.names)


if __name__ == "__main__":
    main()
