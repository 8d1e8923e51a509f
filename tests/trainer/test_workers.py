"""The number of workers for "auto": by what loading and computing cost."""

import time

import pytest
import torch
from torch.utils.data import Dataset

from base import BaseDataLoader
from tests.conftest import assert_same, build
from trainer.workers import Cost, choose_workers, fitting_workers


@pytest.mark.parametrize(
    ("load", "step", "cores", "workers"),
    [
        ((0.001, 0.001), (0.5, 1.0), 2, 0),  # loading is nothing
        ((0.2, 0.2), (1.0, 2.0), 2, 0),  # the computation fills both cores
        ((1.0, 1.0), (1.0, 1.0), 2, 1),  # one core each
        ((1.0, 1.0), (0.1, 0.1), 2, 2),  # loading is all: a core for each of two
        ((1.0, 1.0), (0.1, 0.1), 1, 0),
        ((0.8, 0.8), (0.1, 0.01), 16, 8),  # a GPU computes
        ((0.4, 0.4), (0.1, 0.01), 16, 4),
        ((0.05, 0.05), (0.5, 0.02), 16, 0),  # a GPU that takes its time: less than a tenth
        ((1.0, 0.01), (1.0, 4.0), 4, 1),  # a slow disk
    ],
)
def test_fewest_workers_that_save_most_of_the_time(load, step, cores, workers):
    assert fitting_workers(Cost(*load), Cost(*step), cores) == workers


def test_processes_of_a_machine_share_its_cores_and_the_device_in_use_is_measured(
    digits, monkeypatch
):
    """Eight GPUs on 32 cores: four each."""
    asked, waited = [], []
    monkeypatch.setattr("trainer.workers.cores", lambda: 32)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    monkeypatch.setattr("trainer.workers.fitting_workers", lambda *costs: asked.append(costs) or 0)
    trainer = build(digits())
    monkeypatch.setattr(type(trainer.engine), "synchronize", lambda engine: waited.append(engine))
    loader = BaseDataLoader(Slow(0.0), batch_size=8)
    settings = trainer.task, trainer.engine, trainer.train_steps
    choose_workers(trainer.model, [loader], *settings)
    [(_, _, available)] = asked
    assert available == 4
    assert waited == [trainer.engine]


class Slow(Dataset):
    """Samples that a disk needs long to give."""

    def __init__(self, seconds):
        self.seconds = seconds

    def __len__(self):
        return 24

    def __getitem__(self, index):
        time.sleep(self.seconds)
        return torch.full((1, 28, 28), float(index)), index % 10


def test_auto_starts_workers_where_loading_takes_long(digits, monkeypatch, tmp_path):
    """And the trained network is the same as without."""
    monkeypatch.setattr("trainer.workers.cores", lambda: 4)
    states = []
    for workers in ("auto", 0):
        config = digits({"trainer.monitor": "off", "trainer.save_dir": str(tmp_path)})
        trainer = build(config)
        loader = BaseDataLoader(Slow(0.05), batch_size=8, num_workers=workers, seed=5)
        trainer.data_loader, trainer.valid_data_loader, trainer.len_epoch = loader, None, 3
        trainer.rehearse()
        assert (loader.num_workers > 0) == (workers == "auto")
        log = trainer._train_epoch(1)
        loader.end_workers()
        states.append((log["loss"], trainer.model.state_dict()))
    assert_same(states[0], states[1])


def test_data_in_memory_never_gets_workers(digits, train, capsys):
    train(digits({"data_loader.args.num_workers": "auto", "trainer.verbosity": 2}))
    assert "num_workers" not in capsys.readouterr().out
