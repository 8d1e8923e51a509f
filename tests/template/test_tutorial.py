"""Every command of docs/tutorial.md works, on real images of steel defects."""

import os
import re
import shutil
import subprocess
import sys

import pytest

from tests.conftest import ROOT
from tests.template.test_readme import all_commands

FAST = ["-s", "trainer.epochs=1"]  # instead of the minutes that the pages' commands take
COUNT = 30  # images of each kind


@pytest.fixture
def project(tmp_path, kata_data):
    source, folder = kata_data / "neu_surface_defects", tmp_path / "Project"
    left_out = shutil.ignore_patterns(".git", ".*cache", "venv", "saved", "data", "__pycache__")
    shutil.copytree(ROOT, folder, ignore=left_out)
    for data, kinds in ("steel", None), ("castings", {"crazing", "patches"}):
        for kind in sorted((source / "train").iterdir()):
            if kinds is None or kind.name in kinds:
                (folder / "data" / data / kind.name).mkdir(parents=True)
                for file in sorted(kind.iterdir())[:COUNT]:
                    shutil.copy2(file, folder / "data" / data / kind.name)
    return folder


@pytest.mark.slow
def test_commands_of_the_tutorial_run(project):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}

    def newest(match):
        runs = sorted((project / "saved" / "models" / match[1]).iterdir())
        return runs[0].relative_to(project).as_posix()

    for words in all_commands(ROOT / "docs" / "tutorial.md"):
        words = [re.sub(r"saved/models/(\w+)/1121_093042", newest, word) for word in words[1:]]
        joined = " ".join(words)
        if "trainer.folds" in joined:
            words += [*FAST, "-k", "3"]
        elif "-c configs/steel.json" in joined and ".show" not in joined:
            words += [*FAST, *(["trainer.last_epochs=1"] if "prune" in joined else [])]
        if "--int8" in words:
            words += ["-s", "exporter.args.max_accuracy_drop=0.5"]
        done = subprocess.run(
            [sys.executable, *words], cwd=project, env=environment, capture_output=True,
            text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, (joined, done.stdout[-2000:], done.stderr[-2000:])
    assert (project / "saved" / "index.html").exists()
    assert (project / "data" / "steel.cache" / "show.html").exists()
    new = project.parent / "Castings"
    assert "data/castings" in (new / "config.json").read_text()


def test_japanese_tutorial_has_the_same_commands():
    pages = [ROOT / "docs" / name for name in ("tutorial.md", "tutorial.ja.md")]
    english, japanese = map(all_commands, pages)
    assert english == japanese
