"""DESIGN's house rules, read off the files."""

import ast
import json

import parse_config
from tests.conftest import ROOT
from utils.schema import descriptions, known, schema

MAY_IMPORT = {
    "utils": set(),
    "base": {"utils"},
    "data_loader": {"base", "utils"},
    "model": {"base", "utils"},
    "logger": {"base", "utils"},
    "pruner": {"base", "utils", "data_loader", "model", "logger"},
    "exporter": {"base", "utils", "data_loader", "model", "logger"},
    "trainer": {"base", "utils", "data_loader", "model", "logger"},
}
ALL = {*MAY_IMPORT, "parse_config", "train", "test", "prune", "export", "new_project"}


def imports(file):
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
        yield from (name.partition(".")[0] for name in names)


def test_each_room_imports_only_what_it_may():
    seen = 0
    for room, allowed in MAY_IMPORT.items():
        for file in (ROOT / room).glob("*.py"):
            ours = set(imports(file)) & ALL
            assert ours <= allowed | {room}, f"{file.relative_to(ROOT)} imports {ours - allowed - {room}}"
            seen += 1
    assert seen > 20


def test_parse_config_reaches_the_folders_by_name_only():
    assert set(imports(ROOT / "parse_config.py")) & ALL <= {"utils"}


def test_rooms_are_one_level_deep():
    for room in MAY_IMPORT:
        nested = [p for p in (ROOT / room).glob("*/*.py") if p.parent.name != "__pycache__"]
        assert not nested


def test_schema_is_what_the_signatures_say():
    """Run `python parse_config.py` where this fails: a class or an argument was changed."""
    kept = json.loads((ROOT / "docs" / "config.schema.json").read_text(encoding="utf-8"))
    made = schema(parse_config.SOURCES, parse_config.PLAIN, parse_config.REQUIRED)
    if kept["$comment"] == made["$comment"]:
        assert kept == made
    else:  # another torch: its own optimizers and losses may differ
        for section in ("arch", "data_loader", "trainer", "metrics"):
            assert kept["properties"][section] == made["properties"][section], section


def test_every_argument_of_ours_is_explained():
    for section, source in parse_config.SOURCES.items():
        for name, found in known(source).items():
            if name not in source.own_names():
                continue
            silent = source.signature(found).parameters.keys() - descriptions(found).keys()
            assert not silent, f"{section}: {name} does not explain {', '.join(sorted(silent))}"
