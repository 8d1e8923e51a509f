import logging
import math
import os
import tempfile
from functools import partial
from pathlib import Path

from exporter.base_exporter import BaseExporter
from exporter.content import export_network
from exporter.deployed import ExportedNetwork
from exporter.evaluator import Evaluation, Evaluator
from exporter.gate import Verdict, judge
from exporter.latency import interleaved, spreads
from exporter.onnx_file import fingerprint
from exporter.preprocessing import baked
from exporter.proof import SIZES, prove, prove_decisions
from logger.base_tracker import tell_trackers
from logger.files import aligned, flat, threads_in_words
from utils.checkpoint import origin_beside, output_dir, reader_for
from utils.config.config import ConfigParser
from utils.errors import RunError, UserError, explained
from utils.files import remove_leftovers, shell_command, temporary_suffix, write_json

CALIBRATION = 128  # training samples


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
            output = (output or output_dir(resume)) / f"{exporter.stem}{suffix}"
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
        exporter = self.exporter
        settings = exporter.softmax, exporter.tolerance, exporter.exact
        proof = prove(reference, self.evaluation, *settings)
        result = (
            f"largest difference {proof['max_difference']:.3g}, {proof['relative_difference']:.3g} "
            f"of the largest output (at most {proof['tolerance']:g})"
        )
        if proof["agreement"] is not None:
            result += f", same class for {proof['agreement']:.2%} of {proof['samples']} samples"
        if self.evaluation.decisions is not None:
            proof |= prove_decisions(self.evaluator, self.exported, reference, self.evaluation)
            result += f", same decision for {proof['decisions']:.2%}"
            if proof["rounding"]:
                result += f" ({proof['rounding']} at a threshold, to rounding)"
            other = round((1 - proof["decisions"]) * proof["samples"])
            proof["passed"] &= other == proof["rounding"] or not exporter.exact
        self.logger.info(f"{self.path.name}: {result}")
        failure = f"the file's outputs differ from the network's: {result}"
        if proof["passed"] and not exporter.exact:
            verdict = self._judge(self.path, reference, self.evaluation)
            proof, failure = proof | verdict.report, verdict.sentence
        # NaN and infinity are not valid JSON
        self.report["proof"] = {k: v if v == v != math.inf else None for k, v in proof.items()}
        self._finish_file(self.path, proof["passed"], failure)

    def quantize(self) -> None:
        """Write the file as int8 too, and compare the accuracy of both."""
        if self.failures:
            return
        path = self.path.with_name(f"{self.path.stem}.int8{self.exporter.suffix}")
        calls = self.evaluator.training_calls(CALIBRATION, self.exported.takes_images)
        samples = [self.exported.raw(*call)[0] for call in calls]
        self.exporter.quantize(self.written[0], samples, self._unproven(path))
        state, load = self.exported.state, partial(self.exporter.load, self._unproven(path))
        network = ExportedNetwork(path.name, load, state, self.evaluator.threads)
        quantized = self.evaluator(network, SIZES)
        self.report["metrics"][path.name] = quantized.metrics
        verdict = self._judge(path, self.evaluation, quantized)
        self.report["int8"] = {"calibration_samples": len(samples)} | verdict.report
        self._finish_file(path, verdict.passed, f"int8: {verdict.sentence}")

    def _judge(self, path: Path, before: Evaluation, after: Evaluation) -> Verdict:
        """Whether the file may take the network's place; it gets thresholds of its own."""
        monitor = self.evaluator.config.option("trainer", "monitor", "off")
        verdict = judge(before, after, self.exporter, monitor, self.evaluator.state)
        if reader := reader_for(path):
            found = {} if verdict.inspection is None else {"inspection": verdict.inspection}
            reader.amend(self._unproven(path), judged=verdict.report, **found)
            if found and path == self.path:
                about = self.report["metadata"]
                about["inspection"] = verdict.inspection
                about["decision"] = about["decision"] and baked(verdict.inspection)
        self.logger.info(f"{path.name}: {verdict.sentence}")
        return verdict

    def measure(self) -> None:
        """Measure the size of the files, and their latency side by side at batch size 1."""
        [call] = self.evaluator.calls(self.evaluator.loader_for(self.exported), [[0]])
        example = self.exported.raw(*call)[0]
        threads, device = self.evaluator.threads, str(self.evaluator.engine.device)
        load = self.exporter.load
        runs = {p.name: partial(load(p, threads, device), example) for p in self.written}
        times = interleaved(runs)
        rounds = len(times[self.written[0].name])
        measured = {"threads": threads, "batch_size": 1, "rounds": rounds}
        self.report["latency"] = measured | spreads(times)

    def finish(self) -> dict:
        """Show the report, and write it beside the file as export.json. Returns its content.

        Raises RunError if a file failed.
        """
        config = self.evaluator.config
        self.report |= {
            "files": {path.name: fingerprint(path) for path in self.written},
            "bytes": {path.name: path.stat().st_size for path in self.written},
            "exporter": type(self.exporter).__name__,
            "passed": not self.failures,
        }
        self.work.cleanup()
        if self.evaluator.check:
            self.logger.info("check failed" if self.failures else "check passed")
        else:
            file = self.path.with_name(f"export{self.exporter.stem.removeprefix('model')}.json")
            write_json(file, self.report)
            lines = [*self._table(), *(f"written: {path}" for path in [*self.written, file])]
            lines += [] if self.failures else self._use()
            self.logger.info("\n".join(lines))
            trackers = config.init_obj("trackers")
            tell_trackers(trackers, config.resume, "export", self._values(), [file, *self.written])
        if self.failures:
            raise RunError("; ".join(self.failures))
        return self.report

    def _unproven(self, path: Path) -> Path:
        return Path(self.work.name) / path.name

    def _finish_file(self, path: Path, passed: bool, failure: str) -> None:
        """Give the file its final name; `failure` says what is wrong if it has not passed."""
        if not passed:
            self.failures.append(failure)
        self.written.append(path if passed else path.with_name(f"{path.name}.failed"))
        os.replace(self._unproven(path), self.written[-1])

    def _values(self) -> dict[str, float]:
        """The report's numbers for trackers: "model.onnx.accuracy"."""
        report = self.report
        found = {f"{file}.bytes": size for file, size in report["bytes"].items()}
        found |= {f"{file}.p50_ms": report["latency"][file]["p50"] for file in report["bytes"]}
        return found | flat(report["metrics"])

    def _use(self) -> list[str]:
        """How the file decides, if a threshold is asked for or the file decides by itself."""
        config, name = self.evaluator.config, self.path.name
        about, wanted = self.report["metadata"], config.get("inspection")
        found, decides = about["inspection"], about["decision"] is not None
        if not (wanted or found or decides):
            return []
        rule = "the likeliest class"
        if found:
            target = found["target"]
            rule = f"{target} from a probability of {found['threshold']:.4g} on"
            if "sure_threshold" in found:
                rule += f", below {found['sure_threshold']:.4g} a person is to look"
        elif wanted:
            run = shell_command("python", "test.py", "-r", str(config.resume))
            rule += f": no threshold has been found yet, {run} does; export again then"
        if decides:
            return [f"{name} decides: {rule}"]
        return [
            f"{name} gives outputs, not decisions; the program that uses it is to decide: {rule}",
            "-s exporter.args.preprocess=image puts this and the preparation of images into it",
        ]

    def _table(self) -> list[str]:
        metrics = self.report["metrics"]
        rows = [["", *metrics]]
        for name in metrics["checkpoint"]:
            rows.append([name, *(f"{values[name]:.4f}" for values in metrics.values())])
        latency = [self.report["latency"][path.name] for path in self.written]
        threads = threads_in_words(self.evaluator.threads)
        columns = {f"ms p50, {threads}": "p50", "ms p95": "p95", "times the first": "ratio"}
        for title, key in columns.items():
            rows.append([title, "", *(f"{each[key]:.3f}" for each in latency)])
        rows.append(["MB", "", *(f"{size / 1e6:.2f}" for size in self.report["bytes"].values())])
        return aligned(rows)


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
