"""A network as it goes into a file, and a file as a network.

Normalization and softmax may be part of the file. Both directions are in this module, because each
must stay the inverse of the other.
"""

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from exporter.latency import interleaved, spread
from exporter.signature import flatten, leaves, rebuild
from tester.novelty import Distance, before_head
from tester.predictions import is_image
from utils.engine.engine import Call, Tensors, map_tensors
from utils.errors import UserError

# the network in a file: its outputs for a batch of its inputs, by name
Runner = Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]
DISTANCE = "distance"  # the output
PREPROCESS = "exporter.args.preprocess"


class Deployed(nn.Module):
    """A network with the inputs and outputs of an exported file: tensors, none of them nested.

    Args:
        network: with `preprocess` it takes normalized float32 (N, C, H, W), else anything
        call: arguments for it; later calls have other tensors in their places
        input_spec: a checkpoint's "input": shape, mean, std, range
        preprocess: take uint8 (N, H, W, C) and normalize it
        softmax: give probabilities; the network gives one tensor (N, classes)
        measure: of the distance from the training data, which is then a further output

    Raises UserError if `preprocess` is set and the input is not an image, or mean and std are
    unknown.
    """

    def __init__(
        self,
        network: nn.Module,
        call: Call,
        input_spec: dict,
        preprocess: bool,
        softmax: bool,
        measure: Distance | None = None,
    ):
        super().__init__()
        self.measure = measure
        self.network, self.call = network, call
        self.preprocess, self.softmax = preprocess, softmax
        if preprocess:
            shapes = [list(tensor.shape[1:]) for _, tensor in leaves(call)]
            if shapes != [input_spec["shape"]]:
                raise UserError(f"{PREPROCESS}: the network does not take images, but {shapes}")
            for name, value in zip(("mean", "std"), normalization(input_spec), strict=True):
                self.register_buffer(name, value)
        self.eval()

    def forward(self, *inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        if self.preprocess:
            inputs = ((inputs[0].permute(0, 3, 1, 2).float() / 255 - self.mean) / self.std,)
        rest = iter(inputs)
        args, kwargs = map_tensors(self.call, lambda _: next(rest))
        distances = []
        if self.measure is None:
            output = self.network(*args, **kwargs)
        else:
            with before_head(self.network) as features:
                output = self.network(*args, **kwargs)
            distances = [self.measure(features[-1])]
        outputs = [tensor for _, tensor in leaves(output)]
        if self.softmax:
            outputs = [outputs[0].softmax(1)]
        outputs += distances
        return outputs[0] if len(outputs) == 1 else tuple(outputs)


class ExportedNetwork(nn.Module):
    """An exported file as a network: takes what the network takes, and gives what that gives.

    The file is opened once, on the device of the first batch.

    Args:
        name: the file's name in messages
        load: opens the file on a device ("cpu", "cuda:0") and returns a function of a batch
        state: the file's metadata: "input" (shape, mean, std), "classes" (names or None),
            "preprocessed" (it takes uint8 (N, H, W, C)), "softmax" (it gives probabilities),
            "signature"
    """

    is_exported = True

    def __init__(self, name: str, load: Callable[[str], Runner], state: dict):
        super().__init__()
        self.name, self.load, self.signature = name, load, state["signature"]
        self.input_spec, self.classes = state["input"], state["classes"]
        self.preprocess, self.softmax = state["preprocessed"], state["softmax"]
        self.has_distance = "limit" in (state.get("novelty") or {})
        self.distances: list[Tensor] = []  # of the last batch, if the file has them
        self.first: dict[str, np.ndarray] = {}  # the inputs of the first batch
        self._run: Runner | None = None

    def forward(self, *args: Tensors, **kwargs: Tensors) -> Tensors:
        """Raises UserError if the file rejects the data, or has a wrong number of classes."""
        inputs = self.raw(args, kwargs)
        self.first = self.first or inputs
        device = next(tensor.device for _, tensor in leaves((args, kwargs)))
        outputs = self.opened(device)(inputs).items()
        tensors = {name: torch.from_numpy(array).to(device) for name, array in outputs}
        self.distances = [tensors[DISTANCE]] if self.has_distance else []
        output = rebuild(self.signature["result"], tensors)
        count = output.shape[1] if isinstance(output, Tensor) and output.ndim == 2 else 1
        if self.classes is not None and count not in (1, len(self.classes)):
            raise UserError(f"{self.name} has {count} classes, the data has {len(self.classes)}")
        # every loss, softmax and metric treats log-probabilities like logits
        return output.clamp(min=torch.finfo(output.dtype).tiny).log() if self.softmax else output

    def opened(self, device: torch.device) -> Runner:
        """The file's own function of a batch."""
        if self._run is None:
            self._run = self.load(str(device))
        return self._run

    def raw(self, args: tuple, kwargs: dict[str, Tensors]) -> dict[str, np.ndarray]:
        """Convert the network's arguments to the file's inputs. Raises UserError."""
        tensors = flatten(self.signature, args, kwargs, self.name)
        if self.preprocess:
            tensors = {k: denormalize(tensor, self.input_spec) for k, tensor in tensors.items()}
        return {k: tensor.detach().cpu().contiguous().numpy() for k, tensor in tensors.items()}

    def measure_speed(self, device: torch.device, threads: int) -> dict[str, str | float]:
        """Measure the file on the first batch that it saw, in the session that is already open.

        Returns "device", "threads", "p50" and "p95" (milliseconds for one sample), "batch_size"
        and "samples_per_second" (in such batches).
        """
        batch, run = self.first, self.opened(device)
        count = len(next(iter(batch.values())))
        one = {k: part[:1] if part.shape[:1] == (count,) else part for k, part in batch.items()}
        times = interleaved({"one": partial(run, one), "all": partial(run, batch)})
        return {
            "device": str(device),
            "threads": threads,
            **spread(times["one"]),
            "batch_size": count,
            "samples_per_second": count / spread(times["all"])["p50"] * 1000,
        }


def normalization(input_spec: dict) -> tuple[Tensor, Tensor]:
    """Return mean and std (1, C, 1, 1) of a checkpoint's "input".

    Raises UserError if it is not an image's, or has neither.
    """
    mean, std = input_spec.get("mean"), input_spec.get("std")
    if not is_image(shape := input_spec["shape"]):
        raise UserError(f"{PREPROCESS}: the network does not take images, but inputs of {shape}")
    if mean is None or std is None:
        raise UserError(f"{PREPROCESS}: the data loader does not give mean and std")
    return torch.tensor(mean).view(1, -1, 1, 1), torch.tensor(std).view(1, -1, 1, 1)


def denormalize(data: Tensor, input_spec: dict) -> Tensor:
    """Return the images, uint8 (N, H, W, C), that normalization made `data` (N, C, H, W) from.

    Raises UserError if there are none.
    """
    mean, std = normalization(input_spec)
    pixels = (data.cpu() * std + mean) * 255
    rounded = pixels.round()
    if (pixels - rounded).abs().max() > 0.02 or rounded.min() < 0 or rounded.max() > 255:
        raise UserError(f"{PREPROCESS}: the samples are not normalized images of integers 0 to 255")
    return rounded.to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def describe_input(input_spec: dict, transforms: list[str], preprocess: bool) -> dict | None:
    """How other programs make the file's input from an image; None if it does not take images.

    `transforms` are the data loader's, in words.
    """
    if not is_image(input_spec["shape"]):
        return None
    channels, height, width = input_spec["shape"]
    pixels, floats = "uint8 (N, H, W, C)", "float32 (N, C, H, W): (image / 255 - mean) / std"
    scaled = input_spec.get("range")
    if isinstance(scaled, list):
        low, high = (f"{value:.10g}" for value in scaled)
        scaled = f"values clipped to {low}..{high}, then {low} is 0, {high} is 255, and rounded"
    return {
        "colour": "RGB" if channels == 3 else "grey",
        "more than 8 bits": scaled,
        "transforms": transforms,
        "resize": [height, width],
        "interpolation": "bilinear with antialiasing, on uint8, as Pillow's BILINEAR",
        "input": pixels if preprocess else floats,
    }
