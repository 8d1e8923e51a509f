"""Static int8 quantization in onnxruntime with QuantizeLinear and DequantizeLinear (Jacob et al.,
arXiv:1712.05877): activations U8, weights S8 per channel, the combination that is fast without
VNNI.
"""

import tempfile
from pathlib import Path

import numpy as np

STRIDE = 8  # samples whose activations are held in memory at once
METHODS = {"minmax": "MinMax", "entropy": "Entropy", "percentile": "Percentile"}


def quantize_static(
    source: Path, samples: list[dict[str, np.ndarray]], target: Path, method: str
) -> None:
    """Write the .onnx file `source` as int8 to `target`.

    Args:
        source: the .onnx file
        samples: calibration data, batches of 1: its inputs by name
        target: the file to write
        method: one of METHODS, to choose the range of each activation
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
    with tempfile.TemporaryDirectory(prefix="kata-int8-") as folder:
        prepared = Path(folder) / "prepared.onnx"
        # onnx infers the shapes that are needed; symbolic inference fails on some networks
        quant_pre_process(source, prepared, skip_symbolic_shape=True)
        nodes = onnx.load(prepared).graph.node
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
            # 256 steps are too few for a threshold of 0.999: logits and probabilities stay float
            nodes_to_exclude=[n.name for n in nodes if n.op_type in ("Softmax", "LogSoftmax")],
            extra_options=options,
        )
