"""Export a trained network:  python export.py -r saved/models/<name>/<run>

-r PATH            a checkpoint, or a run's folder, of which the best checkpoint is taken; writes model.onnx beside it,
                   proves that it says what the network says, and keeps the proof in export.json
  --int8             writes model.int8.onnx too, in 8-bit integers
--compare A B ...  size, accuracy and latency of checkpoints, runs and exported files, side by side
"""

import sys

from parse_config import command


def add_arguments(parser):
    parser.add_argument("-o", "--output", metavar="FILE", help="where to write (default: model.onnx beside the checkpoint)")
    parser.add_argument("--int8", action="store_true", help="write it in 8-bit integers too, calibrated on training data")
    parser.add_argument("--compare", nargs="+", metavar="PATH", help="compare these, the first with each other")
    parser.add_argument("--threads", type=int, default=1, metavar="N",
                        help="how many compute when latency is measured; 0 for all (default: 1)")  # fmt: skip
    parser.set_defaults(best=True, device="cpu", defaults={"exporter": "OnnxExporter"})


@command(__doc__, add_arguments=add_arguments)
def main(config):
    from exporter import Export, compare  # these import torch, which --help can do without
    from logger import setup_logging
    from trainer import build_trained_network
    from trainer.judge import Judge

    setup_logging()
    exporter = config.init_obj("exporter")
    if config.arguments.compare:
        compare(config, exporter, build_trained_network, Judge)
        return
    export = Export(config, exporter, build_trained_network(config), Judge(config))
    export.write()
    export.prove()
    if config.arguments.int8:
        export.quantize()
    export.measure()
    export.finish()


if __name__ == "__main__":
    sys.exit(main())
