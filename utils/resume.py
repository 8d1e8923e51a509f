from utils.errors import CheckpointError, UserError

# A run goes on with what its state belongs to; all else (epochs, monitor, workers) may change on the way.
LASTING = ("arch", "optimizer", "lr_scheduler")


def check_continuation(state: dict, config: dict, len_epoch: int) -> None:
    """Raises UserError where `config` cannot go on from the checkpoint `state`, whose epochs had other batches or parts.

    Args:
        state: the checkpoint
        config: the configuration that the run is to go on with
        len_epoch: batches in an epoch from now on
    """
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
