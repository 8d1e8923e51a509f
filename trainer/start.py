import tempfile
from typing import Any

from torch import nn

from logger import Recorder, setup_logging
from utils import checkpoint, config_file
from utils.engine import Engine, unwrap
from utils.errors import CheckpointError, UserError
from utils.versions import versions


def start(config: Any) -> tuple[Engine, Recorder]:
    """Begin a run: its folders, the log, the config as used, the machine, the seed.

    With --check the folders are temporary.
    """
    settings = config["trainer"]
    if config.arguments.check:
        # kept on the config, which outlives the run: the folder goes when it does
        config.temporary = tempfile.TemporaryDirectory(prefix="kata-check-")
        settings |= {"save_dir": config.temporary.name, "tensorboard": False}
    setup_logging(config.log_dir)
    if not config.continued:
        config_file.write(config.config | {"versions": versions()}, config.save_dir / "config.json")
    engine = machine(config)
    return engine, Recorder(config.log_dir, settings.get("tensorboard", True))


def start_test(config: Any) -> tuple[Engine, Any]:
    """Prepare a test: the machine, and the loader of the split that --split names. Makes no run folder."""
    setup_logging()
    return machine(config), loader_of(config, config.arguments.split)


def loader_of(config: Any, split: str) -> Any:
    """The loader of "test", "val" or "train" samples, neither shuffled nor augmented. Raises UserError."""
    own = {"test": "test_data_loader", "val": "valid_data_loader"}.get(split)
    loader = config.init_obj(own, subset=split) if own else None
    if loader is None:
        training = config.init_obj("data_loader")
        loader = training.split_validation() if split == "val" else training.of_subset(split)
    if loader is None:
        raise UserError("the configuration sets no validation data apart: set data_loader.args.validation_split")
    return loader


def machine(config: Any) -> Engine:
    """Where the command line and the config want to compute; what differs from that is said."""
    engine = Engine(config.arguments.device, config.get("n_gpu", 1), config.get("seed", 0))
    engine.seed_epoch(0)
    for note in engine.notes:
        config.get_logger("engine").warning(note)
    return engine


def load_model(config: Any) -> nn.Module:
    """The network of the checkpoint that `config.resume` names, ready to evaluate: the averaged one, where there is one.

    Raises CheckpointError where the weights do not fit it.
    """
    state = checkpoint.load(config.resume)
    if not config.continued:  # another config says where the data are; the network stays the checkpoint's
        config.config["arch"] = state["config"]["arch"]
    model = config.init_obj("arch")
    load_weights(model, _evaluated_weights(state), str(config.resume), new_head=False)
    return model.eval()


def load_pretrained(config: Any, model: nn.Module) -> None:
    """For a new run with `-r PATH`: start from that checkpoint's weights. A head of another size starts fresh."""
    if config.resume is None or config.continued:
        return
    weights = _evaluated_weights(checkpoint.load(config.resume))
    fresh = load_weights(model, weights, str(config.resume), new_head=True)
    logger = config.get_logger("start")
    logger.info(
        f"weights of {config.resume}" + (f"; starting fresh, as its size differs: {', '.join(fresh)}" if fresh else "")
    )


def _evaluated_weights(state: dict) -> dict:
    return state["ema"]["state_dict"] if state.get("ema") else state["state_dict"]


def load_weights(model: nn.Module, weights: dict, origin: str, new_head: bool) -> list[str]:
    """Load `weights` into the network; where it may have a `new_head`, one of another size keeps its own values.

    Returns the names of the parameters kept. Raises CheckpointError where the two are different networks.
    """
    network = unwrap(model)
    own = network.state_dict()
    missing, unknown = sorted(own.keys() - weights.keys()), sorted(weights.keys() - own.keys())
    if missing or unknown:
        examples = [f"it lacks {missing[0]}"] * bool(missing) + [f"it has {unknown[0]}"] * bool(unknown)
        raise CheckpointError(f"{origin} holds another network than {type(network).__name__}: {', '.join(examples)}")
    other = [name for name in own if own[name].shape != weights[name].shape]
    # The head is the last layer, and only its number of outputs, the first axis, may differ.
    head = list(own)[-1].rpartition(".")[0] if own else ""
    fits = all(n.rpartition(".")[0] == head and own[n].shape[1:] == weights[n].shape[1:] for n in other)
    if other and not (new_head and fits):
        name = other[0]
        raise CheckpointError(
            f"{origin} does not fit {type(network).__name__}: {name} is {list(weights[name].shape)} there "
            f"and {list(own[name].shape)} here"
        )
    # The loaded dict itself where possible: it carries the layers' versions, which some networks ask for.
    network.load_state_dict({**weights, **{name: own[name] for name in other}} if other else weights)
    return other
