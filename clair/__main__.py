"""The command line: python -m clair run [--params FILE] [name=value …], and check, papermill, report."""

import argparse
import os
import sys
from pathlib import Path
from typing import Any

import yaml

from clair import experiment


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m clair", description="CLAIR: zero-shot cross-domain retrieval.")
    commands = parser.add_subparsers(dest="command", required=True)
    runner = commands.add_parser("run", help="label, train, map, retrieve; writes one record a method")
    runner.add_argument("--params", type=Path, help="a file of papermill_runs/params")
    runner.add_argument("settings", nargs="*", metavar="name=value", help="single parameters, such as split=1")
    runner.add_argument("--quiet", action="store_true", help="no progress bars")
    papermill = commands.add_parser("papermill", help="the same by papermill: executes notebook 10 and keeps it")
    papermill.add_argument("--params", type=Path, required=True)
    papermill.add_argument("--notebook", type=Path, default=None)
    papermill.add_argument("--out", type=Path, default=None)
    report = commands.add_parser("report", help="the README's table and figure, from records")
    report.add_argument("folder", type=Path)
    report.add_argument("--figure", type=Path, help="write the figure here, as SVG")
    report.add_argument("--allow-mixed", action="store_true", help="accept records of different or uncommitted code")
    checker = commands.add_parser("check", help="is the data here what the book was measured on? 0: yes, 1: no")
    checker.add_argument("dataset")
    given = parser.parse_args(words)
    try:
        return {"run": _run, "papermill": _papermill, "report": _report, "check": _check}[given.command](given)
    except (ValueError, OSError, FloatingPointError) as error:
        print(f"clair: {error}", file=sys.stderr)
        return 2


def _run(given: argparse.Namespace) -> int:
    values: dict[str, Any] = experiment.read_params(given.params) if given.params else {}
    for setting in given.settings:
        name, separator, value = setting.partition("=")
        if not separator:
            raise ValueError(f"Write settings as name=value, such as split=1 (got {setting!r}).")
        values[name] = yaml.safe_load(value)
    experiment.use_deterministic_torch()
    result = experiment.run(values, progress=not given.quiet)
    print(experiment.summary(result.records))
    return 0


def _papermill(given: argparse.Namespace) -> int:
    os.environ.setdefault("TQDM_DISABLE", "1")  # a batch run is silent
    import papermill as pm

    from clair.records import REPOSITORY

    notebook = given.notebook or REPOSITORY / "book" / "10_zero_shot_experiments.ipynb"
    values = experiment.read_params(given.params)
    # papermill only warns of a misspelt name and goes on, so every name is checked first.
    known = list(pm.inspect_notebook(str(notebook)))
    for name in values:
        if name not in known:
            raise ValueError(experiment.did_you_mean("parameter", name, known))
    experiment.Params.from_dict(values)
    out = given.out or REPOSITORY / "papermill_runs" / "out" / f"{given.params.stem}.ipynb"
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        pm.execute_notebook(str(notebook), str(out), parameters=values, progress_bar=False, cwd=str(REPOSITORY))
    except pm.PapermillExecutionError as error:
        raise ValueError(f"{notebook.name} failed ({error.ename}: {error.evalue}); see {out}.") from error
    print(f"executed notebook: {out}")
    return 0


def _check(given: argparse.Namespace) -> int:
    from clair.check import check

    text, fine = check(given.dataset)
    print(text)
    return 0 if fine else 1


def _report(given: argparse.Namespace) -> int:
    from clair import plots, records

    table = records.collect(given.folder, allow_mixed=given.allow_mixed)
    print(records.markdown(table))
    if given.figure:
        figure = plots.headline(table)
        given.figure.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(given.figure, metadata={"Date": None})
    return 0


if __name__ == "__main__":
    sys.exit(main())
