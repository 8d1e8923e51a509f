"""docs/config.schema.json is what the signatures say, and every argument is explained."""

import json

from tests.conftest import ROOT
from utils.config.schema import build_schema, descriptions, known_names
from utils.config.sections import SOURCES


def test_schema_is_what_the_signatures_say():
    """If this fails, run `python parse_config.py`: a class or an argument has changed."""
    kept = json.loads((ROOT / "docs" / "config.schema.json").read_text(encoding="utf-8"))
    current = build_schema()
    # sections of a verb that was deleted by hand do no harm
    known = {key: kept["properties"][key] for key in current["properties"]}
    kept |= {"properties": known}
    if kept["$comment"] == current["$comment"]:
        assert kept == current
    else:  # another torch: its own optimizers and losses may differ
        for section in ("arch", "data_loader", "trainer", "metrics"):
            assert kept["properties"][section] == current["properties"][section], section


def test_every_argument_of_the_template_is_explained():
    for section, source in SOURCES.items():
        for name, target in known_names(source).items():
            if name in source.own_names():
                silent = source.signature(target).parameters.keys() - descriptions(target).keys()
                assert not silent, f"{section}: {name} does not explain {', '.join(sorted(silent))}"
