"""An .onnx file: its metadata, read like a checkpoint, and its network in onnxruntime.

This module is the `utils.checkpoint.FileFormat` of such files (exporter/formats.py).
"""

import contextlib
import hashlib
import json
import logging
import zlib
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NotRequired

import numpy as np
from typing_extensions import TypedDict

from utils.contents import TYPES, find_fault
from utils.engine.launch import cores
from utils.errors import CheckpointError, UserError, explained, first_line
from utils.files import atomic_write, write_json

if TYPE_CHECKING:
    from onnx import ModelProto
    from onnxruntime import InferenceSession

    from exporter.deployed import ExportedNetwork, Runner

SUFFIX = ".onnx"
OPENVINO = "openvino"  # the "runtime" of files that are for it
DIGEST, NO_DIGEST = "digest", "no digest yet -- 0123456789abcde"  # as long as a digest


class Signature(TypedDict):
    """How the network's arguments and output become those of the file, see exporter.signature."""

    parameters: list[str]  # forward()'s
    inputs: dict[str, list[str | int]]  # of the file -> place in the arguments
    result: Any
    shapes: NotRequired[dict[str, list[int | str]]]  # of the inputs; what is not fixed has a name
    dtypes: NotRequired[dict[str, str]]


# What we write and read back, each value as JSON text.
HINTS = TYPES | {
    "name": str,
    **dict.fromkeys(("macs", "parameters"), int),
    "softmax": bool,
    "runtime": str,
    "preprocessed": bool | Literal["image"],
    "batch": int | None,
    "decision": dict | None,
    "preprocess": dict | None,
    "task_state": list[str] | None,
    "signature": Signature,
}


def load(path: Path) -> dict:
    """Read the metadata in a checkpoint's terms. Raises CheckpointError if the file is damaged.

    A file from another program has "config", "classes" and "input" None.
    """
    import onnx

    try:
        content = path.read_bytes()
        model = onnx.load_from_string(content)
    except FileNotFoundError:
        raise CheckpointError(f"there is no file {path}") from None
    except Exception as error:  # the type depends on protobuf's version
        reason = first_line(error)
        raise CheckpointError(f"{path} cannot be read as an ONNX file: {reason}") from error
    if not model.graph.node or not model.graph.output:
        raise CheckpointError(f"{path} cannot be read as an ONNX file: it contains no network")
    state = {"state_dict": {}, "arch": model.graph.name, "epoch": 0, "softmax": False,
             "preprocessed": False, "config": None, "classes": None, "input": None,
             "signature": default_signature(model)}  # fmt: skip
    metadata = entries(model)
    if not is_intact(content, metadata):
        raise CheckpointError(
            f"{path} is damaged: its content does not have the digest that it was written with"
        )
    ours = {"config", "classes", "input"} <= metadata.keys()
    known = metadata.keys() if ours else metadata.keys() & {"inspection"}
    for key in known - {DIGEST}:
        try:
            state[key] = json.loads(metadata[key])
        except (ValueError, RecursionError) as error:
            raise CheckpointError(f"{path}: its metadata is damaged: {key}: {error}") from error
    if fault := find_fault(state, HINTS):
        raise CheckpointError(f"{path}: its metadata is damaged: {fault}")
    return state


def default_signature(model: "ModelProto") -> Signature:
    """Of a file without one: its inputs are the arguments, its first output is the result."""
    weights = {tensor.name for tensor in model.graph.initializer}
    names = [entry.name for entry in model.graph.input if entry.name not in weights]
    inputs = {name: [name] for name in names}
    return {"parameters": names, "inputs": inputs, "result": model.graph.output[0].name}


def entries(model: "ModelProto") -> dict[str, str]:
    """Return the metadata as the file has it: text, in our files JSON."""
    return {entry.key: entry.value for entry in model.metadata_props}


def save(model: "ModelProto", path: Path, kept: dict[str, str], metadata: dict) -> None:
    """Write `model` with the entries `kept` and, each value as JSON, `metadata`."""
    import onnx

    texts = {key: json.dumps(value, ensure_ascii=False) for key, value in metadata.items()}
    onnx.helper.set_model_props(model, kept | texts | {DIGEST: json.dumps(NO_DIGEST)})
    for node in model.graph.node:  # torch puts stack traces there: paths of this machine
        node.ClearField("metadata_props")
    content = model.SerializeToString()
    with atomic_write(path) as file:
        file.write(content.replace(NO_DIGEST.encode(), digest(content).encode()))


def digest(content: bytes) -> str:
    """Of a file's whole content, with NO_DIGEST instead of the digest."""
    return hashlib.blake2b(content, digest_size=len(NO_DIGEST) // 2).hexdigest()


def is_intact(content: bytes, metadata: dict[str, str]) -> bool:
    """Whether a file is as it was written; also true of one that has no digest."""
    if DIGEST not in metadata:
        return "novelty" not in metadata  # files that have this have a digest, too
    own = metadata[DIGEST].strip('"')
    return digest(content.replace(own.encode(), NO_DIGEST.encode())) == own


def amend(path: Path, **changes: object) -> None:
    """Change some of the metadata, and with "inspection" the thresholds in a graph that has these.

    Raises UserError if the graph decides about another class.
    """
    import onnx

    from exporter.preprocessing import THRESHOLDS, baked  # imports torch

    model = onnx.load(path)
    kept = entries(model)
    before = json.loads(kept.get("decision", "null"))
    if before is not None and "inspection" in changes:
        changes["decision"] = now = baked(changes["inspection"])
        if now["target"] != before["target"]:
            told = "takes the likeliest class" if before["target"] is None else "is for another"
            raise UserError(
                f"{path}: the decision in its graph {told}; test its checkpoint with this section "
                '"inspection", and export it again'
            )
        for tensor in model.graph.initializer:
            if (name := tensor.name.removeprefix("decision.")) in THRESHOLDS:
                value = np.array(now[name], np.float32)
                tensor.CopyFrom(onnx.numpy_helper.from_array(value, tensor.name))
    save(model, path, kept, changes)
    for report in path.parent.glob("export*.json"):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            content = json.loads(report.read_text("utf-8"))
            if path.name in content["files"]:
                content["files"][path.name] = fingerprint(path)
                write_json(report, content)


def fingerprint(path: Path) -> dict[str, int | str]:
    """Size and checksums, by which another program recognizes the file."""
    content = path.read_bytes()
    digest = hashlib.blake2b(content, digest_size=16).hexdigest()
    return {"bytes": len(content), "crc32": zlib.crc32(content), "blake2b": digest}


def network(path: Path, state: dict, threads: int = 1) -> "ExportedNetwork":
    """Return the file as a network; `state` is what `load` returned.

    Logs a warning if the checkpoint that it was made from is gone, or another one by now.
    """
    from exporter.deployed import ExportedNetwork  # imports torch
    from utils.checkpoint import outdated

    if warning := state["epoch"] and outdated(path, state.get("origin")):  # epoch 0: not ours
        logging.getLogger("export").warning(warning)
    load = openvino_runner if state.get("runtime") == OPENVINO else runner
    return ExportedNetwork(str(path), partial(load, path), state, threads).eval()


def runner(path: Path, threads: int = 1, device: str = "cpu") -> "Runner":
    """Open the file and return its network, see `Runner`. Raises UserError."""
    opened = session(path, threads, device)
    inputs = [entry.name for entry in opened.get_inputs()]
    outputs = [entry.name for entry in opened.get_outputs()]

    def compute(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return dict(zip(outputs, opened.run(outputs, batch), strict=True))

    return partial(_run, path, inputs, compute)


def openvino_runner(path: Path, threads: int = 1, device: str = "cpu") -> "Runner":
    """Open the file in OpenVINO, which computes in float32 on so many threads, 0 for all. Raises
    UserError if it is not installed, or cannot run the network.
    """
    try:
        import openvino
    except ImportError as error:
        raise UserError(f"{path}: openvino is missing: pip install openvino") from error
    if device != "cpu":
        raise UserError(f"{path}: OpenVINO runs on the processor, not on {device}: pass -d cpu")
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads}
    with explained(f"{path} does not work in OpenVINO"):
        network = openvino.Core().compile_model(str(path), "CPU", settings)
    inputs = [entry.any_name for entry in network.inputs]

    def compute(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        results = network(batch)
        return {entry.any_name: np.array(results[entry]) for entry in network.outputs}

    return partial(_run, path, inputs, compute)


def _run(
    path: Path, inputs: list[str], compute: "Runner", batch: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Give `compute` the inputs that the file has: torch leaves out what the network ignores."""
    used = {name: batch[name] for name in inputs if name in batch}
    try:
        return compute(used)
    except Exception as error:  # onnxruntime's dozen types share no base class
        shapes = [f"{'x'.join(map(str, part.shape))}, {part.dtype}" for part in used.values()]
        reason = " ".join(str(error).split())
        message = f"{path} cannot take a batch of {'; '.join(shapes)}: {reason}"
        raise UserError(message) from error


def session(model: Path | bytes, threads: int = 1, device: str = "cpu") -> "InferenceSession":
    """Open an .onnx file, or the bytes of one, in onnxruntime.

    Args:
        model: the file, or its bytes
        threads: threads that compute one run; 0 for one for each core
        device: "cpu", or in torch's words "cuda" or "cuda:1"

    Raises UserError if it is not an ONNX file, or onnxruntime cannot use the device.
    """
    import onnxruntime

    name = "the ONNX model" if isinstance(model, bytes) else str(model)
    if threads < 0:
        raise UserError(f"--threads {threads}: should be a number of threads, or 0 for all")
    if not isinstance(model, bytes) and not model.is_file():
        raise UserError(f"there is no file {model}")
    kind, _, number = device.partition(":")
    provider = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}[kind]
    present = ", ".join(onnxruntime.get_available_providers())
    missing = f"{provider} is missing, there is only {present}; install {{}}, or pass -d cpu"
    if provider not in onnxruntime.get_available_providers():
        raise UserError(missing.format("onnxruntime-gpu in place of onnxruntime"))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or cores()
    options.log_severity_level = 4  # whatever matters also raises an exception
    # Spinning threads slow down the next session: 132 ms instead of 25 for a ResNet-18.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    settings = {"device_id": number or "0", "use_tf32": "0"} if kind == "cuda" else {}
    with explained(f"{name} cannot be read as an ONNX file"):
        opened = onnxruntime.InferenceSession(model, options, providers=[(provider, settings)])
    if provider not in opened.get_providers():  # its libraries failed to load
        raise UserError(missing.format("the CUDA and cuDNN versions it needs"))
    return opened
