from pathlib import Path

import numpy as np
from torch import Tensor, nn

from exporter.deployed import Runner
from exporter.onnx_exporter import OnnxExporter
from utils.errors import UserError, first_line


class OpenVinoExporter(OnnxExporter):
    """For Intel's processors: an .onnx file as from OnnxExporter, which OpenVINO reads as it is;
    proof, comparison, test and latency are OpenVINO's.
    """

    stem = "model.openvino"

    def export(
        self, model: nn.Module, example: dict[str, Tensor], path: Path, metadata: dict
    ) -> None:
        super().export(model, example, path, metadata | {"runtime": "openvino"})

    def load(self, path: Path, threads: int = 1, device: str = "cpu") -> Runner:
        return openvino_runner(path, threads, device)


def openvino_runner(path: Path, threads: int = 1, device: str = "cpu") -> Runner:
    """Open an .onnx file in OpenVINO, with float32 and on so many threads, 0 for all. Raises
    UserError if it is not installed, or cannot run the network.
    """
    try:
        import openvino
    except ImportError as error:
        raise UserError("OpenVinoExporter: openvino is missing: pip install openvino") from error
    if device != "cpu":
        raise UserError(f"OpenVinoExporter: runs on the processor, not on {device}: pass -d cpu")
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads}
    try:
        network = openvino.Core().compile_model(str(path), "CPU", settings)
    except RuntimeError as error:
        raise UserError(f"{path} does not work in OpenVINO: {first_line(error)}") from error
    inputs = [entry.any_name for entry in network.inputs]

    def run(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        try:
            results = network({name: batch[name] for name in inputs})
        except RuntimeError as error:
            raise UserError(f"{path} cannot take the batch: {first_line(error)}") from error
        return {entry.any_name: np.array(results[entry]) for entry in network.outputs}

    return run
