"""A network on its way into a file, and a file that stands for a network again.

In a file, normalisation and softmax may be part of the network. Both directions stand here, so that they stay each
other's inverse.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from utils.errors import UserError
from utils.networks import main_output


class Deployed(nn.Module):
    """A network that takes and gives what an exported file does.

    Args:
        network: takes normalised float32 (N, C, H, W) where `preprocess` is True, else anything
        wanted: a checkpoint's "input": shape, mean, std
        preprocess: take uint8 (N, H, W, C), and normalise it
        softmax: give probabilities of (N, classes)

    Raises UserError where the network takes no pictures, or it is not known what to subtract and divide by.
    """

    def __init__(self, network: nn.Module, wanted: dict, preprocess: bool, softmax: bool):
        super().__init__()
        self.network, self.preprocess, self.softmax = network, preprocess, softmax
        if preprocess:
            mean, std = normalisation(wanted)
            self.register_buffer("mean", mean)
            self.register_buffer("std", std)
        self.eval()

    def forward(self, data: Tensor) -> Tensor:
        if self.preprocess:
            data = (data.permute(0, 3, 1, 2).float() / 255 - self.mean) / self.std
        output = main_output(self.network(data))
        return output.softmax(1) if self.softmax else output


class ExportedNetwork(nn.Module):
    """An exported file in a network's place: takes what the data loader gives, and gives logits.

    It is opened on the device where the first batch lies.

    Args:
        name: what to call it in messages
        load: opens it on a device ("cpu", "cuda:0"): a function of a batch
        wanted: a checkpoint's "input": shape, mean, std
        preprocess: it takes uint8 (N, H, W, C)
        softmax: it gives probabilities
        classes: the classes' names, where they are known
    """

    def __init__(
        self,
        name: str,
        load: Callable[[str], Callable[[np.ndarray], np.ndarray]],
        wanted: dict,
        preprocess: bool,
        softmax: bool,
        classes: list[str] | None,
    ):
        super().__init__()
        self.name, self.load, self.wanted = name, load, wanted
        self.preprocess, self.softmax, self.classes = preprocess, softmax, classes
        self._run: Callable[[np.ndarray], np.ndarray] | None = None

    def forward(self, data: Tensor) -> Tensor:
        """Raises UserError where the file cannot take such data, or gives another number of classes than it should."""
        output = torch.from_numpy(self.opened(data.device)(self.raw(data))).to(data.device)
        if self.classes is not None and output.ndim == 2 and output.shape[1] not in (1, len(self.classes)):
            raise UserError(f"{self.name} tells {output.shape[1]} classes apart, but the data have {len(self.classes)}")
        # of log-probabilities every loss, softmax and metric makes what it makes of logits
        return output.clamp(min=torch.finfo(output.dtype).tiny).log() if self.softmax else output

    def opened(self, device: torch.device) -> Callable[[np.ndarray], np.ndarray]:
        """What the file itself does to a batch."""
        if self._run is None:
            self._run = self.load(str(device))
        return self._run

    def raw(self, data: Tensor) -> np.ndarray:
        """What the file itself takes."""
        return (pictures_of(data, self.wanted) if self.preprocess else data).detach().cpu().contiguous().numpy()


def normalisation(wanted: dict) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (1, C, 1, 1) of a checkpoint's "input". Raises UserError where it has none."""
    shape, mean, std = wanted["shape"], wanted.get("mean"), wanted.get("std")
    if len(shape) != 3 or shape[0] not in (1, 3):
        raise UserError(f"exporter.args.preprocess: the network takes no pictures, but inputs of {shape}")
    if mean is None or std is None:
        raise UserError("exporter.args.preprocess: the data loader does not say what it subtracts and divides by")
    return torch.tensor(mean).view(1, -1, 1, 1), torch.tensor(std).view(1, -1, 1, 1)


def pictures_of(data: Tensor, wanted: dict) -> Tensor:
    """The pictures, uint8 (N, H, W, C), that `data`, float (N, C, H, W), was made of. Raises UserError."""
    mean, std = normalisation(wanted)
    pixels = (data.cpu() * std + mean) * 255
    steps = pixels.round()
    if (pixels - steps).abs().max() > 0.02 or steps.min() < 0 or steps.max() > 255:
        raise UserError("exporter.args.preprocess: the samples are no pictures in whole steps from 0 to 255, normalised")
    return steps.to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def describe_preprocessing(wanted: dict, pipeline: Any, preprocess: bool) -> dict[str, Any] | None:
    """How a picture becomes what the file takes, for whoever must do it elsewhere; None where it takes none.

    `pipeline` is the data loader's, where it has one.
    """
    if len(wanted["shape"]) != 3 or wanted["shape"][0] not in (1, 3):
        return None
    channels, height, width = wanted["shape"]
    return {
        "colour": "RGB" if channels == 3 else "grey",
        "transforms": [str(transform) for transform in getattr(pipeline, "transforms", [])],
        "resize": [height, width],
        "interpolation": "bilinear with antialiasing, on uint8, as Pillow's BILINEAR",
        "input": "uint8 (N, H, W, C)" if preprocess else "float32 (N, C, H, W): (picture / 255 - mean) / std",
    }
