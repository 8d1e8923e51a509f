"""A trainer's state, as a checkpoint holds it."""

from typing import Any

from utils import distributed, randomness
from utils.engine import unwrap
from utils.errors import CheckpointError, UserError
from utils.structure import structure_of
from utils.versions import versions

# A run goes on with what its state belongs to; all else (epochs, monitor, workers) may change on the way.
LASTING = ("arch", "optimizer", "lr_scheduler")


def state_of(trainer: Any) -> dict:
    """Everything that a BaseTrainer goes on from, and what others want to know of its network, as plain data."""
    network = unwrap(trainer.model)
    return {
        "arch": type(network).__name__,
        "epoch": trainer.epoch,
        "state_dict": network.state_dict(),
        "optimizer": trainer.optimizer.state_dict(),
        "monitor_best": trainer.monitor.best,
        "config": trainer.config.config,
        "lr_scheduler": trainer.schedule.state_dict(),
        "scaler": trainer.engine.scaler.state_dict() or None,
        "ema": trainer.ema and {"n_averaged": int(trainer.ema.n_averaged), "state_dict": trainer.ema.module.state_dict()},
        "trainer": {
            "step": trainer.step,
            "monitor": trainer.monitor.state_dict(),
            "processes": distributed.world_size(),
            # each process's own; what is drawn after an epoch's end follows from the seed
            "generators": distributed.of_all(randomness.torchs_state(trainer.engine.device) if trainer.step else None),
        },
        "rng": randomness.get_state(),
        "structure": structure_of(network),
        "classes": trainer.data_loader.classes,
        "input": trainer.data_loader.input,
        "versions": versions(),
    }


def go_on_from(trainer: Any, state: dict) -> None:
    """Let a BaseTrainer become the one that `state` was taken from. Raises UserError where it is another one."""
    _check(state, trainer.config.config, trainer.len_epoch)
    unwrap(trainer.model).load_state_dict(state["state_dict"])
    trainer.engine.load_optimizer(trainer.optimizer, state["optimizer"])
    if state.get("scaler"):
        trainer.engine.scaler.load_state_dict(state["scaler"])
    trainer.schedule.load_state_dict(state["lr_scheduler"])
    trainer.monitor.load_state_dict(state["trainer"]["monitor"])
    if trainer.ema is not None and state["ema"] is not None:
        trainer.ema.module.load_state_dict(state["ema"]["state_dict"])
        trainer.ema.n_averaged.fill_(state["ema"]["n_averaged"])
    trainer.epoch, trainer.step = state["epoch"], state["trainer"]["step"]
    randomness.set_state(state["rng"])
    before, now = state["trainer"].get("processes", 1), distributed.world_size()
    if before != now:
        trainer.engine.seed_share(trainer.epoch, trainer.step)
        trainer.logger.warning(
            f"it was trained by {before} {'process' if before == 1 else 'processes'}, and goes on with {now}: the same "
            "samples in the same batches, but sums are made in another order, so that last bits may differ"
        )
    elif now > 1 and trainer.step:
        randomness.set_torchs_state(state["trainer"]["generators"][distributed.rank()], trainer.engine.device)


def _check(state: dict, config: dict, len_epoch: int) -> None:
    """Raises UserError where `config`, with so many batches in an epoch, cannot go on from the checkpoint `state`."""
    for section in LASTING:
        if state["config"].get(section) != config.get(section):
            raise UserError(
                f"{section}: a run goes on with what it began with; for another {section} start a new run "
                "from its weights: -r PATH -c FILE"
            )
    if missing := {"optimizer", "lr_scheduler", "trainer", "rng"} - state.keys():
        raise CheckpointError(f"it lacks {', '.join(sorted(missing))}; -r PATH -c FILE starts a new run from its weights")
    if state["trainer"]["step"] > len_epoch:
        raise UserError(
            f"the run stopped after batch {state['trainer']['step']} of an epoch, which now has {len_epoch}: "
            "go on with the batch size and data it had"
        )
