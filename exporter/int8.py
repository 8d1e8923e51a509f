"""8-bit integers in onnxruntime: static quantization with QuantizeLinear and DequantizeLinear (Jacob et al.,
arXiv:1712.05877), activations U8, weights S8 by channel: of the combinations the one that is fast without VNNI.
"""

import tempfile
from pathlib import Path

import numpy as np

PIECE = 8  # samples whose activations are held at once


def quantize_static(source: Path, given: str, samples: list[np.ndarray], target: Path, method: str) -> None:
    """Write `source` in 8 bits to `target`.

    Args:
        source: the .onnx file
        given: its input's name
        samples: what it may be given, batches of 1
        target: the file to write
        method: "minmax", "entropy" or "percentile"
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
            sample = next(self.rest, None)
            return None if sample is None else {given: sample}

    methods = {"minmax": "MinMax", "entropy": "Entropy", "percentile": "Percentile"}
    with tempfile.TemporaryDirectory(prefix="kata-int8-") as folder:
        prepared = Path(folder) / "prepared.onnx"
        quant_pre_process(source, prepared, skip_symbolic_shape=True)  # onnx infers what is needed; that fails on some
        ort.quantize_static(
            prepared,
            target,
            Samples(),
            per_channel=True,
            # 7 bits: without VNNI the sum of two products of 8 bits each overflows, on some machines only
            reduce_range=True,
            activation_type=ort.QuantType.QUInt8,
            weight_type=ort.QuantType.QInt8,
            calibrate_method=ort.CalibrationMethod[methods[method]],
            # 256 steps are too few for a threshold of 0.999: logits and probabilities stay what they are
            nodes_to_exclude=[n.name for n in onnx.load(prepared).graph.node if n.op_type in ("Softmax", "LogSoftmax")],
            extra_options={
                "OpTypesToExcludeOutputQuantization": ["Gemm"],
                "CalibStridedMinMax": _largest_piece(len(samples)),
            },
        )


def _largest_piece(count: int) -> int:
    """The pieces must all be of one size."""
    return next(size for size in range(min(PIECE, count), 0, -1) if count % size == 0)
