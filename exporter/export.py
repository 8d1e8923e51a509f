import json
import logging
import math
import os
import tempfile
from functools import partial
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from exporter.base_exporter import BaseExporter
from exporter.deployed import Deployed, ExportedNetwork, describe_input
from exporter.evaluator import Evaluator, spaced
from exporter.latency import interleaved, spreads
from exporter.proof import SIZES, prove
from exporter.signature import build_signature, find_shapes, leaves
from logger.files import aligned, threads_in_words
from model.summary import count
from tester.novelty import Distance
from utils.checkpoint import origin_beside, output_dir
from utils.config.config import ConfigParser
from utils.errors import RunError, UserError, explained
from utils.files import remove_leftovers, temporary_suffix, write_text
from utils.versions import versions

CALIBRATION = 128  # training samples
PROBES = 16  # batches of two, and as many of one, that tell which axes are dynamic


class Export:
    """Writes a file, proves it, quantizes it, measures it and reports the results.

    A file gets its final name only after its proof; one that fails is called `.failed`. If the
    evaluator is of --check, all files are temporary.

    Args:
        exporter: writes the format
        evaluator: of the checkpoint
        output: file or folder to write to; None for model.* beside the checkpoint

    Raises UserError if the network is an exported file, or `output` has another format's suffix.
    """

    def __init__(self, exporter: BaseExporter, evaluator: Evaluator, output: Path | None = None):
        resume, suffix = evaluator.config.resume, exporter.suffix
        if isinstance(evaluator.network, ExportedNetwork):
            raise UserError(f"{resume} is exported already: pass the checkpoint it was made from")
        if output is None or output.is_dir():
            output = (output or output_dir(resume)) / f"model{suffix}"
        if output.suffix != suffix:
            name = type(exporter).__name__
            raise UserError(f"-o {output}: {name} writes files that end in {suffix}")
        if not evaluator.check:
            output.parent.mkdir(parents=True, exist_ok=True)
            remove_leftovers(output.parent)
        self.exporter, self.evaluator = exporter, evaluator
        self.logger = logging.getLogger("export")
        # Files are in this folder until they are proven; it is removed with this object.
        folder = None if evaluator.check else output.parent
        suffix = temporary_suffix()
        self.work = tempfile.TemporaryDirectory(prefix=".export-", suffix=suffix, dir=folder)
        self.path = self._unproven(output) if evaluator.check else output
        self.written: list[Path] = []
        self.failures: list[str] = []
        self.report: dict = {"checkpoint": resume.name, "split": evaluator.split, "metrics": {}}
        self.report["origin"] = origin_beside(self.path, resume, evaluator.state)

    def write(self) -> None:
        """Write the file."""
        path, origin = self._unproven(self.path), self.report["origin"]
        written = export_network(self.exporter, self.evaluator, path, origin)
        self.exported, self.report["metadata"] = written

    def prove(self) -> None:
        """Compare the file with the network on real samples, and evaluate both."""
        reference = self.evaluator(self.evaluator.network, SIZES)
        try:
            with explained("the task fails with the file in the network's place"):
                self.evaluation = self.evaluator(self.exported, SIZES)
        except UserError as error:
            raise RunError(f"the file does not work with other samples: {error}") from error
        self.report["metrics"]["checkpoint"] = reference.metrics
        self.report["metrics"][self.path.name] = self.evaluation.metrics
        proof = prove(reference, self.evaluation, self.exporter.softmax)
        # NaN and infinity are not valid JSON
        self.report["proof"] = {k: v if v == v != math.inf else None for k, v in proof.items()}
        result = (
            f"largest difference {proof['max_difference']:.3g}, {proof['relative_difference']:.3g} "
            f"of the largest output (at most {proof['tolerance']:g})"
        )
        if proof["agreement"] is not None:
            result += f", same class {proof['agreement']:.2%}"
        self.logger.info(f"{self.path.name}: {result}")
        failure = f"the file's outputs differ from the network's: {result}"
        self._finish_file(self.path, proof["passed"], failure)

    def quantize(self) -> None:
        """Write the file as int8 too, and compare the accuracy of both."""
        if self.failures:
            return
        if self.evaluation.accuracy is None:
            raise UserError("--int8 needs a classifier, output (N, classes), to compare accuracy")
        path = self.path.with_name(f"{self.path.stem}.int8{self.exporter.suffix}")
        samples = [self.exported.raw(*call) for call in self.evaluator.training_calls(CALIBRATION)]
        self.exporter.quantize(self.written[0], samples, self._unproven(path))
        state = self.evaluator.state | {"signature": self.exported.signature}
        state["novelty"] = self.report["metadata"]["novelty"]
        network = self.exporter.network(self._unproven(path), state, self.evaluator.threads)
        quantized, accuracy = self.evaluator(network, SIZES), self.evaluation.accuracy
        drop, allowed = accuracy - quantized.accuracy, self.exporter.max_accuracy_drop
        passed = drop <= allowed + 1e-9
        same = quantized.predicted == self.evaluation.predicted
        self.report["metrics"][path.name] = quantized.metrics
        self.report["int8"] = {
            "calibration_samples": len(samples),
            "accuracy_drop": drop,
            "max_accuracy_drop": allowed,
            "agreement": float(same.mean()),
            "passed": passed,
        }
        result = f"int8 changes accuracy from {accuracy:.4f} to {quantized.accuracy:.4f}"
        rule = f"exporter.args.max_accuracy_drop allows a drop of {allowed:g}"
        self._finish_file(path, passed, f"{result}; {rule}")

    def measure(self) -> None:
        """Measure the size of the files, and their latency side by side at batch size 1."""
        [call] = self.evaluator.calls(self.evaluator.loader, [[0]])
        example = self.exported.raw(*call)
        threads, device = self.evaluator.threads, str(self.evaluator.engine.device)
        files = {path.name: self.exporter.load(path, threads, device) for path in self.written}
        times = interleaved({name: partial(run, example) for name, run in files.items()})
        rounds = len(times[self.written[0].name])
        self.report["latency"] = {"threads": threads, "batch_size": 1, "rounds": rounds}
        self.report["latency"] |= spreads(times)
        self.report["bytes"] = {path.name: path.stat().st_size for path in self.written}

    def finish(self) -> None:
        """Show the report, and write it beside the file as export.json.

        Raises RunError if a file failed.
        """
        self.work.cleanup()
        self.report |= {"exporter": type(self.exporter).__name__, "passed": not self.failures}
        if self.evaluator.check:
            self.logger.info("check failed" if self.failures else "check passed")
        else:
            file = self.path.with_name("export.json")
            write_text(file, json.dumps(self.report, indent=2, ensure_ascii=False) + "\n")
            lines = [*self._table(), *(f"written: {path}" for path in [*self.written, file])]
            self.logger.info("\n".join(lines))
        if self.failures:
            raise RunError("; ".join(self.failures))

    def _unproven(self, path: Path) -> Path:
        return Path(self.work.name) / path.name

    def _finish_file(self, path: Path, passed: bool, failure: str) -> None:
        """Give the file its final name; `failure` says what is wrong if it has not passed."""
        if not passed:
            self.failures.append(failure)
        self.written.append(path if passed else path.with_name(f"{path.name}.failed"))
        os.replace(self._unproven(path), self.written[-1])

    def _table(self) -> list[str]:
        metrics = self.report["metrics"]
        rows = [["", *metrics]]
        for name in metrics["checkpoint"]:
            rows.append([name, *(f"{values[name]:.4f}" for values in metrics.values())])
        latency = [self.report["latency"][path.name] for path in self.written]
        threads = threads_in_words(self.evaluator.threads)
        rows.append([f"ms p50, {threads}", "", *(f"{each['p50']:.2f}" for each in latency)])
        rows.append(["ms p95", "", *(f"{each['p95']:.2f}" for each in latency)])
        rows.append(["times the first", "", *(f"{each['ratio']:.3f}" for each in latency)])
        rows.append(["MB", "", *(f"{size / 1e6:.2f}" for size in self.report["bytes"].values())])
        return aligned(rows)


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
    args, kwargs = longest
    size, output = count(network, *args, **kwargs)
    if exporter.softmax and not (isinstance(output, Tensor) and output.ndim > 1):
        raise UserError("exporter.args.softmax: the output is not (N, classes)")
    settings = evaluator.state["input"], exporter.preprocess, exporter.softmax
    novelty, measure = evaluator.state.get("novelty"), None
    if exporter.distance:
        if not novelty or "means" not in novelty:
            raise UserError(
                "exporter.args.distance: the checkpoint has none; test it first, with a section "
                '"inspection"'
            )
        measure = Distance(novelty)
    deployed = Deployed(network, longest, *settings, measure)
    signature = build_signature(network, longest, output)
    plain = ("appearance", "labels", *(("limit", "rank", "samples") if measure else ()))
    kept = {name: novelty[name] for name in plain if name in novelty} if novelty else None
    state = evaluator.state | {"signature": signature, "novelty": kept}
    is_per_class = isinstance(output, Tensor) and output.shape[1:] == (len(state["classes"] or ()),)
    state["classes"] = state["classes"] if is_per_class else None  # an embedding has none
    exported = exporter.network(path, state, evaluator.threads)
    inputs = [exported.raw(*call) for call in calls]
    signature["shapes"] = find_shapes(inputs, [len(chunk) for chunk in chunks])
    signature["dtypes"] = {name: str(array.dtype) for name, array in inputs[0].items()}
    metadata = describe(exporter, evaluator) | size | {"signature": signature, "origin": origin}
    metadata |= {"classes": state["classes"], "novelty": kept}
    parts = evaluator.state.get("kept", {}).values()
    metadata["task_state"] = [k for part in parts for k in part if k.startswith("task.")]
    example = {name: torch.from_numpy(part) for name, part in exported.raw(*longest).items()}
    exporter.export(deployed, example, path, metadata)
    return exported, metadata


def describe(exporter: BaseExporter, evaluator: Evaluator) -> dict:
    """Return the metadata of a file."""
    state, config = evaluator.state, evaluator.config
    pipeline = getattr(evaluator.loader.samples, "pipeline", None)
    transforms = [str(transform) for transform in getattr(pipeline, "transforms", [])]
    copied = ("arch", "epoch", "classes", "input", "inspection", "versions")
    return {key: state.get(key) for key in copied} | {
        "name": config["name"],
        "preprocessed": exporter.preprocess,
        "preprocess": describe_input(state["input"], transforms, exporter.preprocess),
        "softmax": exporter.softmax,
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


def export_checkpoint(config: ConfigParser, device: str | None, source: Path, target: Path) -> Path:
    """Export and prove the checkpoint `source` of a run in progress, as `config` says.

    `target` is the file to write, without its suffix; returns the file. Raises RunError if the
    proof fails; the file is called `.failed` then.
    """
    exporter, evaluator = config.init_obj("exporter"), Evaluator(config, device).for_run(source)
    output = target.with_name(target.name + exporter.suffix)
    export = Export(exporter, evaluator, output)
    export.write()
    export.prove()
    if export.failures:
        raise RunError("; ".join(export.failures))
    return output
