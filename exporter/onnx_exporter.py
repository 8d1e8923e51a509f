import contextlib
import copy
import io
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from exporter import onnx_file
from exporter.base_exporter import BaseExporter
from exporter.deployed import Runner
from exporter.int8 import quantize_static
from model.summary import plain_attention
from utils.config.hints import PositiveInt
from utils.engine.engine import unwrap
from utils.errors import RunError, UserError, first_line

OLDEST, OLDEST_DYNAMO = 11, 18  # opsets of torch's TorchScript and its dynamo exporter
OPSET = "exporter.args.opset"
INPUT, OUTPUT, BATCH = "input", "output", "batch"


class OnnxExporter(BaseExporter):
    """One self-contained .onnx file: weights and, as metadata, classes, preprocessing and config.

    Its input is called "input", its output "output"; a batch may have any size.

    Args:
        opset: version of ONNX's operators; torch's TorchScript exporter writes 11 to 17, which
            older readers like OpenCV need, and its dynamo exporter writes 18 and above; null for
            torch's default
        method: how int8 chooses the range of each activation: minimum and maximum; the range that
            loses the least information (KL divergence); all but the most extreme 0.001 %
    """

    suffix = onnx_file.SUFFIX

    def __init__(
        self,
        opset: PositiveInt | None = None,
        method: Literal["minmax", "entropy", "percentile"] = "minmax",
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.opset, self.method = opset, method

    def export(self, model: nn.Module, example: Tensor, path: Path, metadata: dict) -> None:
        """Raises UserError if the opset is impossible, RunError if torch cannot export `model`."""
        import onnx

        newest = onnx.defs.onnx_opset_version()
        if self.opset is not None and not OLDEST <= self.opset <= newest:
            raise UserError(f"{OPSET}: {self.opset} should be {OLDEST} to {newest}")
        legacy = self.opset is not None and self.opset < OLDEST_DYNAMO
        try:
            file = onnx.load_from_string(to_onnx(model, example, self.opset, legacy))
        except Exception as error:  # its type depends on where the exporter failed
            name, reason = metadata.get("arch", type(model).__name__), first_line(error)
            raise RunError(f"torch cannot export {name} to ONNX: {reason}") from error
        written = next(entry.version for entry in file.opset_import if entry.domain == "")
        if self.opset not in (None, written):
            raise UserError(f"{OPSET}: {self.opset} does not work for this network, {written} does")
        onnx_file.save(file, path, {}, metadata | {"opset": written})

    def predict(self, path: Path, batch: np.ndarray) -> np.ndarray:
        return self.load(path)(batch)

    def load(self, path: Path, threads: int = 1, device: str = "cpu") -> Runner:
        return onnx_file.runner(path, threads, device)

    def quantize(self, path: Path, samples: list[np.ndarray], target: Path) -> None:
        """Static QDQ: activations U8, weights S8 per channel; the metadata is kept."""
        import onnx

        with quiet():
            quantize_static(path, INPUT, samples, target, self.method)
        metadata = {"int8": {"method": self.method, "samples": len(samples)}}
        kept = onnx_file.entries(onnx.load(path))
        onnx_file.save(onnx.load(target), target, kept, metadata)


def onnx_bytes(network: nn.Module, example: Tensor) -> bytes:
    """Return `network` as ONNX, for measuring. `example` is a batch of its input.

    Raises UserError if torch cannot export it.
    """
    network, example = copy.deepcopy(unwrap(network)).cpu().eval(), example.detach().cpu()
    # The TorchScript exporter takes a tenth of the time; the dynamo exporter does what it cannot.
    for opset, legacy in ((OLDEST_DYNAMO - 1, True), (None, False)):
        try:
            return to_onnx(network, example, opset, legacy)
        except Exception as error:  # its type depends on where the exporter failed
            failure = error
    name, reason = type(network).__name__, first_line(failure)
    raise UserError(f"{name} cannot be exported to ONNX to be measured: {reason}") from failure


def to_onnx(model: nn.Module, example: Tensor, opset: int | None, legacy: bool) -> bytes:
    """Return `model` as an .onnx file's content, for batches of any size.

    Args:
        model: in evaluation mode
        example: a batch of its input
        opset: None for torch's default
        legacy: use torch's TorchScript exporter, not its dynamo exporter
    """
    shapes = {"dynamic_axes": {INPUT: {0: BATCH}, OUTPUT: {0: BATCH}}}
    if not legacy:
        shapes = {"dynamic_shapes": ({0: torch.export.Dim(BATCH, min=1)},)}
    file = io.BytesIO()
    with quiet(), plain_attention(), torch.no_grad():
        torch.onnx.export(
            model, (example,), file, dynamo=not legacy, opset_version=opset, verbose=False,
            external_data=False, input_names=[INPUT], output_names=[OUTPUT], **shapes,
        )  # fmt: skip
    return file.getvalue()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Suppress the libraries' output: passes, deprecations, advice, and on a failure the network.

    Some of it is printed by C++, past sys.stdout.
    """
    level = logging.root.level
    sys.stdout.flush()
    stdout = os.dup(1)
    with open(os.devnull, "w") as devnull, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.root.setLevel(logging.ERROR)
        os.dup2(devnull.fileno(), 1)
        try:
            yield
        finally:
            os.dup2(stdout, 1)
            os.close(stdout)
            logging.root.setLevel(level)
