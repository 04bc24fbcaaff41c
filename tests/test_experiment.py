"""The one path from parameters to records, the records themselves, and the command line."""

import json
import subprocess
import sys

import pytest
import yaml

from clair import experiment, records
from clair.__main__ import main

QUICK = {"recipe": {"steps": 2, "classes_per_batch": 4}, "device": "cpu"}


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    folder = tmp_path_factory.mktemp("records")
    return experiment.run(QUICK | {"records": str(folder)}, progress=False), folder


def test_one_record_a_method_both_directions_with_and_without_the_map(result):
    run, folder = result
    assert [record["method"] for record in run.records] == ["frozen", "clair"]
    assert len(list(folder.glob("*.json"))) == 2
    for record in run.records:
        assert set(record["metrics"]) == {"line->flat", "flat->line"}
        for rows in record["metrics"].values():
            assert set(rows) == {"none", "identity-ridge"}
            for values in rows.values():
                assert values["chance"] < values["mAP@all"] < 1


def test_a_record_says_how_it_came_about(result):
    record = result[0].records[1]
    assert record["cost"]["parameters trained"] > 0
    assert record["cost"]["images seen"] == 2 * 4 * 20
    assert set(record["label quality"]) == {"line", "flat"}
    for key in ("commit", "dirty", "code", "packages", "threads", "benchmark", "weights"):
        assert key in record["provenance"]


def test_records_survive_writing_and_reading(result):
    run, folder = result
    for record, path in zip(
        run.records, sorted(folder.glob("*clair*")) + sorted(folder.glob("*frozen*")), strict=False
    ):
        assert records.read(path)["key"] in {r["key"] for r in run.records}
        assert json.loads(path.read_text())["method"] in ("clair", "frozen")
        assert records.name(record) in {p.stem for p in folder.glob("*.json")}


def test_collect_gives_a_tidy_table(result):
    table = records.collect(result[1], allow_mixed=True)
    one = table[(table.method == "frozen") & (table.direction == "line->flat") & (table["map"] == "none")]
    value = float(one[one.metric == "mAP@all"].value.iloc[0])
    assert value == result[0].records[0]["metrics"]["line->flat"]["none"]["mAP@all"]


def test_collect_refuses_records_of_mixed_code(result, tmp_path):
    for number, record in enumerate(result[0].records):
        changed = json.loads(json.dumps(record, default=records._plain))
        changed["provenance"] |= {"dirty": False, "code": str(number)}
        records.write(changed, tmp_path)
    with pytest.raises(ValueError, match="2 versions of the code"):
        records.collect(tmp_path)
    assert len(records.collect(tmp_path, allow_mixed=True))


@pytest.mark.parametrize("text", ["{", "{}", '{"schema": 99}'])
def test_a_broken_record_is_refused(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(ValueError, match="record"):
        records.read(tmp_path / "a.json")


def test_keys_follow_what_matters(result):
    run, _ = result
    recipe = experiment.Recipe()
    base = experiment.Params()

    def key(params=base, recipe=recipe, method="clair"):
        return experiment.record_key(params, recipe, method, run.benchmark, run.model)

    assert key() == key()
    others = [
        key(params=experiment.Params(seed=1)),
        key(recipe=experiment.Recipe(steps=81)),
        key(method="frozen"),
        key(params=experiment.Params(report="validation")),
    ]
    assert len({key(), *others}) == 5


def test_the_code_key_ignores_docstrings_and_comments(tmp_path, monkeypatch):
    def key_of(text):
        (tmp_path / "a.py").write_text(text)
        monkeypatch.setattr(records, "__file__", str(tmp_path / "records.py"))
        records.code_digest.cache_clear()
        try:
            return records.code_digest()
        finally:
            records.code_digest.cache_clear()

    plain = key_of("def f(x):\n    'Doc.'\n    return x + 1\n")
    assert plain == key_of("# why\ndef f(x):\n    'Another doc.'\n\n    return x + 1  # so\n")
    assert plain != key_of("def f(x):\n    'Doc.'\n    return x + 2\n")


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("splitt=1", "Did you mean 'split'"),
        ("dataset=emojis", "Did you mean 'emoji'"),
        ("dataset=sketchy", "no data set"),
        ("model=iconklip", "Did you mean 'iconclip'"),
        ("query=lines", "Did you mean 'line'"),
        ("gallery=line", "two different domains"),
        ("split=7", "splits 0 to 4"),
        ("split=one", "takes int"),
        ("methods=[clare]", "Did you mean 'clair'"),
        ("recipe={stepz: 3}", "Did you mean 'steps'"),
        ("recipe={map_method: rigde}", "no map"),
        ("model=ViT-B-32", "which weights"),
        ("device=gpu", "no device"),
        ("pretrained=nowhere.safetensors", "neither a file nor one of iconclip's own weights"),
        ("split", "name=value"),
    ],
)
def test_bad_input_is_one_clear_sentence_and_writes_nothing(setting, words, tmp_path, capsys):
    assert main(["run", "--quiet", f"records={tmp_path / 'r'}", setting]) == 2
    message = capsys.readouterr().err
    assert words in message
    assert message.count("\n") == 1
    assert not (tmp_path / "r").exists()


def test_a_missing_weights_file_and_a_missing_parameter_file(tmp_path, capsys):
    assert main(["run", "model=ViT-B-32", f"pretrained={tmp_path / 'none.safetensors'}"]) == 2
    assert "neither a file nor a tag" in capsys.readouterr().err
    assert main(["run", "--params", str(tmp_path / "none.yaml")]) == 2
    assert "no parameter file" in capsys.readouterr().err
    assert main(["run", "--params", str(records.REPOSITORY / "papermill_runs/params/emojy.yaml")]) == 2
    assert "emoji.yaml" in capsys.readouterr().err


def test_a_parameter_file_with_a_misspelt_name_stops_papermill_before_it_starts(tmp_path, capsys):
    (tmp_path / "p.yaml").write_text("dataset: emoji\nspilt: 1\n")
    assert main(["papermill", "--params", str(tmp_path / "p.yaml"), "--out", str(tmp_path / "out.ipynb")]) == 2
    assert "Did you mean 'split'" in capsys.readouterr().err
    assert not (tmp_path / "out.ipynb").exists()


def test_the_tracked_parameter_files_fit_the_notebook():
    import papermill

    folder = records.REPOSITORY / "papermill_runs" / "params"
    known = papermill.inspect_notebook(str(records.REPOSITORY / "book" / "10_zero_shot_experiments.ipynb"))
    files = sorted(folder.glob("*.yaml"))
    assert files
    for path in files:
        values = yaml.safe_load(path.read_text())
        assert set(values) <= set(known), path.name
        experiment.Params.from_dict(values)


def test_the_module_runs_as_a_command(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "clair", "run", "--quiet", "methods=[frozen]", f"records={tmp_path}"],
        capture_output=True, text=True, cwd=records.REPOSITORY,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "line->flat" in done.stdout
    assert len(list(tmp_path.glob("*.json"))) == 1
