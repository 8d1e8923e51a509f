from pathlib import Path

from torch import Tensor, nn

from exporter import onnx_file
from exporter.deployed import Runner
from exporter.onnx_exporter import OnnxExporter


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
