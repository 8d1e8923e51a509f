"""What an .onnx file says of itself: read like a checkpoint, and run like a network."""

import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from utils.errors import CheckpointError, UserError
from utils.latency import session

SUFFIX = ".onnx"
# What we write, and what it must be. Everything is JSON, also a single text.
HINTS = {"name": str, "arch": str, "epoch": int, "config": dict, "classes": list[str] | None, "input": dict[str, Any],
         "softmax": bool, "preprocess": dict[str, Any] | None, "preprocessed": bool, "inspection": dict[str, Any] | None,
         "macs": int, "parameters": int, "versions": dict[str, str | None] | None}  # fmt: skip


def load(path: Path) -> dict[str, Any]:
    """What a checkpoint would say: the metadata of a file of ours. Raises CheckpointError where it is damaged.

    Of a file made elsewhere "config", "classes" and "input" are None.
    """
    import onnx

    try:
        model = onnx.load(path, load_external_data=False)
    except FileNotFoundError:
        raise CheckpointError(f"there is no file {path}") from None
    except Exception as error:  # protobuf's own kinds differ with its version
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise CheckpointError(f"{path} cannot be read as an ONNX file: {reason}") from error
    if not model.graph.node or not model.graph.output:
        raise CheckpointError(f"{path} cannot be read as an ONNX file: it holds no network")
    said = {entry.key: entry.value for entry in model.metadata_props}
    state = {"state_dict": {}, "arch": model.graph.name, "epoch": 0, "softmax": False, "preprocessed": False}
    if not {"config", "classes", "input"} <= said.keys():
        return state | {"config": None, "classes": None, "input": None}
    try:
        state |= {key: _fitted(key, text) for key, text in said.items()}
    except ValueError as error:
        raise CheckpointError(f"{path}: its metadata are damaged: {error}") from error
    if not isinstance(state["input"].get("shape"), list):
        raise CheckpointError(f'{path}: its metadata are damaged: "input" has no shape')
    return state


def write_metadata(path: Path, metadata: dict[str, Any]) -> None:
    """Replace what the file says of itself, each value as JSON."""
    import onnx

    model = onnx.load(path)
    onnx.helper.set_model_props(model, {key: json.dumps(value, ensure_ascii=False) for key, value in metadata.items()})
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        onnx.save(model, temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def amend(path: Path, **changes: Any) -> None:
    """Change some of what the file says of itself."""
    kept = load(path)
    write_metadata(path, {key: value for key, value in kept.items() if key != "state_dict"} | changes)


def runner(path: Path, threads: int = 1, device: str = "cpu") -> Callable[[np.ndarray], np.ndarray]:
    """The file's network: a function of a batch, in one session. Raises UserError."""
    opened = session(path, threads, device)
    inputs, outputs = opened.get_inputs(), opened.get_outputs()
    if len(inputs) != 1:
        raise UserError(f"{path} takes {len(inputs)} inputs, {', '.join(i.name for i in inputs)}; it should take one")
    return partial(_run, opened, str(path), inputs[0].name, outputs[0].name)


def _run(opened: Any, name: str, given: str, wanted: str, batch: np.ndarray) -> np.ndarray:
    try:
        return opened.run([wanted], {given: batch})[0]
    except Exception as error:  # onnxruntime has a dozen kinds, which share no ancestor of their own
        reason = "; ".join(line.strip() for line in str(error).splitlines() if line.strip())
        size = "x".join(map(str, batch.shape))
        raise UserError(f"{name} cannot take a batch of {size}, {batch.dtype}: {reason}") from error


def _fitted(key: str, text: str) -> Any:
    from utils.check import fit

    try:
        return fit(json.loads(text), HINTS.get(key, Any))
    except ValueError as error:
        raise ValueError(f"{key}: {error}") from error
