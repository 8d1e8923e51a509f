"""A network as it goes into a file, and a file as a network.

Normalization and softmax may be part of the file. Both directions are in this module, because each
must stay the inverse of the other.
"""

import copy
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from data_loader.images import FAR
from data_loader.transforms import unpadded
from exporter.latency import interleaved, spread
from exporter.preprocessing import Decision, ImagePreparation
from exporter.signature import flatten, leaves, output_names, rebuild
from tester.novelty import Distance, before_head
from tester.predictions import is_image
from utils.engine.engine import Call, Tensors, map_tensors
from utils.errors import UserError

# the network in a file: its outputs for a batch of its inputs, by name
Runner = Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]
DISTANCE, DECISION, CONFIDENCE = "distance", "decision", "confidence"  # further outputs
PREPROCESS = "exporter.args.preprocess"
IMAGES = "uint8 (N, H, W, 3), RGB, of any size: the file does all of this but the reading"


class Deployed(nn.Module):
    """A network with the inputs and outputs of an exported file: tensors, none of them nested.

    Args:
        network: with `preprocess` it takes normalized float32 (N, C, H, W), else anything
        call: arguments for it; later calls have other tensors in their places
        input_spec: a checkpoint's "input": shape, mean, std, range
        preprocess: take uint8 (N, H, W, C) and normalize it
        softmax: give probabilities; the network gives one tensor (N, classes)
        preparation: what is done before normalizing, to images of any size
        decision: what to decide, which gives two further outputs; the network is a classifier
        measure: of the distance from the training data, which is then a further output
        half: the network computes in float16; what is before and after it does not

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
        preparation: ImagePreparation | None = None,
        decision: Decision | None = None,
        measure: Distance | None = None,
        half: bool = False,
    ):
        super().__init__()
        self.network = copy.deepcopy(network).half() if half else network
        self.call, self.half_precision = call, half
        self.preprocess, self.softmax = preprocess, softmax
        self.preparation, self.decision, self.measure = preparation, decision, measure
        self.further = [DECISION, CONFIDENCE] if decision else []
        self.further += [DISTANCE] if measure else []
        if preprocess:
            shapes = [list(tensor.shape[1:]) for _, tensor in leaves(call)]
            if shapes != [input_spec["shape"]]:
                raise UserError(f"{PREPROCESS}: the network does not take images, but {shapes}")
            for name, value in zip(("mean", "std"), normalization(input_spec), strict=True):
                self.register_buffer(name, value)
        self.eval()

    def forward(self, *inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        if self.preprocess:
            images = inputs[0].permute(0, 3, 1, 2)
            if self.preparation is not None:
                images = self.preparation(images)
            inputs = ((images.float() / 255 - self.mean) / self.std,)
        rest = iter(inputs)
        args, kwargs = map_tensors(self.call, lambda _: self._cast(next(rest), torch.float16))
        watched = nullcontext() if self.measure is None else before_head(self.network)
        with watched as features:
            output = self.network(*args, **kwargs)
        outputs = [self._cast(tensor, torch.float32) for _, tensor in leaves(output)]
        if self.softmax or self.decision is not None:
            probability = outputs[0].softmax(1)
            outputs = [probability] if self.softmax else outputs
        if self.decision is not None:
            outputs += self.decision(probability)
        if self.measure is not None:
            outputs.append(self.measure(features[-1].float()))
        return outputs[0] if len(outputs) == 1 else tuple(outputs)

    def _cast(self, tensor: Tensor, dtype: torch.dtype) -> Tensor:
        return tensor.to(dtype) if self.half_precision and tensor.is_floating_point() else tensor


class ExportedNetwork(nn.Module):
    """An exported file as a network: takes what the network takes, and gives what that gives.

    The file is opened once, on the device of the first batch.

    Args:
        name: the file's name in messages
        load: opens the file with so many threads on a device ("cpu", "cuda:0") and returns a
            function of a batch
        state: the file's metadata: "input" (shape, mean, std), "classes" (names or None),
            "preprocessed" (it takes uint8 (N, H, W, C)), "softmax" (it gives probabilities),
            "batch" (it takes so many samples at once; None for any number), "signature"
        threads: of one run; 0 for all

    Attributes:
        takes_images: it takes the images as they are decoded, see `padded`
        further: what the file gives beside the network's output, for the last batch, by name
    """

    is_exported = True

    def __init__(
        self, name: str, load: Callable[[int, str], Runner], state: dict, threads: int = 1
    ):
        super().__init__()
        self.name, self.load, self.state, self.threads = name, load, state, threads
        self.signature, self.input_spec = state["signature"], state["input"]
        self.classes, self.softmax = state["classes"], state["softmax"]
        self.preprocess, self.batch = state["preprocessed"], state.get("batch")
        self.takes_images = self.preprocess == "image"
        self.further: dict[str, Tensor] = {}
        self.first: dict[str, np.ndarray] = {}  # the inputs of the first batch
        self._run: Runner | None = None

    def forward(self, *args: Tensors, **kwargs: Tensors) -> Tensors:
        """Raises UserError if the file rejects the data, or has a wrong number of classes."""
        inputs = self.raw(args, kwargs)
        self.first = self.first or inputs[0]
        first = next(tensor for _, tensor in leaves((args, kwargs)))
        results = [self.opened(first.device)(part) for part in inputs]
        tensors = {}
        for name in results[0]:
            parts = [torch.from_numpy(result[name]) for result in results]
            if self.takes_images:  # a fixed batch holds the same one several times
                parts = [part[:1] for part in parts]
            whole = parts[0] if len(parts) == 1 else torch.cat(parts)
            tensors[name] = (whole if self.batch is None else whole[: len(first)]).to(first.device)
        own = output_names(self.signature["result"])
        self.further = {name: part for name, part in tensors.items() if name not in own}
        output = rebuild(self.signature["result"], tensors)
        count = output.shape[1] if isinstance(output, Tensor) and output.ndim == 2 else 1
        if self.classes is not None and count not in (1, len(self.classes)):
            raise UserError(f"{self.name} has {count} classes, the data has {len(self.classes)}")
        # every loss, softmax and metric treats log-probabilities like logits
        return output.clamp(min=torch.finfo(output.dtype).tiny).log() if self.softmax else output

    def opened(self, device: torch.device) -> Runner:
        """The file's own function of a batch."""
        if self._run is None:
            self._run = self.load(self.threads, str(device))
        return self._run

    @property
    def distances(self) -> list[Tensor]:
        """How unlike the training data the last batch's samples are, if the file says so."""
        return [self.further[DISTANCE]] if DISTANCE in self.further else []

    def raw(self, args: tuple, kwargs: dict[str, Tensors]) -> list[dict[str, np.ndarray]]:
        """Convert the network's arguments to batches of the file's inputs: one image each if it
        takes these, as many samples as it takes at once if that is fixed, else all. Raises
        UserError.
        """
        if self.takes_images:
            (_, batch), (_, sizes) = leaves(args)
            [name] = self.signature["inputs"]
            images = unpadded(batch.detach().cpu(), sizes)
            arrays = [image.permute(1, 2, 0).contiguous().numpy()[None] for image in images]
            return [{name: array.repeat(self.batch or 1, 0)} for array in arrays]
        arrays = self.all_samples(args, kwargs)
        if self.batch is None:
            return [arrays]
        count = len(next(iter(arrays.values())))
        rows = np.arange(0, count, self.batch)[:, None] + np.arange(self.batch)
        return [select(arrays, row) for row in rows.clip(max=count - 1)]  # the last one repeatedly

    def all_samples(self, args: tuple, kwargs: dict[str, Tensors]) -> dict[str, np.ndarray]:
        """The file's inputs, whatever the size of its batch. Raises UserError."""
        tensors = flatten(self.signature, args, kwargs, self.name)
        if self.preprocess:
            tensors = {k: denormalize(tensor, self.input_spec) for k, tensor in tensors.items()}
        return {k: part.detach().cpu().contiguous().numpy() for k, part in tensors.items()}

    def measure_speed(self, device: torch.device, threads: int) -> dict[str, str | float]:
        """Measure the file on the first batch that it saw, in the session that is already open.

        Returns "device", "threads", "p50" and "p95" (milliseconds for one sample), "batch_size"
        and "samples_per_second" (in such batches).
        """
        batch, run = self.first, self.opened(device)
        count = len(next(iter(batch.values())))
        one = select(batch, slice(1)) if self.batch is None else batch
        times = interleaved({"one": partial(run, one), "all": partial(run, batch)})
        return {
            "device": str(device),
            "threads": threads,
            **spread(times["one"]),
            "batch_size": count,
            "samples_per_second": count / spread(times["all"])["p50"] * 1000,
        }


def select(arrays: dict[str, np.ndarray], rows: slice | np.ndarray) -> dict[str, np.ndarray]:
    """Some samples of a batch of a file's inputs; an input that is not per sample stays."""
    count = len(next(iter(arrays.values())))
    return {k: part[rows] if part.shape[:1] == (count,) else part for k, part in arrays.items()}


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


def describe_input(
    input_spec: dict, transforms: list[str], preprocess: bool | str, side: int | None = None
) -> dict | None:
    """How other programs make the file's input from an image; None if it does not take images.

    `transforms` are the data loader's, in words; `side` is what it reads images with.
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
        "reduced while reading": side and {"longer than": FAR * side, "shorter side": side},
        "resize": [height, width],
        "interpolation": "bilinear with antialiasing, on uint8, as Pillow's BILINEAR",
        "input": IMAGES if preprocess == "image" else pixels if preprocess else floats,
    }
