"""A project made from the template, or from a run, works by itself."""

import json
import subprocess
import sys

import pytest

import new_project
from tests.conftest import DIGITS, ROOT, last_checkpoint
from utils import config_file


def python(folder, *arguments):
    return subprocess.run([sys.executable, *arguments], cwd=folder, capture_output=True, text=True, check=False)


def test_the_copy_is_clean_named_and_runs(tmp_path, data_dir):
    dest = tmp_path / "ライン1 NG-OK"
    assert new_project.main([str(dest)]) == 0
    names = {path.name for path in dest.iterdir()}
    assert {
        "train.py",
        "config.json",
        "README.md",
        "saved",
        "tests",
        "new_project.py",
        ".ci",
        ".gitignore",
        "LICENSE",
    } <= names
    assert not {".git", "data", ".pytest_cache", ".hypothesis"} & names
    assert [path.name for path in (dest / "saved").iterdir()] == [".gitkeep"]
    assert [path.name for path in (dest / "docs").iterdir()] == ["config.schema.json"]
    assert not list(dest.rglob("__pycache__"))
    assert config_file.read(dest / "config.json")["name"] == "ライン1 NG-OK"
    original = config_file.read(ROOT / "config.json")
    assert config_file.read(dest / "config.json") == original | {"name": "ライン1 NG-OK"}
    assert "python train.py -c config.json" in (dest / "README.md").read_text(encoding="utf-8")
    assert len((dest / "README.md").read_text(encoding="utf-8").splitlines()) < 20
    done = python(dest, "train.py", "-c", "config.json", "--epochs", "1", "-s", f"data_loader.args.data_dir={data_dir}")
    assert done.returncode == 0, done.stderr
    assert len(list((dest / "saved" / "models" / "ライン1 NG-OK").iterdir())) == 1


def test_what_is_there_is_never_mixed_with(tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("precious")
    assert new_project.main([str(tmp_path)]) == 2
    assert "is not empty" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
    assert new_project.main([str(ROOT / "inside")]) == 2
    assert not (ROOT / "inside").exists()
    assert new_project.main([str(tmp_path / "mine.txt")]) == 2
    assert new_project.main([str(tmp_path / "x"), "--from", str(tmp_path / "nowhere")]) == 2
    assert not (tmp_path / "x").exists()


def test_a_project_from_a_run_starts_with_its_configuration_and_weights(digits, train, tmp_path, capsys):
    run = train(digits({"optimizer.args.lr": 0.00123}))
    dest = tmp_path / "Next"
    assert new_project.main([str(dest), "--from", str(run)]) == 0
    config = json.loads((dest / "config.json").read_text())
    assert config["name"] == "Next"
    assert config["optimizer"]["args"]["lr"] == 0.00123
    weights = dest / "saved" / "models" / DIGITS["name"] / run.name / "model_best.pth"
    assert weights.read_bytes() == (run / "model_best.pth").read_bytes()
    command = capsys.readouterr().out.strip().split(" && ")[1]
    done = python(dest, *command.split()[1:], "--epochs", "1", "-s", "trainer.save_dir=saved/")
    assert done.returncode == 0, done.stderr
    assert f"weights of saved/models/Digits/{run.name}/model_best.pth" in done.stdout
    new = next((dest / "saved" / "models" / "Next").iterdir())
    assert last_checkpoint(new)["epoch"] == 1


def test_a_runs_name_cannot_lead_out_of_the_project(digits, train, tmp_path):
    from utils import checkpoint

    run = train(digits())
    state = checkpoint.load(run / "model_best.pth")
    state["config"]["name"] = "../../../escaped"
    checkpoint.save(state, run / "model_best.pth")
    assert new_project.main([str(tmp_path / "a" / "Next"), "--from", str(run)]) == 0
    assert not (tmp_path / "escaped").exists()
    assert not (tmp_path / "a" / "escaped").exists()
    assert len(list((tmp_path / "a" / "Next" / "saved" / "models").glob("*/*/model_best.pth"))) == 1


@pytest.mark.slow
def test_its_tests_pass_there(tmp_path):
    dest = tmp_path / "Demo"
    assert new_project.main([str(dest)]) == 0
    done = python(dest, "-m", "pytest", "-q")
    assert done.returncode == 0, done.stdout[-3000:]
