"""How many processes should prepare the batches: measured, not guessed."""

import logging
import os
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn

from base import BaseDataLoader, BaseTask
from model.freezing import set_training_mode
from trainer.features import first_samples
from trainer.rehearsal import TrainSteps, unchanged, unchanged_values
from utils.engine import distributed
from utils.engine.engine import Engine, Running
from utils.engine.launch import cores

GAIN = 0.1  # share of the time that workers must save, as they take memory and a while to start
MOST = 8


class Cost(NamedTuple):
    """Seconds that something takes, and seconds of processor cores that it keeps busy."""

    wall: float
    busy: float


def choose_workers(
    network: nn.Module,
    loaders: list[BaseDataLoader],
    task: BaseTask,
    engine: Engine,
    train_steps: TrainSteps | None = None,
) -> None:
    """Where `num_workers` is "auto", start as many workers as `fitting_workers` says.

    With `train_steps`, the steps by which a batch is trained, otherwise for an evaluation. Networks
    and random numbers are afterwards as they were; a batch was tried before, as the first one takes
    longer. The number changes nothing but the time.

    Args:
        loaders: the first one is measured, all get the workers
    """
    loader = loaders[0]
    is_open = loader.settings["num_workers"] == "auto" and not loader.in_memory
    if not all(distributed.all_gather(is_open)):  # GPUs may differ in what fits into them
        return
    networks, training = [network, *task.networks()], train_steps is not None
    count = len(range(loader.sampler.size(0))[distributed.rank_slice(loader.sampler.size(0))])
    batches = []
    load = _cost(lambda: batches.append(first_samples(loader, max(1, count))))
    batch, model = engine.to_device(batches[0]), Running(engine, network)

    def step() -> None:
        for part in train_steps(model, batch) if training else [task.step(model, batch)]:
            if training:
                part.loss.backward()

    with engine.seeded("rehearsal"), unchanged(networks), unchanged_values(task):
        for one in networks:
            set_training_mode(one) if training else one.eval()
        with torch.set_grad_enabled(training):
            trained = _cost(step, engine.synchronize)
    available = max(1, cores() // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))
    workers = fitting_workers(load, trained, available)
    for each in loaders:
        if not each.in_memory:
            each.set_workers(workers, persistent=training)
    logging.getLogger("data").info(
        f"num_workers: {workers}, as loading a batch takes {load.wall:.1g} s and computing on it "
        f"{trained.wall:.1g} s"
    )


def fitting_workers(load: Cost, step: Cost, available: int) -> int:
    """The fewest workers with which a batch takes about as little time as with any number.

    Without workers, loading and computing take turns. With some, the slower of both counts; and no
    more work is done at a time than there are cores.

    Args:
        load: of a batch, in one process
        step: of the computation on a batch, in the process that trains
        available: cores for both
    """

    def seconds(workers: int) -> float:
        if workers == 0:
            return load.wall + step.wall
        return max(step.wall, load.wall / workers, (load.wall + step.busy) / available)

    times = [seconds(workers) for workers in range(min(MOST, available) + 1)]
    if min(times) > (1 - GAIN) * times[0]:
        return 0
    return next(n for n, duration in enumerate(times) if duration <= 1.05 * min(times))


def _cost(action: Callable[[], object], wait: Callable[[], object] = lambda: None) -> Cost:
    """Of an action, and of waiting for the device, which keeps no core busy."""
    wall, busy = time.perf_counter(), time.process_time()
    action()
    busy = time.process_time() - busy
    wait()
    return Cost(time.perf_counter() - wall, busy)
