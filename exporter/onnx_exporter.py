import contextlib
import copy
import io
import json
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from exporter import onnx_file
from exporter.base_exporter import BaseExporter
from exporter.deployed import Deployed, Runner
from exporter.int8 import quantize_static
from exporter.signature import BATCH, output_names
from model.summary import plain_attention
from utils.config.hints import PositiveInt
from utils.engine.engine import unwrap
from utils.errors import RunError, UserError

HALF = 0.02  # of the largest output; half precision has 11 bits
OLDEST, OLDEST_DYNAMO = 11, 18  # opsets of torch's TorchScript and its dynamo exporter
OPSET = "exporter.args.opset"
OLDER = f"{OPSET}=17 uses torch's older exporter, which can do other networks"
WITHOUT_TRANSFORMS = "exporter.args.preprocess=true leaves the data loader's transforms out of it"


@dataclass(eq=False)
class OnnxExporter(BaseExporter):
    """One self-contained .onnx file: weights and, as metadata, classes, preprocessing and config.

    One input is called "input", one output "output"; several are called as in the network. A batch
    may have any size.

    Args:
        opset: version of ONNX's operators; torch's TorchScript exporter writes 11 to 17, which
            older readers like OpenCV need, and its dynamo exporter writes 18 and above; null for
            torch's default
        method: how int8 chooses the range of each activation: minimum and maximum; the range that
            loses the least information (KL divergence); all but the most extreme 0.001 %
        precision: "fp16" halves the file, and is fast on GPUs and NPUs; on a processor slower
    """

    suffix = onnx_file.SUFFIX

    opset: PositiveInt | None = None
    method: Literal["minmax", "entropy", "percentile"] = "minmax"
    precision: Literal["fp32", "fp16"] = "fp32"

    def __post_init__(self):
        if self.precision == "fp16":
            self.half, self.exact = True, False

    @property
    def tolerance(self) -> float:
        return super().tolerance if self.exact else HALF

    def export(
        self, model: nn.Module, example: dict[str, Tensor], path: Path, metadata: dict
    ) -> None:
        """Raises UserError if the opset is impossible, RunError if torch cannot export `model`."""
        import onnx

        newest = onnx.defs.onnx_opset_version()
        if self.opset is not None and not OLDEST <= self.opset <= newest:
            raise UserError(f"{OPSET}: {self.opset} should be {OLDEST} to {newest}")
        legacy = self.opset is not None and self.opset < OLDEST_DYNAMO
        signature = metadata["signature"]
        if legacy and self.preprocess == "image":
            raise UserError(f'{OPSET}: preprocess "image" needs {OLDEST_DYNAMO} or more')
        try:
            file = onnx.load_from_string(to_onnx(model, example, signature, self.opset, legacy))
        except Exception as error:  # its type depends on where the exporter failed
            name, reason = metadata.get("arch", type(model).__name__), explain(error)
            other = WITHOUT_TRANSFORMS if self.preprocess == "image" else OLDER
            advice = "" if legacy else f"; {other}"
            raise RunError(f"torch cannot export {name} to ONNX: {reason}{advice}") from error
        written = next(entry.version for entry in file.opset_import if entry.domain == "")
        if self.opset not in (None, written):
            raise UserError(f"{OPSET}: {self.opset} does not work for this network, {written} does")
        onnx_file.save(file, path, {}, metadata | {"opset": written})

    def predict(self, path: Path, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return self.load(path)(batch)

    def load(self, path: Path, threads: int = 1, device: str = "cpu") -> Runner:
        return onnx_file.runner(path, threads, device)

    def quantize(self, path: Path, samples: list[dict[str, np.ndarray]], target: Path) -> None:
        """Static QDQ: activations U8, weights S8 per channel; the metadata is kept."""
        import onnx

        file, metadata = onnx.load(path), {"method": self.method, "samples": len(samples)}
        used = {entry.name for entry in file.graph.input}
        signature = json.loads(onnx_file.entries(file)["signature"])
        results = output_names(signature["result"])
        samples = [{name: sample[name] for name in used} for sample in samples]
        with quiet():
            quantize_static(path, samples, target, self.method, results)
        onnx_file.save(onnx.load(target), target, onnx_file.entries(file), {"int8": metadata})


class OpenVinoExporter(OnnxExporter):
    """For Intel's processors: an .onnx file as from OnnxExporter, which OpenVINO reads as it is;
    proof, comparison, test and latency are OpenVINO's.
    """

    stem = "model.openvino"

    def export(
        self, model: nn.Module, example: dict[str, Tensor], path: Path, metadata: dict
    ) -> None:
        super().export(model, example, path, metadata | {"runtime": onnx_file.OPENVINO})

    def load(self, path: Path, threads: int = 1, device: str = "cpu") -> Runner:
        return onnx_file.openvino_runner(path, threads, device)


def onnx_bytes(network: nn.Module, example: Tensor) -> bytes:
    """Return `network` as ONNX, for measuring. `example` is a batch of its input.

    Raises UserError if torch cannot export it.
    """
    network, example = copy.deepcopy(unwrap(network)).cpu().eval(), example.detach().cpu()
    deployed = Deployed(network, ((example,), {}), {}, preprocess=False, softmax=False)
    signature: dict = {"shapes": {"input": [BATCH]}, "result": "output"}
    # The TorchScript exporter takes a tenth of the time; the dynamo exporter does what it cannot.
    for opset, legacy in ((OLDEST_DYNAMO - 1, True), (None, False)):
        try:
            return to_onnx(deployed, {"input": example}, signature, opset, legacy)
        except Exception as error:  # its type depends on where the exporter failed
            failure = error
    name, reason = type(network).__name__, explain(failure)
    raise UserError(f"{name} cannot be exported to ONNX to be measured: {reason}") from failure


def to_onnx(
    model: Deployed, example: dict[str, Tensor], signature: dict, opset: int | None, legacy: bool
) -> bytes:
    """Return `model` as an .onnx file's content, for batches of any size.

    Args:
        model: in evaluation mode
        example: the inputs by name
        signature: says which of their axes are dynamic, and names the outputs
        opset: None for torch's default
        legacy: use torch's TorchScript exporter, not its dynamo exporter
    """
    axes = {
        name: {axis: size for axis, size in enumerate(shape) if isinstance(size, str)}
        for name, shape in signature["shapes"].items()
    }
    outputs = output_names(signature["result"]) + model.further
    is_open = any(BATCH in names.values() for names in axes.values())
    shapes = {"dynamic_axes": axes | {name: {0: BATCH} for name in outputs if is_open}}
    if not legacy:
        shapes = {"dynamic_shapes": (tuple(axes.values()),)}
    file = io.BytesIO()
    with quiet(), plain_attention(), torch.no_grad():
        program = torch.onnx.export(
            model, tuple(example.values()), file if legacy else None, dynamo=not legacy,
            opset_version=opset, verbose=False, external_data=False, input_names=list(axes),
            output_names=outputs, **shapes,
        )  # fmt: skip
        if program is not None:
            for node in program.model.graph.all_nodes():  # torch may have called one like an output
                for value in node.outputs:
                    if value.name in (*axes, *outputs) and not value.is_graph_output():
                        value.name = f"{value.name}.inner"
            program.save(file)
    return file.getvalue()


def explain(error: BaseException) -> str:
    """What went wrong in torch's exporter: advice and stack traces come around it."""
    lines = [line for line in str(error.__cause__ or error).splitlines() if line.strip()]
    end = next((n for n, line in enumerate(lines, 1) if not line.endswith(":")), len(lines))
    return " ".join(lines[:end]) or type(error).__name__


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Suppress the libraries' output: passes, deprecations, advice, and on a failure the network.

    Some of it is printed by C++, past sys.stdout.
    """
    level = logging.root.level
    sys.stdout.flush()
    stdout = os.dup(1)
    with open(os.devnull, "wb") as devnull, warnings.catch_warnings(action="ignore"):
        logging.root.setLevel(logging.ERROR)
        os.dup2(devnull.fileno(), 1)
        try:
            yield
        finally:
            os.dup2(stdout, 1)
            os.close(stdout)
            logging.root.setLevel(level)
