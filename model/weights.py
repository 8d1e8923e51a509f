"""Weights from elsewhere for a network: from torchvision or from any checkpoint."""

import copy
import re
import urllib.error
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.modules.utils import consume_prefix_in_state_dict_if_present

from model.heads import AUXILIARY, find_heads
from utils.checkpoint import load_file, load_into
from utils.engine.engine import unwrap
from utils.errors import CheckpointError, UserError

KEYS = "ema", "state_dict_ema", "model_ema", "state_dict", "model"  # of the weights; averaged first
PREFIXES = "module.", "_orig_mod."  # left behind by DistributedDataParallel and torch.compile
# In torchvision's files: denselayer1.norm.1.weight for today's denselayer1.norm1.weight.
OLD_DENSENET = re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.([12]\.)")


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

    problem = f'arch.weights: "{name}" is not a file, and {builder}'
    try:
        weights = models.get_model_weights(builder)[name]
    except ValueError:
        raise UserError(f"{problem} is not a network of torchvision") from None
    except KeyError:
        available = ", ".join(weights.name for weights in models.get_model_weights(builder))
        raise UserError(f"{problem} has only {available} (or DEFAULT)") from None
    try:
        return weights.get_state_dict(progress=True, check_hash=True, weights_only=True)
    except (urllib.error.URLError, OSError) as error:
        folder = Path(torch.hub.get_dir()) / "checkpoints"
        raise UserError(
            f"arch.weights: {weights.url} could not be downloaded ({error}). "
            f"Put {Path(weights.url).name} into {folder}, or set arch.weights to the path of a file"
        ) from None


def load_weights(
    model: nn.Module,
    weights: dict[str, Tensor],
    origin: str,
    new_head: bool,
    rows: list[int | None] | None = None,
) -> list[str]:
    """Load `weights` into the network; with `new_head`, a head that does not fit starts fresh.

    The head and auxiliary heads may then be missing in `weights`, or have another size or name
    there. Returns the names of the tensors that start fresh. Raises CheckpointError, which names
    `origin`, if anything else does not fit; some weights may be loaded by then.

    Args:
        rows: for each output, the row that it takes of the heads in `weights`, or None to start
            fresh; without rows all are taken as they are
    """
    network, weights = unwrap(model), copy.copy(weights)
    own = network.state_dict()
    for name in list(weights):
        if name not in own and (renamed := OLD_DENSENET.sub(r"\1\2", name)) in own:
            weights[renamed] = weights.pop(name)
    for name in own.keys() & weights.keys():
        shape = own[name].shape
        if len(shape) == 4 and shape[1] == 1 and weights[name].shape == (shape[0], 3, *shape[2:]):
            weights[name] = weights[name].sum(dim=1, keepdim=True)  # for grey images
    heads = tuple(f"{name}." for name in find_heads(network))
    taken = {place: row for place, row in enumerate(rows or []) if row is not None}
    for name in own.keys() & weights.keys() if rows else ():
        if name.startswith(heads) and own[name].shape == (len(rows), *weights[name].shape[1:]):
            theirs, weights[name] = weights[name], own[name].clone()
            weights[name][list(taken)] = theirs[list(taken.values())].to(own[name])
    fresh = _keep_heads(weights, own, heads[0]) if new_head and heads else []
    load_into(network, weights, origin)
    return fresh


def _keep_heads(weights: dict[str, Tensor], own: dict[str, Tensor], head: str) -> list[str]:
    """Replace heads in `weights` that do not fit by the network's `own`; return their names."""
    top = f"{head.partition('.')[0]}."  # of a VGG the whole classifier, whose last layer is `head`
    shared = own.keys() & weights.keys()
    is_missing = not any(name.startswith(top) for name in shared)
    heads = (top if is_missing else head, *AUXILIARY)
    if not shared:
        return []
    unknown = weights.keys() - shared
    heads_there = {name for name in unknown if name.startswith(heads if is_missing else AUXILIARY)}
    layers = {name.rpartition(".")[0] for name in unknown - heads_there}
    if is_missing and len(layers) == 1:  # a head of another name, if it takes the same inputs
        inputs = {_inputs(own[name]) for name in own if name.startswith(top)} - {0}
        heads_there = unknown if inputs & {_inputs(weights[n]) for n in unknown} else heads_there
    for name in heads_there:
        del weights[name]
    fits = {name for name in shared if weights[name].shape == own[name].shape}
    fresh = [name for name in own if name.startswith(heads) and name not in fits]
    weights.update({name: own[name] for name in fresh})
    return fresh


def _inputs(weight: Tensor) -> int:
    """How many numbers a layer takes for one output; 0 if this is not its matrix."""
    return weight[0].numel() if weight.ndim > 1 else 0


def take_channels(network: nn.Module, channels: int) -> None:
    """Adapt a torchvision network for colour images to grey ones; UserError for other numbers."""
    first = next((module for module in network.modules() if isinstance(module, nn.Conv2d)), None)
    is_torchvision = type(network).__module__.startswith("torchvision.")
    if first is None or not is_torchvision or first.in_channels == channels:
        return
    if (first.in_channels, channels) != (3, 1):
        takes = f"{type(network).__name__} takes images of {first.in_channels} channels"
        raise UserError(f"arch: {takes}, not of {channels}")
    weight = first.weight.detach().sum(dim=1, keepdim=True)
    first.in_channels, first.weight = channels, nn.Parameter(weight)
