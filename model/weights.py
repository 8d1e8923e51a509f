"""Weights from elsewhere for a network: from torchvision or from any checkpoint."""

import copy
import urllib.error
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.modules.utils import consume_prefix_in_state_dict_if_present

from model.heads import find_head
from utils.checkpoint import load_file
from utils.engine.engine import unwrap
from utils.errors import CheckpointError, UserError

KEYS = "ema", "state_dict_ema", "model_ema", "state_dict", "model"  # of the weights; averaged first
PREFIXES = "module.", "_orig_mod."  # left behind by DistributedDataParallel and torch.compile


def read_weights(path: Path) -> dict[str, Tensor]:
    """The weights in a checkpoint of this template or of another program, averaged if there are.

    Prefixes that wrappers leave behind are removed. Raises CheckpointError if there are no weights.
    """
    state = load_file(path)
    state = state if isinstance(state, dict) else {}
    weights = next((state[key] for key in KEYS if isinstance(state.get(key), dict)), state)
    # A copy rather than a new dict: it keeps the layers' versions, which some networks ask for.
    weights = copy.copy(weights.get("state_dict", weights))
    for name in [name for name, value in weights.items() if not isinstance(value, Tensor)]:
        del weights[name]
    if not weights:
        raise CheckpointError(f"{path} holds no weights")
    for prefix in PREFIXES * 2:  # each may be inside the other
        if all(name.startswith(prefix) for name in weights):
            consume_prefix_in_state_dict_if_present(weights, prefix)
    return weights


def torchvision_weights(builder: str, name: str) -> dict[str, Tensor]:
    """The weights that torchvision offers for one of its networks: "DEFAULT", "IMAGENET1K_V1".

    Downloaded once into torch's cache. Raises UserError, which says which file to put where.
    """
    from torchvision import models

    try:
        weights = models.get_model_weights(builder)[name]
    except ValueError:
        raise UserError(
            f'arch.weights: "{name}" is not a file, and {builder} is not a network of torchvision'
        ) from None
    except KeyError:
        available = ", ".join(models.get_model_weights(builder).__members__)
        raise UserError(
            f'arch.weights: "{name}" is not a file, and {builder} has only {available} (or DEFAULT)'
        ) from None
    try:
        return weights.get_state_dict(progress=True, check_hash=True, weights_only=True)
    except (urllib.error.URLError, OSError) as error:
        folder = Path(torch.hub.get_dir()) / "checkpoints"
        raise UserError(
            f"arch.weights: {weights.url} could not be downloaded ({error}). "
            f"Put {Path(weights.url).name} into {folder}, or set arch.weights to the path of a file"
        ) from None


def load_weights(
    model: nn.Module, weights: dict[str, Tensor], origin: str, new_head: bool
) -> list[str]:
    """Load `weights` into the network; with `new_head`, a head of another size keeps its values.

    The head and auxiliary heads may differ only in the number of outputs (the first axis). Returns
    the names of the parameters kept. Raises CheckpointError, which names `origin`, if the weights
    are of another network; some may be loaded by then.
    """
    network, weights = unwrap(model), copy.copy(weights)
    own, cls = network.state_dict(), type(network).__name__
    for name in own.keys() & weights.keys():
        weights[name] = _fit_channels(weights[name], own[name].shape)
    kept = [name for name in own if name in weights and weights[name].shape != own[name].shape]
    left_out = {name: weights.pop(name) for name in kept}
    missing, unknown = network.load_state_dict(weights, strict=False)
    missing = [name for name in missing if name not in left_out]
    if missing or unknown:
        raise CheckpointError(
            f"{origin} holds another network than {cls}: {len(missing)} of {len(own)} tensors are "
            f"missing and {len(unknown)} unknown, for example {(missing + unknown)[0]}"
        )
    heads = (f"{find_head(network)}.", "aux", "AuxLogits.") if kept else ()
    for name, tensor in left_out.items():
        is_head = name.startswith(heads) and tensor.shape[1:] == own[name].shape[1:]
        if not (new_head and is_head):
            raise CheckpointError(
                f"{origin} does not fit {cls}: {name} is {list(tensor.shape)} there and "
                f"{list(own[name].shape)} here; {len(kept)} of {len(own)} tensors differ in size"
            )
    return kept


def take_channels(network: nn.Module, channels: int) -> None:
    """Adapt a torchvision network for colour images to grey ones; UserError for other numbers."""
    first = next((module for module in network.modules() if isinstance(module, nn.Conv2d)), None)
    is_torchvision = type(network).__module__.startswith("torchvision.")
    if first is None or not is_torchvision or first.in_channels == channels:
        return
    if (first.in_channels, channels) != (3, 1):
        raise UserError(
            f"arch: {type(network).__name__} takes images of {first.in_channels} channels, "
            f"not of {channels}"
        )
    weight = first.weight.detach().sum(dim=1, keepdim=True)
    first.in_channels, first.weight = channels, nn.Parameter(weight)


def _fit_channels(weight: Tensor, shape: torch.Size) -> Tensor:
    """Weights for colour images, summed over the colours where `shape` is for grey images."""
    if weight.ndim == 4 and weight.shape == (shape[0], 3, *shape[2:]) and shape[1] == 1:
        return weight.sum(dim=1, keepdim=True)
    return weight
