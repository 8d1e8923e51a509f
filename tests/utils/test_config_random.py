"""Whatever a config file holds gives a message and exit code 2, or a configuration; never a
traceback.
"""

import json
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from parse_config import ConfigParser, command
from tests.conftest import DIGITS
from utils.config import config_file
from utils.config.config_file import assign
from utils.errors import UserError

NAMES = st.sampled_from(
    [
        "arch",
        "loss",
        "metrics",
        "optimizer",
        "trainer",
        "data_loader",
        "lr_scheduler",
        "name",
        "type",
        "args",
    ]
)
KEYS = (
    NAMES
    | st.text(max_size=8)
    | st.sampled_from(
        ["seed", "n_gpu", "extends", "epochs", "monitor", "lr", "versions", "schedulers"]
    )
)
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=12)
    | st.sampled_from(["LeNet", "Adam", "os.path"])
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=12,
)
QUIET = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))


def outcome(config):
    """The exit code of a command that only reads its configuration, and what that was."""
    seen = []
    main = command("Only reads")(lambda config, arguments: seen.append(config))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "config.json"
        file.write_text(json.dumps(config), encoding="utf-8")
        return main(["-c", str(file)]), seen


@QUIET
@given(st.dictionaries(KEYS, VALUES, max_size=8))
def test_random_objects(config):
    code, seen = outcome(config)
    assert code == 2 or isinstance(seen[0], ConfigParser)


@QUIET
@given(st.lists(st.tuples(st.lists(KEYS, min_size=1, max_size=4), VALUES), min_size=1, max_size=4))
def test_a_good_configuration_damaged_anywhere(damages):
    config = json.loads(json.dumps(DIGITS))
    for keys, value in damages:
        try:
            assign(config, keys, value)
        except UserError:
            continue
    code, seen = outcome(config)
    assert code == 2 or isinstance(seen[0], ConfigParser)


@QUIET
@given(st.lists(st.text(max_size=20), max_size=3))
def test_random_overrides(assignments):
    config = json.loads(json.dumps(DIGITS))
    for assignment in assignments:
        try:
            config_file.override(config, assignment)
        except UserError:
            continue
    assert outcome(config)[0] in (0, 2)
