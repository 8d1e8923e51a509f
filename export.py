"""Export a trained network:  python export.py -r saved/models/<name>/<run>

-r PATH            a checkpoint, or a run's folder (its best checkpoint is exported); writes
                   model.onnx beside it, proves that it gives what the network gives, and keeps
                   the proof in export.json
  --int8             also writes model.int8.onnx, in 8-bit integers
--compare A B ...  size, accuracy and latency of checkpoints, runs and exported files, side by side
"""

import sys
from pathlib import Path

from parse_config import command


def add_arguments(parser):
    add = parser.add_argument
    add("-o", "--output", metavar="FILE", type=Path,
        help="where to write (default: model.onnx beside the checkpoint)")  # fmt: skip
    add("--int8", action="store_true",
        help="also write it in 8-bit integers, calibrated on training data")  # fmt: skip
    add("--compare", nargs="+", metavar="PATH", help="compare these, each with the first")
    add("--threads", type=int, default=1, metavar="N",
        help="threads for the latency measurement; 0 for all (default: 1)")  # fmt: skip
    parser.set_defaults(device="cpu")


def prepare(arguments):
    """The first file to compare also takes the place of -r."""
    if arguments.compare and not arguments.resume:
        arguments.resume = arguments.compare[0]


@command(__doc__, (), add_arguments, prepare, trains=False, defaults={"exporter": "OnnxExporter"})
def main(config, arguments):
    # imported lazily: --help must not load torch
    from exporter.compare import compare
    from exporter.evaluator import Evaluator
    from exporter.export import Export
    from logger import setup_logging

    setup_logging()
    exporter = config.init_obj("exporter")
    evaluator = Evaluator(config, arguments.device, arguments.check, arguments.threads)
    if arguments.compare:
        return compare(evaluator, exporter, arguments.compare)
    export = Export(exporter, evaluator, arguments.output)
    export.write()
    export.prove()
    if arguments.int8:
        export.quantize()
    export.measure()
    return export.finish()


if __name__ == "__main__":
    sys.exit(main())
