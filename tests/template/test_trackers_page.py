"""The trackers that docs/trackers.md shows record a run, where their libraries are installed."""

import importlib.util
import sys

import pytest

from tests.conftest import ROOT
from tests.template.test_readme import blocks

ARGUMENTS = {
    "WandbTracker": ("wandb", {"project": "p", "mode": "offline"}),
    "TrackioTracker": ("trackio", {"project": "p"}),
}


def shown():
    """The classes that the page defines, by name."""
    found = {}
    for language, text in blocks(ROOT / "docs" / "trackers.md"):
        if language == "python":
            names: dict = {}
            exec(compile(text, "trackers.md", "exec"), names)
            found |= {name: names[name] for name in ARGUMENTS if name in names}
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", ARGUMENTS)
def test_tracker_of_the_page_records_a_run(name, tmp_path, monkeypatch):
    library, arguments = ARGUMENTS[name]
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"needs {library}")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    for module in [m for m in sys.modules if m.partition(".")[0] in (library, "huggingface_hub")]:
        monkeypatch.delitem(sys.modules, module)  # it has read the folder already
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "saved" / "models" / "Digits" / "1126_120000"
    run.mkdir(parents=True)
    tracker = shown()[name](**arguments)
    tracker.begin(run, {"name": "Digits", "optimizer": {"args": {"lr": 0.1}}}, None)
    for step in (1, 2):
        tracker.log({"loss": 1 / step}, step)
    tracker.end("finished")
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any(path.suffix in (".wandb", ".db") for path in written), written
