import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
from torch import Tensor, nn

from base import BaseExporter
from exporter.int8 import quantize_static
from utils import onnx_file
from utils.errors import RunError, UserError
from utils.hints import PositiveInt
from utils.latency import silence
from utils.networks import plain_attention

OLDEST, OLDEST_CURRENT = 11, 18  # opsets: of the TorchScript exporter, and of torch's current one
INPUT, OUTPUT, BATCH = "input", "output", "batch"


class OnnxExporter(BaseExporter):
    """One .onnx file that carries everything: weights, and as metadata the classes, the preprocessing, the config.

    Its input is called "input", its output "output"; a batch may have any size.

    Args:
        opset: the version of ONNX's operators; 11 to 17, which older readers like OpenCV want, are written by torch's
            TorchScript exporter, from 18 on its current one writes; null for what that likes best
        method: how int8 finds the range of each activation: all values that occurred, the range that loses the least
            information (KL divergence), or all but the rarest 0.001 %
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

    def export(self, model: nn.Module, example: Tensor, path: Path, metadata: dict[str, Any]) -> None:
        """Raises UserError where the opset cannot be kept, RunError where torch's exporter cannot follow the network."""
        import onnx

        newest = onnx.defs.onnx_opset_version()
        if self.opset is not None and not OLDEST <= self.opset <= newest:
            raise UserError(f"exporter.args.opset: {self.opset} should be {OLDEST} to {newest}")
        write = _write_legacy if self.opset is not None and self.opset < OLDEST_CURRENT else _write
        try:
            with _quiet(), plain_attention():
                write(model, example, path, self.opset)
        except Exception as error:  # what comes out of an exporter depends on where the network lost it
            reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
            raise RunError(f"torch cannot export {metadata.get('arch', type(model).__name__)} to ONNX: {reason}") from error
        written = next(o.version for o in onnx.load(path, load_external_data=False).opset_import if o.domain == "")
        if self.opset not in (None, written):
            raise UserError(f"exporter.args.opset: {self.opset} cannot be kept, this network comes out as {written}")
        onnx_file.write_metadata(path, metadata | {"opset": written})

    def predict(self, path: Path, batch: np.ndarray) -> np.ndarray:
        return self.load(path)(batch)

    def load(self, path: Path, threads: int = 1, device: str = "cpu") -> Callable[[np.ndarray], np.ndarray]:
        return onnx_file.runner(path, threads, device)

    def quantize(self, path: Path, samples: list[np.ndarray], target: Path) -> None:
        """Static QDQ: activations in U8, weights in S8 by channel, what is known of the network kept."""
        metadata = {key: value for key, value in onnx_file.load(path).items() if key != "state_dict"}
        with _quiet():
            quantize_static(path, INPUT, samples, target, self.method)
        onnx_file.write_metadata(target, metadata | {"int8": {"method": self.method, "samples": len(samples)}})


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the libraries' own talk: passes they made, deprecations, advice to do what is done here already."""
    level = logging.root.level
    logging.root.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), silence():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.root.setLevel(level)


def _write(model: nn.Module, example: Tensor, path: Path, opset: int | None) -> None:
    import torch

    shapes = ({0: torch.export.Dim(BATCH, min=1)},)
    program = torch.onnx.export(
        model, (example,), dynamo=True, opset_version=opset, verbose=False,
        input_names=[INPUT], output_names=[OUTPUT], dynamic_shapes=shapes,
    )  # fmt: skip
    program.save(path, external_data=False)


def _write_legacy(model: nn.Module, example: Tensor, path: Path, opset: int | None) -> None:
    import torch

    file = io.BytesIO()
    torch.onnx.export(
        model, (example,), file, dynamo=False, opset_version=opset,
        input_names=[INPUT], output_names=[OUTPUT], dynamic_axes={INPUT: {0: BATCH}, OUTPUT: {0: BATCH}},
    )  # fmt: skip
    path.write_bytes(file.getvalue())
