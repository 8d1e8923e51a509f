"""Weights from elsewhere into a network: torchvision's, or any checkpoint's."""

import urllib.error
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from utils.checkpoint import load_file
from utils.engine import unwrap
from utils.errors import CheckpointError, UserError

PREFIXES = ("module.", "_orig_mod.")


def read_weights(path: Path) -> dict[str, Tensor]:
    """The weights in a checkpoint of ours or of others: the averaged ones, `state_dict`, `model`, or all there is.

    Prefixes that wrappers leave behind are taken off. Raises CheckpointError.
    """
    state = load_file(path)
    for key in ("ema", "state_dict_ema", "model_ema", "state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key].get("state_dict", state[key]) if key == "ema" else state[key]
            break
    tensors = {k: v for k, v in state.items() if isinstance(v, Tensor)} if isinstance(state, dict) else {}
    if not tensors:
        raise CheckpointError(f"{path} holds no weights")
    for prefix in PREFIXES * 2:
        if all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return tensors


def torchvision_weights(builder: str, name: str) -> dict[str, Tensor]:
    """The weights that torchvision offers for one of its networks: "DEFAULT", "IMAGENET1K_V1".

    Kept in torch's cache once they were fetched. Raises UserError, which says which file to put where.
    """
    from torchvision import models

    try:
        offered = models.get_model_weights(builder)
    except ValueError:
        raise UserError(f'arch.weights: "{name}" is no file, and {builder} is no network of torchvision') from None
    if name not in offered.__members__:
        there = ", ".join(offered.__members__)
        raise UserError(f'arch.weights: "{name}" is no file, and {builder} has only {there} (or DEFAULT)')
    weights = offered[name]
    try:
        return weights.get_state_dict(progress=True, check_hash=True, weights_only=True)
    except (urllib.error.URLError, OSError) as error:
        folder = Path(torch.hub.get_dir()) / "checkpoints"
        raise UserError(
            f"arch.weights: {weights.url} could not be fetched ({error}). "
            f"Put {Path(weights.url).name} into {folder}, or give arch.weights the path of a file"
        ) from None


def load_weights(model: nn.Module, weights: dict[str, Any], origin: str, new_head: bool) -> list[str]:
    """Load `weights` into the network; where a `new_head` may be needed, layers of another size keep their own values.

    Only the number of outputs (the first axis) may differ, and only in the head and in auxiliary heads. Returns the
    names of the parameters kept. Raises CheckpointError where the two are different networks.
    """
    from utils.networks import head_of

    network = unwrap(model)
    own = network.state_dict()
    missing, unknown = sorted(own.keys() - weights.keys()), sorted(weights.keys() - own.keys())
    if missing or unknown:
        example = f"it lacks {missing[0]}" if missing else f"it has {unknown[0]}"
        raise CheckpointError(f"{origin} holds another network than {type(network).__name__}: {example}")
    weights = _with_channels(weights, own)
    other = [name for name in own if own[name].shape != weights[name].shape]
    heads = (f"{head_of(network)}.", "aux", "AuxLogits.") if other else ()
    fits = all(name.startswith(heads) and own[name].shape[1:] == weights[name].shape[1:] for name in other)
    if other and not (new_head and fits):
        name = next((n for n in other if not n.startswith(heads)), other[0])
        raise CheckpointError(
            f"{origin} does not fit {type(network).__name__}: {name} is {list(weights[name].shape)} there "
            f"and {list(own[name].shape)} here"
        )
    # The loaded dict itself where possible: it carries the layers' versions, which some networks ask for.
    network.load_state_dict({**weights, **{name: own[name] for name in other}} if other else weights)
    return other


def _with_channels(weights: dict[str, Tensor], own: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights for colour pictures given to a network for grey ones: summed over the colours, which is the same."""
    grey = [n for n in own if weights[n].ndim == 4 and weights[n].shape[1] == 3 and own[n].shape[1] == 1]
    grey = [n for n in grey if own[n].shape == (weights[n].shape[0], 1, *weights[n].shape[2:])]
    return {**weights, **{n: weights[n].sum(dim=1, keepdim=True) for n in grey}} if grey else weights
