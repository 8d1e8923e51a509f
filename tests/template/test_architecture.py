"""The shape of the house: who imports whom, and how far it is from train.py to the optimizer."""

import ast
import functools
import inspect
import json

import pytest
import torch

from tests.conftest import ROOT

LAYERS = [
    {"utils"},
    {"base"},
    {"logger"},
    {"data_loader", "model"},
    {"trainer"},
    {"tester"},
    {"exporter"},
    {"pruner"},
]
FOLDERS = set().union(*LAYERS)


def imports_of(file):
    """The folders that a file imports from, also inside functions and for type checkers only."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            yield node.module.partition(".")[0]


@pytest.mark.parametrize("folder", sorted(folder for folder in FOLDERS if (ROOT / folder).is_dir()))
def test_a_folder_imports_only_from_folders_to_its_left(folder):
    layer = next(number for number, folders in enumerate(LAYERS) if folder in folders)
    allowed = set().union(*LAYERS[:layer]) | {folder}
    for file in (ROOT / folder).rglob("*.py"):
        imported = set(imports_of(file))
        assert not (imported & FOLDERS) - allowed, file
        scripts = {path.stem for path in ROOT.glob("*.py")}
        # "test" is also a module of Python's own
        assert not imported & scripts, f"{file} imports a script"


def test_all_folders_with_code_have_a_layer():
    folders = {path.parent.name for path in ROOT.glob("*/*.py")} - {"tests"}
    assert folders <= FOLDERS


def test_optimizer_is_built_near_main(digits, tmp_path, monkeypatch):
    """At most 4 frames between train.py's main and torch.optim.Adam."""
    import train

    depth = []
    original = torch.optim.Adam.__init__

    @functools.wraps(original)
    def counting(self, *args, **kwargs):
        names = [frame.function for frame in inspect.stack()[1:]]
        files = [frame.filename for frame in inspect.stack()[1:]]
        mains = [i for i, (f, n) in enumerate(zip(files, names, strict=True))
                 if n == "main" and f.endswith("train.py")]  # fmt: skip
        depth.append(mains[0])
        original(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.Adam, "__init__", counting)
    (tmp_path / "config.json").write_text(json.dumps(digits()), encoding="utf-8")
    assert train.main(["-c", str(tmp_path / "config.json"), "--check"]) == 0
    assert depth
    assert depth[0] <= 4, depth


def test_few_files_take_the_configuration():
    files = [
        file
        for file in ROOT.rglob("*.py")
        if file.relative_to(ROOT).parts[0] in FOLDERS or file.parent == ROOT
        if any(
            isinstance(node, ast.arg) and node.arg == "config" and _is_config(node)
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        )
    ]
    assert len(files) <= 12, files


def _is_config(argument):
    hint = argument.annotation
    return hint is None or (isinstance(hint, ast.Name) and hint.id == "ConfigParser")


def test_parse_config_reaches_the_folders_by_name_only():
    assert set(imports_of(ROOT / "parse_config.py")) & FOLDERS <= {"utils"}
