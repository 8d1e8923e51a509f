"""How long a network takes in onnxruntime: one place that makes its sessions, and a fair comparison of several."""

import contextlib
import copy
import functools
import math
import os
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from utils.errors import UserError


def session(model: Path | bytes, threads: int = 1, device: str = "cpu") -> Any:
    """An onnxruntime InferenceSession of a file, or of what a file would hold.

    Args:
        model: the file, or its bytes
        threads: how many compute one run; 0 for as many as onnxruntime thinks right
        device: "cpu", or as torch says it "cuda" or "cuda:1"

    Raises UserError where it is no ONNX file, or onnxruntime cannot compute on the device.
    """
    import onnxruntime

    if threads < 0:
        raise UserError(f"--threads {threads}: should be a number of threads, or 0 for all")
    name = "the ONNX model" if isinstance(model, bytes) else str(model)
    if not isinstance(model, bytes) and not Path(model).is_file():
        raise UserError(f"there is no file {model}")
    kind, _, number = device.partition(":")
    provider = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}[kind]
    here = onnxruntime.get_available_providers()
    absent = f"{provider} is missing: this onnxruntime computes by {', '.join(here)} only; install {{}}, or say -d cpu"
    if provider not in here:
        raise UserError(absent.format("onnxruntime-gpu in place of onnxruntime"))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # what it has to say that matters comes as an exception
    # Threads that wait in a loop take the processor from the next session: 132 ms in place of 25 for a ResNet-18.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        made = onnxruntime.InferenceSession(
            model if isinstance(model, bytes) else str(model),
            options,
            providers=[(provider, {"device_id": number or "0", "use_tf32": "0"} if kind == "cuda" else {})],
        )
    except Exception as error:  # onnxruntime has a dozen kinds, which share no ancestor of their own
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(f"{name} cannot be read as an ONNX file: {reason}") from error
    if provider not in made.get_providers():  # its libraries could not be loaded, and it went on without
        raise UserError(absent.format("the CUDA and cuDNN it wants"))
    return made


def interleaved(functions: Mapping[str, Callable[[], Any]], rounds: int, warm_up: int = 3) -> dict[str, list[float]]:
    """Milliseconds of each function in each round.

    A round calls each of them once, in another order each time, so that what else the machine does meets all alike, and
    none always follows the same other. The first `warm_up` rounds do not count.
    """
    order, generator = list(functions), random.Random(0)
    times: dict[str, list[float]] = {name: [] for name in functions}
    for number in range(warm_up + rounds):
        generator.shuffle(order)
        for name in order:
            begun = time.perf_counter()
            functions[name]()
            if number >= warm_up:
                times[name].append((time.perf_counter() - begun) * 1000)
    return times


def ratio(times: Mapping[str, list[float]], name: str, reference: str) -> float:
    """How long `name` takes as a multiple of `reference`: the median over the rounds."""
    return statistics.median(one / other for one, other in zip(times[name], times[reference], strict=True))


def spread(times: list[float]) -> dict[str, float]:
    """{"p50", "p95"}: the times, in milliseconds, that half and 95 % of the runs did not exceed."""
    ordered = sorted(times)
    return {"p50": statistics.median(ordered), "p95": ordered[math.ceil(0.95 * len(ordered)) - 1]}


def enough_rounds(functions: Mapping[str, Callable[[], Any]], seconds: float = 3.0) -> int:
    """How many rounds of these take about so long: 20 at least, 200 at most. Calls each of them once."""
    begun = time.perf_counter()
    for function in functions.values():
        function()
    return max(20, min(200, int(seconds / (time.perf_counter() - begun))))


def side_by_side(files: Mapping[str, bytes], batch: Any, threads: int, **others: Callable) -> dict[str, list[float]]:
    """Milliseconds of one run of each file, by its name, on the same `batch`; of `others` too, in the same rounds."""
    inputs = {"input": batch.cpu().numpy()}
    runs = {name: functools.partial(session(file, threads).run, None, inputs) for name, file in files.items()}
    return interleaved(runs | others, enough_rounds(runs))


def onnx_bytes(network: Any, example: Any) -> bytes:
    """The network as ONNX, to be measured, not to be kept. `example` is a batch of what it takes.

    Raises UserError where torch cannot write it.
    """
    import io
    import warnings

    import torch

    from utils.engine import unwrap
    from utils.networks import plain_attention

    network, example = copy.deepcopy(unwrap(network)).cpu().eval(), example.detach().cpu()
    with warnings.catch_warnings(), plain_attention(), torch.no_grad(), silence():
        warnings.simplefilter("ignore")
        # The TorchScript exporter needs a tenth of the time; what it cannot follow the current one can.
        for options in ({"dynamo": False, "opset_version": 17, "dynamic_axes": {"input": {0: "batch"}}},
                        {"dynamo": True, "verbose": False, "dynamic_shapes": ({0: "batch"},)}):  # fmt: skip
            file = io.BytesIO()
            try:
                torch.onnx.export(network, (example,), file, input_names=["input"], output_names=["output"], **options)
                return file.getvalue()
            except Exception as error:  # of whatever kind the network, torch or onnx has for it
                failure = error
    reason = next(iter(str(failure).splitlines()), type(failure).__name__)
    raise UserError(f"{type(network).__name__} cannot be written as ONNX to be measured: {reason}") from failure


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Nothing reaches the screen, not even from C++: torch's exporter prints the whole network when it fails."""
    sys.stdout.flush()
    kept = os.dup(1)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        try:
            yield
        finally:
            os.dup2(kept, 1)
            os.close(kept)
