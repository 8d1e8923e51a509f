"""A network as it goes into a file, and a file as a network.

Normalization and softmax may be part of the file. Both directions are in this module, because each
must stay the inverse of the other.
"""

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from base.base_data_loader import BaseDataLoader
from exporter.latency import interleaved, spread
from model.heads import main_output
from tester.predictions import is_image
from utils.errors import UserError

Runner = Callable[[np.ndarray], np.ndarray]  # the network in a file: output of a batch
PREPROCESS = "exporter.args.preprocess"


class Deployed(nn.Module):
    """A network with the input and output of an exported file.

    Args:
        network: with `preprocess` it takes normalized float32 (N, C, H, W), else anything
        input_spec: a checkpoint's "input": shape, mean, std, range
        preprocess: take uint8 (N, H, W, C) and normalize it
        softmax: give probabilities (N, classes)

    Raises UserError if `preprocess` is set and the input is not an image, or mean and std are
    unknown.
    """

    def __init__(self, network: nn.Module, input_spec: dict, preprocess: bool, softmax: bool):
        super().__init__()
        self.network, self.preprocess, self.softmax = network, preprocess, softmax
        if preprocess:
            for name, value in zip(("mean", "std"), normalization(input_spec), strict=True):
                self.register_buffer(name, value)
        self.eval()

    def forward(self, data: Tensor) -> Tensor:
        if self.preprocess:
            data = (data.permute(0, 3, 1, 2).float() / 255 - self.mean) / self.std
        output = main_output(self.network(data))
        return output.softmax(1) if self.softmax else output


class ExportedNetwork(nn.Module):
    """An exported file as a network: takes the data loader's batches and gives logits.

    The file is opened once, on the device of the first batch.

    Args:
        name: the file's name in messages
        load: opens the file on a device ("cpu", "cuda:0") and returns a function of a batch
        state: the file's metadata: "input" (shape, mean, std), "classes" (names or None),
            "preprocessed" (it takes uint8 (N, H, W, C)), "softmax" (it gives probabilities)
    """

    is_exported = True

    def __init__(self, name: str, load: Callable[[str], Runner], state: dict):
        super().__init__()
        self.name, self.load = name, load
        self.input_spec, self.classes = state["input"], state["classes"]
        self.preprocess, self.softmax = state["preprocessed"], state["softmax"]
        self._run: Runner | None = None

    def forward(self, data: Tensor) -> Tensor:
        """Raises UserError if the file rejects the data, or has a wrong number of classes."""
        output = torch.from_numpy(self.opened(data.device)(self.raw(data))).to(data.device)
        count = output.shape[1] if output.ndim == 2 else 1
        if self.classes is not None and count not in (1, len(self.classes)):
            raise UserError(f"{self.name} has {count} classes, the data has {len(self.classes)}")
        # every loss, softmax and metric treats log-probabilities like logits
        return output.clamp(min=torch.finfo(output.dtype).tiny).log() if self.softmax else output

    def opened(self, device: torch.device) -> Runner:
        """The file's own function of a batch."""
        if self._run is None:
            self._run = self.load(str(device))
        return self._run

    def raw(self, data: Tensor) -> np.ndarray:
        """Convert the loader's batch to the file's input. Raises UserError."""
        inputs = denormalize(data, self.input_spec) if self.preprocess else data
        return inputs.detach().cpu().contiguous().numpy()

    def measure_speed(
        self, loader: BaseDataLoader, device: torch.device, threads: int
    ) -> dict[str, str | float]:
        """Measure the file on the loader's first batch, in the session that is already open.

        Returns "device", "threads", "p50" and "p95" (milliseconds for one sample), "batch_size"
        and "samples_per_second" (in such batches).
        """
        batch, run = self.raw(next(iter(loader))[0]), self.opened(device)
        times = interleaved({"one": partial(run, batch[:1]), "all": partial(run, batch)})
        return {
            "device": str(device),
            "threads": threads,
            **spread(times["one"]),
            "batch_size": len(batch),
            "samples_per_second": len(batch) / spread(times["all"])["p50"] * 1000,
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
