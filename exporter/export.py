import argparse
import json
import os
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from base import BaseExporter
from exporter.proof import in_sizes, prove
from logger import aligned, threads_in_words, write_text
from utils import checkpoint, onnx_file
from utils.errors import RunError, UserError
from utils.exported import Deployed, ExportedNetwork, describe_preprocessing
from utils.latency import enough_rounds, interleaved, ratio, spread
from utils.summary import count
from utils.versions import versions

CALIBRATION = 128  # training samples


class Export:
    """One export: write the file, prove it, quantize it, measure it, and say what came out.

    A file has its final name only once it is proven; one that fails is called `.failed`.

    Args:
        config: the ConfigParser of a trained network
        exporter: what writes the format
        model: the trained network
        judge: a `trainer.Judge`
    """

    def __init__(self, config: Any, exporter: BaseExporter, model: nn.Module, judge: Any):
        if config.resume.suffix == onnx_file.SUFFIX:
            raise UserError(f"{config.resume} is exported already: name the checkpoint it was made from")
        self.config, self.exporter, self.model, self.judge = config, exporter, model, judge
        self.logger = config.get_logger("export")
        self.path = self._place()
        self.int8_path = self.path.with_name(f"{self.path.stem}.int8{exporter.suffix}")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.work = tempfile.TemporaryDirectory(prefix=".export-", dir=self.path.parent)
        self.report: dict[str, Any] = {"checkpoint": config.resume.name, "split": judge.split, "metrics": {}}
        self.written: list[Path] = []
        self.faults: list[str] = []

    def write(self) -> None:
        """Write the file, from the network as `Deployed` says."""
        wanted = self.judge.state["input"]
        example = torch.stack([self.judge.loader.example] * 2)
        deployed = Deployed(self.model, wanted, self.exporter.preprocess, self.exporter.softmax)
        self.metadata = describe(self.config, self.exporter, self.judge, count(self.model, example))
        part = self._part(self.path)
        self.exporter.export(deployed, torch.from_numpy(self.network(part).raw(example)), part, self.metadata)

    def prove(self) -> None:
        """Compare the file with the network on real samples, and put both to the judge."""
        reference = self.judge(self.model, in_sizes)
        self.exported = self.judge(self.network(self._part(self.path)), in_sizes)
        proof = prove(reference.outputs, self.exported.outputs, self.exporter.softmax)
        self.report["metrics"] |= {"checkpoint": _numbers(reference), self.path.name: _numbers(self.exported)}
        said = (
            f"largest difference {proof['max_difference']:.3g}, {proof['relative_difference']:.3g} of the largest output "
            f"(at most {proof['tolerance']:g})"
        ) + ("" if proof["agreement"] is None else f", same class {proof['agreement']:.2%}")
        self.report["proof"] = {k: None if v != v else v for k, v in proof.items()}
        self.logger.info(f"{self.path.name}: {said}")
        if not proof["passed"]:
            self.faults.append(f"the file does not say what the network says: {said}")
        self._name(self.path, proof["passed"])

    def quantize(self) -> None:
        """Write the file in 8 bits too, and judge what it lost."""
        if self.faults:
            return
        if self.exported.accuracy is None:
            raise UserError("--int8: judges by accuracy, but the network is no classifier, its output no (N, classes)")
        exported = self.network(self.written[0])
        samples = [exported.raw(sample[None]) for sample in self.judge.training(CALIBRATION)]
        part = self._part(self.int8_path)
        self.exporter.quantize(self.written[0], samples, part)
        quantized = self.judge(self.network(part), in_sizes)
        drop = self.exported.accuracy - quantized.accuracy
        passed = drop <= self.exporter.max_accuracy_drop + 1e-9
        self.report["metrics"][self.int8_path.name] = _numbers(quantized)
        self.report["int8"] = {
            "calibration_samples": len(samples),
            "accuracy_drop": drop,
            "max_accuracy_drop": self.exporter.max_accuracy_drop,
            "agreement": float((quantized.outputs.argmax(1) == self.exported.outputs.argmax(1)).mean()),
            "passed": passed,
        }
        if not passed:
            self.faults.append(
                f"in 8 bits accuracy goes from {self.exported.accuracy:.4f} to {quantized.accuracy:.4f}; "
                f"exporter.args.max_accuracy_drop allows a loss of {self.exporter.max_accuracy_drop:g}"
            )
        self._name(self.int8_path, passed)

    def measure(self) -> None:
        """Sizes, and the latency of what was written, side by side at batch 1."""
        example = self.network(self.written[0]).raw(self.judge.loader.example[None])
        threads, device = self.config.arguments.threads, str(self.judge.engine.device)
        runs = {path.name: partial(self.exporter.load(path, threads, device), example) for path in self.written}
        times = interleaved(runs, enough_rounds(runs))
        self.report["latency"] = {"threads": threads, "batch_size": 1, "rounds": len(times[self.written[0].name])} | {
            name: spread(each) | {"ratio": ratio(times, name, self.written[0].name)} for name, each in times.items()
        }
        self.report["bytes"] = {path.name: path.stat().st_size for path in self.written}

    def finish(self) -> None:
        """Show the report and keep it beside the file, as export.json. Raises RunError where something failed."""
        self.work.cleanup()
        place = self.path.with_name("export.json")
        self.report |= {"exporter": type(self.exporter).__name__, "passed": not self.faults, "metadata": self.metadata}
        if self.config.arguments.check:
            self.logger.info("check passed" if not self.faults else "check failed")
        else:
            write_text(place, json.dumps(self.report, indent=2, ensure_ascii=False) + "\n")
            self.logger.info("\n".join([*self._table(), *(f"written: {path}" for path in [*self.written, place])]))
        if self.faults:
            raise RunError("; ".join(self.faults))

    def network(self, path: Path) -> ExportedNetwork:
        """A file in the network's place."""
        return network_of(self.exporter, path, self.judge.state, self.config.arguments.threads)

    def _place(self) -> Path:
        suffix, asked = self.exporter.suffix, self.config.arguments.output
        if self.config.arguments.check:
            self.config.temporary = tempfile.TemporaryDirectory(prefix="kata-check-")
            return Path(self.config.temporary.name) / f"model{suffix}"
        if asked is None or Path(asked).is_dir():
            return Path(asked or checkpoint.place_of(self.config.resume)) / f"model{suffix}"
        if Path(asked).suffix != suffix:
            raise UserError(f"-o {asked}: {type(self.exporter).__name__} writes files that end in {suffix}")
        return Path(asked)

    def _part(self, path: Path) -> Path:
        """Where the file is until it is known what it is worth; gone with this object."""
        return Path(self.work.name) / path.name

    def _name(self, path: Path, passed: bool) -> None:
        """Give the file its name."""
        self.written.append(path if passed else path.with_name(f"{path.name}.failed"))
        os.replace(self._part(path), self.written[-1])

    def _table(self) -> list[str]:
        names = list(self.report["metrics"])
        rows = [["", *names]]
        for metric in self.report["metrics"]["checkpoint"]:
            rows.append([metric, *(f"{self.report['metrics'][name][metric]:.4f}" for name in names)])
        latency = [self.report["latency"][path.name] for path in self.written]
        threads = threads_in_words(self.report["latency"]["threads"])
        rows.append([f"ms p50, {threads}", "", *(f"{each['p50']:.2f}" for each in latency)])
        rows.append(["ms p95", "", *(f"{each['p95']:.2f}" for each in latency)])
        rows.append(["times the first", "", *(f"{each['ratio']:.3f}" for each in latency)])
        rows.append(["MB", "", *(f"{size / 1e6:.2f}" for size in self.report["bytes"].values())])
        return aligned(rows)


def network_of(exporter: BaseExporter, path: Path, state: dict, threads: int) -> ExportedNetwork:
    """A file that `exporter` wrote, in the place of the network that `state`, a checkpoint's, describes."""
    load = partial(_load, exporter, path, threads)
    return ExportedNetwork(path.name, load, state["input"], exporter.preprocess, exporter.softmax, state["classes"])


def _load(exporter: BaseExporter, path: Path, threads: int, device: str) -> Callable[[np.ndarray], np.ndarray]:
    return exporter.load(path, threads, device)


def describe(config: Any, exporter: BaseExporter, judge: Any, sizes: dict[str, int]) -> dict[str, Any]:
    """What a file should say of itself."""
    state, pipeline = judge.state, getattr(judge.loader.samples, "pipeline", None)
    return {
        "name": config["name"],
        "arch": state["arch"],
        "epoch": state["epoch"],
        "classes": state["classes"],
        "input": state["input"],
        "preprocessed": exporter.preprocess,
        "preprocess": describe_preprocessing(state["input"], pipeline, exporter.preprocess),
        "softmax": exporter.softmax,
        "inspection": state.get("inspection"),
        "pruning": _pruning(state.get("structure")),
        **sizes,
        "versions": state.get("versions"),
        "exported_with": versions(),
        "config": config.config,
    }


def _pruning(structure: dict | None) -> dict[str, list[int]] | None:
    """Of each layer that lost outputs how many it had and has; None of a network that was not pruned."""
    weights = {name.removesuffix(".weight"): shapes for name, shapes in (structure or {"shapes": {}})["shapes"].items()}
    narrower = {name: [built[0], now[0]] for name, (built, now) in weights.items() if len(now) > 1 and built[0] != now[0]}
    return narrower if structure else None


def _numbers(judgement: Any) -> dict[str, float]:
    return judgement.metrics | ({} if judgement.accuracy is None else {"accuracy": judgement.accuracy})


def export_checkpoint(config: Any, build: Callable, judge: Callable, checkpoint: Path, path: Path) -> Path:
    """Export and prove one checkpoint of a run that goes on; `path` is the file to write, without its suffix.

    Raises RunError where the proof fails; the file is called .failed then.
    """
    own = config.of(checkpoint)
    exporter = own.init_obj("exporter")
    asked = {"output": f"{path}{exporter.suffix}", "threads": 1, "check": False}
    own.arguments = argparse.Namespace(**vars(config.arguments) | asked)
    export = Export(own, exporter, build(own), judge(own))
    export.write()
    export.prove()
    if export.faults:
        raise RunError("; ".join(export.faults))
    return export.written[0]
