"""Odd checkpoints of pruning runs, and odd ones that are to be pruned."""

import json
import random
import shutil

import pytest
import torch

import prune as script
from tests.conftest import runs
from tests.utils.test_odd_checkpoints import small_run, spoil  # noqa: F401 (a fixture)


@pytest.fixture(scope="module")
def pruned(small_run, tmp_path_factory):  # noqa: F811
    """The run, a pruning run that was made from it, and the configuration of that."""
    run, file = small_run
    folder, config = tmp_path_factory.mktemp("odd"), json.loads(file.read_text())
    pruner = {"type": "MagnitudePruner", "args": {"iterative_steps": 1, "channel_sparsity": 0.3}}
    trainer = {"epochs": 1, "len_epoch": 2, "save_dir": str(folder / "saved"), "verbosity": 0}
    config |= {"pruner": pruner, "trainer": trainer}
    (folder / "config.json").write_text(json.dumps(config))
    assert script.main(["-c", str(folder / "config.json"), "-r", str(run), "-d", "cpu"]) == 0
    return run, runs(folder)[0], folder / "config.json"


def try_odd(pruned, tmp_path, numbers, capsys):
    run, pruning, config = pruned
    for number in numbers:
        folder = tmp_path / "saved" / "models" / "Digits" / f"odd{number}"
        for source, more in (run, ["-c", str(config), "--check"]), (pruning, []):
            shutil.copytree(source, folder)
            path = max(folder.glob("checkpoint*"))
            state = torch.load(path, weights_only=True)
            changed, label = spoil(state, random.Random(f"{bool(more)} {number}"))
            torch.save(changed, path)
            code = script.main(["-r", str(path), "-d", "cpu", *more])
            written = capsys.readouterr()
            assert code in (0, 1, 2), label
            assert "Traceback" not in written.err + written.out, label
            shutil.rmtree(folder)


def test_odd_checkpoint_is_a_sentence(pruned, tmp_path, capsys):
    try_odd(pruned, tmp_path, range(3), capsys)


@pytest.mark.slow
def test_many_odd_checkpoints_are_sentences(pruned, tmp_path, capsys):
    try_odd(pruned, tmp_path, range(3, 60), capsys)
