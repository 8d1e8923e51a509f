"""An .onnx file in int8. What prepares images and what decides stays in float32.

Static quantization in onnxruntime with QuantizeLinear and DequantizeLinear (Jacob et al.,
arXiv:1712.05877): activations U8, weights S8 per channel, the combination that is fast without
VNNI.
"""

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from onnx import ModelProto

STRIDE = 8  # samples whose activations are held in memory at once
METHODS = {"minmax": "MinMax", "entropy": "Entropy", "percentile": "Percentile"}
PREPARED = "std"  # the network's input is what was divided by this
UNSCALED = ("Softmax", "LogSoftmax")  # 256 steps are too few for a threshold of 0.999


def quantize_static(
    source: Path,
    samples: list[dict[str, np.ndarray]],
    target: Path,
    method: str,
    results: list[str],
) -> None:
    """Write the .onnx file `source` as int8 to `target`.

    Args:
        source: the .onnx file
        samples: calibration data, batches of 1: its inputs by name
        target: the file to write
        method: one of METHODS, to choose the range of each activation
        results: the network's own outputs
    """
    import onnx
    from onnxruntime import quantization as ort
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Samples(ort.CalibrationDataReader):
        def __len__(self) -> int:
            return len(samples)

        def set_range(self, start_index: int, end_index: int) -> None:
            self.rest = iter(samples[start_index:end_index])

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.rest, None)

    # the strides must all have one size
    stride = next(n for n in range(min(STRIDE, len(samples)), 0, -1) if len(samples) % n == 0)
    options = {"OpTypesToExcludeOutputQuantization": ["Gemm"], "CalibStridedMinMax": stride}
    with tempfile.TemporaryDirectory(prefix="int8-") as folder:
        prepared = Path(folder) / "prepared.onnx"
        # onnx infers the shapes that are needed; symbolic inference fails on some networks
        quant_pre_process(source, prepared, skip_symbolic_shape=True)
        model = onnx.load(prepared)
        floats = [node.name for node in model.graph.node if node.op_type in UNSCALED]
        ort.quantize_static(
            prepared,
            target,
            Samples(),
            per_channel=True,
            # 7 bits: without VNNI the sum of two 8-bit products overflows, on some machines only
            reduce_range=True,
            activation_type=ort.QuantType.QUInt8,
            weight_type=ort.QuantType.QInt8,
            calibrate_method=ort.CalibrationMethod[METHODS[method]],
            nodes_to_exclude=[*floats, *outside_network(model, results)],
            extra_options=options,
        )


def outside_network(model: "ModelProto", results: list[str]) -> list[str]:
    """The names of the nodes that make the network's input from images, and of those that are not
    needed for its outputs `results`.
    """
    nodes, needed, inside = model.graph.node, set(results), set()
    for node in reversed(nodes):  # each comes after those whose outputs it takes
        if needed.intersection(node.output):
            needed.update(node.input)
    is_prepared = any(tensor.name == PREPARED for tensor in model.graph.initializer)
    outside = []
    for node in nodes:
        if not is_prepared or inside.intersection(node.input):
            inside.update(node.output)
            if needed.intersection(node.output):
                continue
        elif PREPARED in node.input:
            inside.update(node.output)
        outside.append(node.name)
    return outside
