"""Exported files and reports name the checkpoint that they were made from, and go with it."""

import json
import logging
import shutil

import pytest
import torch

import export as export_script
import test as test_script
import train as train_script
from exporter import onnx_file
from tests.exporter.test_old_files import OLD_FILES
from utils import checkpoint
from utils.origin import digest

LEGACY = ["-s", "exporter.args.opset=13"]  # takes a tenth of the time


def read(file):
    return json.loads(file.read_text(encoding="utf-8"))


def replace(path):
    """As a training does that goes on while its files are used."""
    state = checkpoint.load(path)
    state["state_dict"]["fc2.bias"] += 1
    checkpoint.save(state, path)


def make_file(source, file, model):
    """A copy of the exported file `model` that says it was made from `source`."""
    file.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(model, file)
    record = checkpoint.origin_beside(file, source, checkpoint.load(source))
    onnx_file.amend(file, origin=record)


def names(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_everything_names_its_checkpoint_and_moves_with_it(exported, tmp_path, capsys):
    elsewhere = tmp_path / "line" / "part.onnx"
    assert export_script.main(["-r", str(exported), "-o", str(elsewhere), *LEGACY]) == 0
    assert test_script.main(["-r", str(exported)]) == 0
    assert test_script.main(["-r", str(exported / "model.onnx"), "--split", "val"]) == 0
    files = [str(exported / "model.int8.onnx"), str(exported)]
    assert export_script.main(["--compare", *files, *LEGACY]) == 0
    assert "warning" not in capsys.readouterr().out
    state = checkpoint.load(exported / checkpoint.BEST)
    expected = state["origin"] | {"checkpoint": "model_best.pth"}
    assert expected["digest"] == digest(state)
    assert expected["seed"] == 5
    for file in ("model.onnx", "model.int8.onnx"):
        assert onnx_file.load(exported / file)["origin"] == expected
    reports = {
        "export.json": "model_best.pth",
        "test/result.json": "../model_best.pth",
        "test/model.onnx/result_val.json": "../../model.onnx",
        "compare/compare.json": "../model.int8.onnx",
    }
    for name, path in reports.items():
        assert read(exported / name)["origin"] == expected | {"checkpoint": path}
    compared = read(exported / "compare" / "compare.json")["compared"]
    assert compared["run"] == expected | {"checkpoint": "../model_best.pth"}
    assert expected["digest"] in (exported / "test" / "report.html").read_text(encoding="utf-8")

    made = {name for name in names(exported) if "/" in name or "model." in name} | {"export.json"}
    assert train_script.main(["-r", str(exported / "checkpoint-epoch1.pth"), "--epochs", "2"]) == 0
    assert made <= names(exported / "replaced")
    left = {name for name in names(exported) if not name.startswith("replaced/")}
    assert left == {
        "config.json", "run.json", "model_best.pth", "checkpoint-epoch1.pth",
        "checkpoint-epoch2.pth",
    }  # fmt: skip
    assert capsys.readouterr().out.count("model_best.pth was replaced: moved what") == 1
    assert test_script.main(["-r", str(elsewhere), "--check"]) == 0
    assert "part.onnx was made from an earlier model_best.pth" in capsys.readouterr().out
    moved = exported / "replaced" / "model.onnx"  # still beside its checkpoint
    assert test_script.main(["-r", str(moved), "--check"]) == 0
    assert "warning" not in capsys.readouterr().out


def test_a_longer_training_moves_the_files_of_the_best_before(exported, capsys):
    old = checkpoint.load(exported / checkpoint.BEST)["origin"]
    assert train_script.main(["-r", str(exported), "--epochs", "5"]) == 0
    new = checkpoint.load(exported / checkpoint.BEST)["origin"]
    assert new["digest"] != old["digest"]
    assert new["made_from"] is None
    assert names(exported / "replaced") == {"export.json", "model.onnx", "model.int8.onnx"}
    assert capsys.readouterr().out.count("model_best.pth was replaced") == 1
    assert onnx_file.load(exported / "replaced/model.onnx")["origin"]["digest"] == old["digest"]


def test_files_of_another_checkpoint_that_is_present_stay(exported):
    numbered, best = exported / "checkpoint-epoch1.pth", exported / checkpoint.BEST
    make_file(numbered, exported / "first.onnx", exported / "model.onnx")
    make_file(best, exported / "third.onnx", exported / "model.onnx")
    for name in ("first.onnx", "third.onnx"):
        result = exported / "test" / name / "result_val.json"
        result.parent.mkdir(parents=True)
        source = exported / name
        record = checkpoint.origin_beside(result, source, checkpoint.load(source))
        result.write_text(json.dumps({"origin": record}))
    replace(best)
    kept = {"first.onnx", "test/first.onnx/result_val.json"}
    assert kept <= names(exported)
    gone = {"third.onnx", "model.onnx", "model.int8.onnx", "test/third.onnx/result_val.json"}
    assert names(exported / "replaced") == gone | {"export.json"}
    checkpoint.set_aside(exported, 0)
    assert kept <= names(exported / "replaced")


@pytest.mark.parametrize("name", ["part.onnx", "model.int8.onnx"])
def test_reader_says_when_the_checkpoint_is_another_one_or_gone(exported, tmp_path, caplog, name):
    best, file = exported / checkpoint.BEST, tmp_path / "line" / name
    make_file(best, file, exported / ("model.onnx" if name == "part.onnx" else name))
    state = onnx_file.load(file)
    onnx_file.network(file, state)
    assert not caplog.messages
    replace(best)
    onnx_file.network(file, state)
    reason = "was made from an earlier model_best.pth, not from the one that is there now"
    assert caplog.messages[-1] == f"{file} {reason}"
    best.write_bytes(b"damaged")
    onnx_file.network(file, state)
    assert caplog.messages[-1] == f"{file} {reason}"
    best.unlink()
    onnx_file.network(file, state)
    assert caplog.messages[-1] == f"{file} was made from model_best.pth, which is no longer there"
    assert {record.levelno for record in caplog.records} == {logging.WARNING}


def test_old_file_says_that_it_could_not_be_compared(old_run, capsys):
    run, arguments = old_run(OLD_FILES)
    assert test_script.main(["-r", str(run / "model.onnx"), *arguments]) == 0
    assert "model.onnx does not name its checkpoint" in capsys.readouterr().out
    assert read(run / "test" / "model.onnx" / "result.json")["origin"]["digest"] is None
    before = names(run)
    checkpoint.amend(run / checkpoint.BEST, checkpoint.load(run / checkpoint.BEST), inspection=None)
    assert names(run) == before
    state = checkpoint.load(run / checkpoint.BEST)
    next(iter(state["state_dict"].values())).zero_()
    checkpoint.save(state, run / checkpoint.BEST)
    assert "model.onnx" in names(run / "replaced")


def test_another_format_goes_with_its_checkpoint(exported):
    """Its files are known from export.json alone."""
    report = read(exported / "export.json")
    report["bytes"] = {"model.other": 7}
    (exported / "export.json").write_text(json.dumps(report))
    (exported / "model.other").touch()
    (exported / "other.other").touch()
    replace(exported / checkpoint.BEST)
    assert "model.other" in names(exported / "replaced")
    assert (exported / "other.other").exists()


def test_a_step_of_a_pruning_takes_its_file_along(exported):
    folder, model = exported / "prune", exported / "model.onnx"
    for step in (1, 2):
        path = folder / f"step{step}.pth"
        folder.mkdir(exist_ok=True)
        shutil.copy(exported / checkpoint.BEST, path)
        make_file(path, folder / f"step{step}.onnx", model)
        make_file(path, folder / f"step{step}" / "model.onnx", model)
    shutil.copy(model, folder / "original.onnx")
    state = checkpoint.load(folder / "step2.pth")
    state["state_dict"]["fc2.bias"] = torch.zeros(10)
    before, gone = names(exported), {"step2.onnx", "step2/model.onnx"}
    checkpoint.save(state, folder / "step2.pth")
    moved = {f"prune/replaced/{name}" for name in gone}
    assert names(exported) == before - {f"prune/{name}" for name in gone} | moved
