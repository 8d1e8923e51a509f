"""Checkpoints that another program wrote, or a person: a sentence or a result, no traceback."""

import copy
import importlib
import json
import math
import pathlib
import random
import sys
import types

import pytest
import torch

from tests.conftest import DIGITS, ROOT, last_checkpoint, runs
from utils import checkpoint
from utils.errors import CheckpointError

CYCLE: dict = {}
CYCLE["again"] = CYCLE
MISSING = "missing"
ODD = [MISSING, None, -1, 3, 10**30, "x", "", "../../x", "\0", [], {}, [1, "a"], {"a": 1}, True,
       math.nan, math.inf, 1e300, [[1]], [None] * 3, (1, 2), {1: {2: 3}}, CYCLE,
       list(range(100_000)), torch.zeros(3), torch.tensor(1.5), torch.zeros(2, 2).to_sparse(),
       torch.empty(2, device="meta"), torch.ones(3, dtype=torch.complex64)]  # fmt: skip
WAYS = ["train -r", "train -r -c", "test -r", "export -r --check"]
WAYS = [way for way in WAYS if (ROOT / f"{way.split()[0]}.py").exists()]


@pytest.fixture(scope="module")
def small_run(tmp_path_factory, data_dir):
    """A run of two batches per epoch, and its configuration."""
    import train

    folder = tmp_path_factory.mktemp("odd")
    config = copy.deepcopy(DIGITS)
    config["data_loader"]["args"]["data_dir"] = str(data_dir)
    config["trainer"] |= {"save_dir": str(folder / "saved"), "len_epoch": 2, "ema_decay": 0.9}
    config["inspection"] = {"target": "3"}
    (folder / "config.json").write_text(json.dumps(config))
    assert train.main(["-c", str(folder / "config.json"), "-d", "cpu"]) == 0
    return runs(folder)[0], folder / "config.json"


def places(value, place=()):
    if place:
        yield place
    items = value.items() if isinstance(value, dict) else ()
    items = enumerate(value) if isinstance(value, list) and len(value) < 8 else items
    for key, part in items if len(place) < 6 else ():
        yield from places(part, (*place, key))


def spoil(state, generator):
    """Something else at one place in a checkpoint's content, each of its keys equally often."""
    state = copy.deepcopy(state)
    key = generator.choice(sorted(state))
    place = generator.choice([p for p in places(state) if p[0] == key])
    odd, part = generator.choice(ODD), state
    for key in place[:-1]:
        part = part[key]
    if odd is MISSING:
        del part[place[-1]]
    else:
        part[place[-1]] = copy.deepcopy(odd)
    return state, f"{place} = {str(odd)[:60]}"


def try_odd(way, small_run, tmp_path, numbers, capsys):
    run, config = small_run
    script, *options = way.split()
    main = importlib.import_module(script).main
    file = "checkpoint-epoch1.pth" if way == "train -r" else "model_best.pth"
    state = torch.load(run / file, weights_only=True)
    for number in numbers:
        changed, label = spoil(state, random.Random(f"{way} {number}"))
        path = tmp_path / "saved" / "models" / "Digits" / f"odd{number}" / file
        path.parent.mkdir(parents=True)
        torch.save(changed, path)
        values = {"-r": [str(path)], "-c": [str(config)]}
        words = [word for option in options for word in [option, *values.get(option, [])]]
        code = main([*words, "-d", "cpu", "-s", f"trainer.save_dir={tmp_path / 'saved'}"])
        written = capsys.readouterr()
        assert code in (0, 1, 2), label
        assert "Traceback" not in written.err + written.out, label
        assert code == 0 or len(written.err.strip()) > 20, label


@pytest.mark.parametrize("way", WAYS)
def test_odd_checkpoint_is_a_sentence(way, small_run, tmp_path, capsys):
    try_odd(way, small_run, tmp_path, range(6), capsys)


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_many_odd_checkpoints_are_sentences(way, small_run, tmp_path, capsys):
    try_odd(way, small_run, tmp_path, range(6, 106), capsys)


FAULTS = {
    "epoch": (-1, "epoch: should be greater than or equal to 0"),
    "arch": (None, "arch: should be a valid string"),
    "state_dict": ({"w": 3}, "state_dict.w: should be a usual tensor"),
    "classes": (["a", 1], "classes.1: should be a valid string"),
    "input": ({"mean": [0.0]}, "input.shape: Field required"),
    "config": ({"a": {1: 2}}, "config"),
    "trainer": ({"step": 0}, "trainer.monitor: Field required"),
    "structure": ({"shapes": {"w": [[1]]}, "attributes": {}}, "structure.shapes.w"),
    "origin": ({"digest": "x", "more": torch.ones(1)}, "more: "),
}


@pytest.mark.parametrize("key", FAULTS)
def test_first_fault_is_named_with_its_place(tmp_path, key):
    value, message = FAULTS[key]
    state = {"arch": "Net", "epoch": 1, "state_dict": {"w": torch.ones(1)}, "config": {}}
    torch.save(state, tmp_path / "x.pth")
    assert checkpoint.load(tmp_path / "x.pth")["classes"] is None
    torch.save(state | {key: value}, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=r"x\.pth is damaged") as error:
        checkpoint.load(tmp_path / "x.pth")
    assert message in str(error.value)


@pytest.fixture
def template_checkpoint(small_run, tmp_path, monkeypatch):
    """A function that writes what pytorch-template's BaseTrainer._save_checkpoint writes."""

    def write(as_dict=False):
        class ConfigParser:
            """Has the attributes of pytorch-template's."""

            def __init__(self, config):
                self._config, self.resume = config, None
                self._save_dir = pathlib.PosixPath("saved/models/Mnist_LeNet/1126_000000")
                self.log_levels = {0: 30, 1: 20, 2: 10}

        module = types.ModuleType("parse_config")
        module.ConfigParser = ConfigParser
        ConfigParser.__module__, ConfigParser.__qualname__ = "parse_config", "ConfigParser"
        config = json.loads(small_run[1].read_text())
        config["trainer"]["save_period"] = config["trainer"].pop("save_freq", 1)
        state = last_checkpoint(small_run[0])
        kept = {key: state[key] for key in ("arch", "epoch", "state_dict", "optimizer")}
        path = tmp_path / "checkpoint-epoch2.pth"
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, "parse_config", module)
            config = config if as_dict else ConfigParser(config)
            torch.save(kept | {"monitor_best": 0.5, "config": config}, path)
        return path

    return write


@pytest.mark.parametrize("as_dict", [False, True])
def test_weights_of_pytorch_template_start_a_new_run(template_checkpoint, small_run, tmp_path,
                                                     as_dict, capsys):  # fmt: skip
    import train

    path, folder = template_checkpoint(as_dict), tmp_path / "saved"
    expected = last_checkpoint(small_run[0])["state_dict"]
    torch.testing.assert_close(dict(checkpoint.load(path)["state_dict"]), dict(expected))
    settings = ["-d", "cpu", "-s", f"trainer.save_dir={folder}", "optimizer.args.lr=0.0"]
    settings += ["trainer.ema_decay=0"]
    assert train.main(["-r", str(path), "-c", str(small_run[1]), *settings]) == 0
    [run] = runs(tmp_path)
    torch.testing.assert_close(dict(last_checkpoint(run)["state_dict"]), dict(expected))
    capsys.readouterr()
    assert train.main(["-r", str(path), "-d", "cpu"]) == 2
    error = capsys.readouterr().err
    assert "lacks lr_scheduler, rng, trainer and cannot be resumed" in error
    assert "-r PATH -c FILE starts a new run" in error


def test_an_object_of_python_is_named(tmp_path):
    torch.save({"state_dict": {}, "config": types.SimpleNamespace(a=1)}, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=r"an object of Python, types\.SimpleNamespace"):
        checkpoint.load(tmp_path / "x.pth")
