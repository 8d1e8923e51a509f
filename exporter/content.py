"""What goes into an exported file: the network with what surrounds it, and the metadata."""

from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from base.samples import spaced
from exporter.base_exporter import BaseExporter
from exporter.deployed import Deployed, ExportedNetwork, describe_input
from exporter.evaluator import Evaluator
from exporter.preprocessing import Decision, ImagePreparation, baked
from exporter.signature import BATCH, build_signature, find_shapes, leaves
from model.summary import count
from tester.novelty import Distance
from utils.engine.engine import Call, Tensors
from utils.errors import UserError
from utils.versions import versions

PROBES = 16  # batches of two, and as many of one, that tell which axes are dynamic


def export_network(
    exporter: BaseExporter, evaluator: Evaluator, path: Path, origin: dict
) -> tuple[ExportedNetwork, dict]:
    """Write the evaluator's network to `path`; return the file as a network, and its metadata.

    `origin` is the file's record, from `utils.checkpoint.origin_beside`.
    """
    positions, network = spaced(len(evaluator.loader.dataset), PROBES), evaluator.network.cpu()
    chunks = [*map(list, pairwise([*positions, 0])), *([position] for position in positions)]
    calls = evaluator.calls(evaluator.loader, chunks)
    longest = max(calls[: len(positions)], key=lambda c: sum(t.numel() for _, t in leaves(c)))
    size, output = count(network, *longest[0], **longest[1])
    metadata = describe(exporter, evaluator, output) | size | {"origin": origin}
    deployed = deploy(exporter, evaluator, longest, output, metadata)
    metadata["signature"] = build_signature(network, longest, output)
    state, load = evaluator.state | metadata, partial(exporter.load, path)
    exported = ExportedNetwork(path.name, load, state, evaluator.threads)
    example = find_example(exported, evaluator, calls, list(map(len, chunks)))
    exporter.export(deployed, example, path, metadata)
    return exported, metadata


def deploy(
    exporter: BaseExporter, evaluator: Evaluator, call: Call, output: Tensors, metadata: dict
) -> Deployed:
    """The network with what the file does before and after it. Raises UserError if it cannot.

    Args:
        exporter: says what that is
        evaluator: of the network
        call: arguments for the network
        output: what it gives for these
        metadata: of the file
    """
    if exporter.softmax and not (isinstance(output, Tensor) and output.ndim > 1):
        raise UserError("exporter.args.softmax: the output is not (N, classes)")
    state, preparation, decision, measure = evaluator.state, None, None, None
    if exporter.distance:
        novelty = state.get("novelty")
        if not novelty or "means" not in novelty:
            raise UserError(
                "exporter.args.distance: the checkpoint has none; test it first, with a section "
                '"inspection"'
            )
        measure = Distance(novelty)
    if exporter.preprocess == "image":
        pipeline = evaluator.decoded.samples.pipeline
        preparation = ImagePreparation(pipeline, state["input"]["shape"][0])
    if metadata["decision"] is not None:
        decision = Decision(metadata["decision"], metadata["classes"])
    settings = state["input"], exporter.preprocess, exporter.softmax, preparation, decision, measure
    return Deployed(evaluator.network, call, *settings, half=exporter.half)


def find_example(
    exported: ExportedNetwork, evaluator: Evaluator, calls: list[Call], counts: list[int]
) -> dict[str, Tensor]:
    """The file's inputs for the longest of `calls`, which have so many samples as `counts` says;
    adds shapes and dtypes to the file's signature: an axis that is dynamic has a name.
    """
    batch, signature = exported.batch, exported.signature
    if exported.takes_images:
        [call] = evaluator.calls(evaluator.decoded, [[0]])
        [image] = exported.raw(*call)
        example = {name: part[:1].repeat(batch or 2, 0) for name, part in image.items()}
        shapes = {name: [BATCH, "height", "width", 3] for name in example}
    else:
        inputs = [exported.all_samples(*call) for call in calls]
        shapes = find_shapes(inputs, counts)
        longest = max(inputs, key=lambda arrays: sum(part.size for part in arrays.values()))
        rows = np.arange(batch or 2) % 2
        example = {n: p[rows] if shapes[n][:1] == [BATCH] else p for n, p in longest.items()}
    if batch:
        shapes = {n: [batch if size == BATCH else size for size in s] for n, s in shapes.items()}
    signature["shapes"] = shapes
    signature["dtypes"] = {name: str(array.dtype) for name, array in example.items()}
    return {name: torch.from_numpy(array) for name, array in example.items()}


def describe(exporter: BaseExporter, evaluator: Evaluator, output: Tensors) -> dict:
    """The metadata of the file for a network that gives such an output."""
    state, config = evaluator.state, evaluator.config
    pipeline = getattr(evaluator.loader.samples, "pipeline", None)
    transforms = [str(transform) for transform in getattr(pipeline, "transforms", [])]
    side = getattr(getattr(evaluator.loader, "read", None), "keywords", {}).get("side")
    names, copied = state["classes"], ("arch", "epoch", "input", "inspection", "versions")
    is_per_class = isinstance(output, Tensor) and output.shape[1:2] == (len(names or ()),)
    classes = names if is_per_class else None  # an embedding has none
    decision, novelty = None, state.get("novelty")
    if exporter.preprocess == "image" and classes and evaluator.task.classifies:
        decision = baked(state.get("inspection"))
    plain = ("appearance", "labels", *(("limit", "rank", "samples") if exporter.distance else ()))
    kept = [part for parts in state.get("kept", {}).values() for part in parts]
    settings = state["input"], transforms, exporter.preprocess, side
    return {key: state.get(key) for key in copied} | {
        "name": config["name"],
        "classes": classes,
        "preprocessed": exporter.preprocess,
        "preprocess": describe_input(*settings),
        "softmax": exporter.softmax,
        "batch": exporter.batch,
        "decision": decision,
        "novelty": novelty and {name: novelty[name] for name in plain if name in novelty},
        "task_state": [name for name in kept if name.startswith("task.")],
        "pruning": narrowed_layers(state.get("structure")),
        "exported_with": versions(),
        "config": config.config,
    }


def narrowed_layers(structure: dict | None) -> dict[str, list[int]] | None:
    """Return [built, now], numbers of outputs, of each layer that has fewer than it was built with.

    `structure` is the checkpoint's; None if it has none, as all layers are as built.
    """
    return structure and {
        name.removesuffix(".weight"): [built[0], now[0]]
        for name, (built, now) in structure["shapes"].items()
        if len(now) > 1 and built[0] != now[0]
    }
