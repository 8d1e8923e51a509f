"""A project made from the template, or from a run, works by itself, also without some verbs."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys

import pytest

import new_project
from tests.conftest import DIGITS, ROOT, last_checkpoint, save_images
from utils import checkpoint
from utils.config import config_file

LEFT_OUT = (["prune"], ["prune", "export"], ["prune", "export", "test"])


def python(folder, *arguments):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )


def test_copy_is_clean_named_and_trains(tmp_path, data_dir):
    dest = tmp_path / "ライン1 NG-OK"
    assert new_project.main([str(dest)]) == 0
    names = {path.name for path in dest.iterdir()}
    assert {"train.py", "config.json", "README.md", "saved", "tests", "new_project.py"} <= names
    assert {".ci", ".gitignore", "LICENSE"} <= names
    assert not {"configs", "data", ".pytest_cache", ".hypothesis"} & names
    assert [path.name for path in (dest / "saved").iterdir()] == [".gitkeep"]
    pages = {path.name for path in (dest / "docs").iterdir()}
    assert {"config.schema.json", "config.md", "architecture.md", "readers"} <= pages
    assert not {"benchmarks.md", "trust.md", "report.png"} & pages
    assert not list(dest.rglob("__pycache__"))
    original = config_file.read_layers(ROOT / "config.json")[0]
    assert config_file.read_layers(dest / "config.json")[0] == original | {"name": "ライン1 NG-OK"}
    readme = (dest / "README.md").read_text(encoding="utf-8")
    assert readme.startswith("# ライン1 NG-OK\n")
    assert "python train.py -c config.json" in readme
    for _, target in re.findall(r"\[([^\]]*)\]\(([^)#]+)", readme):
        assert target.startswith("https:") or (dest / target).exists(), target
    settings = ["--epochs", "1", "-s", f"data_loader.args.data_dir={data_dir}"]
    done = python(dest, "train.py", "-c", "config.json", *settings)
    assert done.returncode == 0, done.stderr
    assert len(list((dest / "saved" / "models" / "ライン1 NG-OK").iterdir())) == 1


@pytest.mark.slow
def test_project_for_a_folder_of_images_trains(tmp_path, monkeypatch, capsys):
    save_images(tmp_path / "parts", {"NG": 6, "OK": 14}, size=(32, 32))
    monkeypatch.chdir(tmp_path)
    assert new_project.main(["Line", "--data", "parts", "--target", "NG"]) == 0
    assert "python train.py -c config.json" in capsys.readouterr().out
    config = config_file.read_layers(tmp_path / "Line" / "config.json")[0]
    assert (config["name"], config["inspection"]["target"]) == ("Line", "NG")
    assert config["data_loader"]["args"]["data_dir"] == str(tmp_path / "parts")
    assert (tmp_path / "Line" / config["$schema"]).exists()
    done = python(tmp_path / "Line", "train.py", "-c", "config.json", "--epochs", "1")
    assert done.returncode == 0, done.stderr
    assert new_project.main(["Other", "--data", "parts", "--target", "ng"]) == 2
    assert not (tmp_path / "Other").exists()
    assert new_project.main(["Other", "--target", "NG"]) == 2
    assert "--target and --weights belong to --data FOLDER" in capsys.readouterr().err


def test_what_is_no_source_code_stays_behind(tmp_path):
    first, second = tmp_path / "First", tmp_path / "Second"
    assert new_project.main([str(first), "--with-examples"]) == 0
    shutil.rmtree(first / ".git")
    junk = {
        "env/pyvenv.cfg": 1,
        "env/lib/site.py": 1,
        "model_best.pth": 1,
        "photos/line 1/a.jpg": 6_000_000,
        "model/pretrained.bin": 6_000_000,
        "data/digits.npz": 1,
        ".idea/workspace.xml": 1,
        "node_modules/x.js": 1,
        "model/__pycache__/x.pyc": 1,
        "kata.egg-info/PKG-INFO": 1,
    }
    own = {
        "model/own_net.py": 1,
        "line/plc.py": 1,
        "line/photos.bin": 5,
        "examples/data/table.csv": 3,
        "configs/template/a.json": 2,
        "notes.txt": 9,
    }
    for name, size in (junk | own).items():
        (first / name).parent.mkdir(parents=True, exist_ok=True)
        with open(first / name, "wb") as file:
            file.truncate(size)
    done = python(first, "new_project.py", str(second), "--with-examples")
    assert done.returncode == 0, done.stderr
    for large in ("env", "photos", "model/pretrained.bin"):
        assert f"left out: {first / large}" in done.stdout
    shutil.rmtree(second / ".git", ignore_errors=True)
    copied = {path.relative_to(second).as_posix() for path in second.rglob("*") if path.is_file()}
    assert set(own) <= copied
    assert not set(junk) & copied
    before = {path.relative_to(first).as_posix() for path in first.rglob("*") if path.is_file()}
    assert before - set(junk) == copied


def git(folder, *arguments):
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_only_what_git_knows_is_copied_and_committed(tmp_path, monkeypatch):
    for role in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{role}_NAME", "A")
        monkeypatch.setenv(f"GIT_{role}_EMAIL", "a@b.c")
    monkeypatch.setenv("GIT_CONFIG_COUNT", "2")
    for number, (key, value) in enumerate({"user.name": "A", "user.email": "a@b.c"}.items()):
        monkeypatch.setenv(f"GIT_CONFIG_KEY_{number}", key)
        monkeypatch.setenv(f"GIT_CONFIG_VALUE_{number}", value)
    first, second = tmp_path / "First", tmp_path / "Second"
    assert new_project.main([str(first)]) == 0
    assert git(first, "log", "--format=%s").strip() == "Begin from the template"
    assert git(first, "status", "--porcelain") == ""
    (first / "secrets.txt").write_text("password")
    (first / "model" / "unused.py").write_text("x = 1\n")
    done = python(first, "new_project.py", str(second))
    assert done.returncode == 0, done.stderr
    assert not (second / "secrets.txt").exists()
    assert not (second / "model" / "unused.py").exists()
    tracked = set(git(second, "ls-files").split())
    assert "train.py" in tracked
    assert tracked == set(git(first, "ls-files").split())


def test_nothing_says_that_the_project_is_the_template(tmp_path):
    dest = tmp_path / "Line"
    assert new_project.main([str(dest)]) == 0
    stamp = (dest / "README.md").read_text(encoding="utf-8").splitlines()[-1]
    assert stamp.startswith("MIT, see [LICENSE](LICENSE). Made from Kata 型 0.1.0")
    for file in dest.rglob("*"):
        inside = file.relative_to(dest).parts
        if not file.is_file() or inside[0] in (".git", "LICENSE", "new_project.py"):
            continue
        if file.suffix not in (".pth", ".pt", ".png", ".onnx"):
            text = file.read_text(encoding="utf-8").replace(stamp, "")
            found = re.search(r"(?i)\bkata\b|shared/data|kata_(?!data)", text)
            assert found is None, f"{file} says {found[0]}"


def test_existing_files_are_never_mixed_with(tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("precious")
    assert new_project.main([str(tmp_path)]) == 2
    assert "is not empty" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
    assert new_project.main([str(ROOT / "inside")]) == 2
    assert not (ROOT / "inside").exists()
    assert new_project.main([str(tmp_path / "mine.txt")]) == 2
    assert new_project.main([str(tmp_path / "x"), "--from", str(tmp_path / "nowhere")]) == 2
    assert not (tmp_path / "x").exists()


def test_project_from_a_run_starts_with_its_config_and_weights(digits, train, tmp_path, capsys):
    run = train(digits({"optimizer.args.lr": 0.00123}))
    dest = tmp_path / "Next"
    assert new_project.main([str(dest), "--from", str(run)]) == 0
    config = json.loads((dest / "config.json").read_text())
    assert config["name"] == "Next"
    assert config["optimizer"]["args"]["lr"] == 0.00123
    weights = dest / "saved" / "models" / DIGITS["name"] / run.name / "model_best.pth"
    assert weights.read_bytes() == (run / "model_best.pth").read_bytes()
    out = capsys.readouterr().out
    assert f"from {run / 'model_best.pth'}: configuration, weights, but nothing that was" in out
    assert f"it trains on {config['data_loader']['args']['data_dir']}" in out
    command = out.strip().split(" && ")[1]
    done = python(dest, *command.split()[1:], "--epochs", "1", "-s", "trainer.save_dir=saved/")
    assert done.returncode == 0, done.stderr
    assert f"weights of saved/models/Digits/{run.name}/model_best.pth" in done.stdout
    new = next((dest / "saved" / "models" / "Next").iterdir())
    assert last_checkpoint(new)["epoch"] == 1


@pytest.mark.slow
def test_project_from_a_pruning_run_trains(old_run, tmp_path):
    run, arguments = old_run(ROOT / "tests" / "pruner" / "old_runs" / "prune")
    dest = tmp_path / "Next"
    assert new_project.main([str(dest), "--from", str(run), "--without", "prune"]) == 0
    config = json.loads((dest / "config.json").read_text())
    assert "pruner" not in config
    assert not {"type", "last_epochs", "save_onnx"} & config["trainer"].keys()
    [weights] = (dest / "saved" / "models").glob("*/*/*.pth")
    command = ["train.py", "-c", "config.json", "-r", str(weights), "--epochs", "1", *arguments]
    for words in (command, ["test.py", "-r", str(weights), *arguments]):
        done = python(dest, *words)
        assert done.returncode == 0, done.stderr


def test_project_from_a_resumed_run_takes_other_classes(image_config, train, resume, tmp_path):
    save_images(tmp_path / "parts" / "train", {"NG": 6, "OK": 6}, size=(16, 16))
    config = image_config(tmp_path / "parts")
    run = train(config | {"trainer": config["trainer"] | {"monitor": "off"}}, "--epochs", 1)
    resume(run, "--epochs", 2)
    arguments = last_checkpoint(run)["config"]["data_loader"]["args"]
    assert arguments["classes"] == ["NG", "OK"]
    assert new_project.main([str(tmp_path / "Next"), "--from", str(run)]) == 0
    new = json.loads((tmp_path / "Next" / "config.json").read_text())["data_loader"]["args"]
    assert "classes" not in new
    assert {k: new[k] for k in config["data_loader"]["args"]} == config["data_loader"]["args"]


def test_name_of_a_run_cannot_lead_out_of_the_project(digits, train, tmp_path):
    run = train(digits())
    state = checkpoint.load(run / "model_best.pth")
    state["config"]["name"] = "../../../escaped"
    checkpoint.save(state, run / "model_best.pth")
    assert new_project.main([str(tmp_path / "a" / "Next"), "--from", str(run)]) == 0
    assert not (tmp_path / "escaped").exists()
    assert not (tmp_path / "a" / "escaped").exists()
    models = tmp_path / "a" / "Next" / "saved" / "models"
    assert len(list(models.glob("*/*/model_best.pth"))) == 1


def public_names(folder):
    """Classes and functions of several words that a folder's modules define."""
    for file in (ROOT / folder).glob("*.py"):
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            name = getattr(node, "name", "")
            if re.fullmatch(r"[a-z]+_\w+|[A-Z]\w*[a-z][A-Z]\w*", name):
                yield name


def names_of(verbs):
    """Everything that belongs to verbs: folders, scripts, public names, sections, pages,
    requirements.
    """
    folders = {new_project.folder_of(verb) for verb in verbs}
    names = folders | {f"{verb}.py" for verb in verbs} | new_project.sections_of(folders)
    kept = {path.parent.name for path in ROOT.glob("*/*.py")} - folders - {"tests"}
    code = [
        file.read_text(encoding="utf-8")
        for folder in kept
        for file in ROOT.glob(f"{folder}/**/*.py")
    ]
    defined_elsewhere = set(re.findall(r"(?:def|class) (\w+)", "".join(code)))
    names |= {name for folder in folders for name in public_names(folder)} - defined_elsewhere
    pages = {"prune": "pruning.md", "export": "export.md", "test": "testing.md"}
    assert all((ROOT / "docs" / page).exists() for page in pages.values())
    names |= {pages[verb] for verb in verbs}
    for line in (ROOT / "requirements.txt").read_text().splitlines():
        if line.partition("# ")[2] in folders:
            package = re.match(r"[\w-]+", line)[0]
            names |= {package, package.replace("-", "_")}
    return names


@pytest.mark.parametrize(
    "verbs",
    [*(pytest.param(verbs, marks=pytest.mark.slow) for verbs in LEFT_OUT[:-1]), LEFT_OUT[-1]],
    ids=" ".join,
)
def test_nothing_of_a_verb_is_left(verbs, tmp_path, data_dir):
    dest = tmp_path / "Small"
    assert new_project.main([str(dest), "--without", *verbs]) == 0
    names = names_of(verbs)
    assert len(names) > 20
    pattern = re.compile(rf"(?<![\w.])({'|'.join(map(re.escape, sorted(names)))})(?!\w)")
    files = [path for path in dest.rglob("*") if path.is_file() and ".git" not in path.parts]
    assert len(files) > 80
    for file in files:
        path = file.relative_to(dest).as_posix()
        assert not pattern.search(path.replace("/", " / ")), path
        if file.suffix not in (".pth", ".pt", ".png", ".onnx"):
            match = pattern.search(file.read_text(encoding="utf-8"))
            assert match is None, f"{path} names {match[0]}"
    settings = ["--check", "-s", f"data_loader.args.data_dir={data_dir}"]
    done = python(dest, "train.py", "-c", "config.json", *settings)
    assert done.returncode == 0, done.stderr


def test_a_verb_that_others_use_cannot_be_left_out_alone(tmp_path, capsys):
    assert new_project.main([str(tmp_path / "x"), "--without", "export"]) == 2
    assert "leave out prune, too" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


@pytest.mark.slow
@pytest.mark.parametrize("verbs", [[], *LEFT_OUT], ids=lambda verbs: " ".join(verbs) or "whole")
def test_tests_of_a_copy_pass(verbs, tmp_path):
    dest = tmp_path / "Demo"
    assert new_project.main([str(dest), *(["--without", *verbs] if verbs else [])]) == 0
    done = python(dest, "-m", "pytest", "-q")
    assert done.returncode == 0, done.stdout[-3000:]


@pytest.mark.slow
@pytest.mark.parametrize("verbs", LEFT_OUT, ids=" ".join)
def test_tests_pass_after_deleting_a_verb_by_hand(verbs, tmp_path):
    dest = tmp_path / "Demo"
    new_project.copy_template(dest)
    for verb in verbs:
        folder = new_project.folder_of(verb)
        (dest / f"{verb}.py").unlink()
        shutil.rmtree(dest / folder)
        shutil.rmtree(dest / "tests" / folder)
    for file in (dest / "configs").glob("prune_*.json"):
        file.unlink()
    done = python(dest, "-m", "pytest", "-q")
    assert done.returncode == 0, done.stdout[-3000:]
