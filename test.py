"""Test a trained network:  python test.py -r saved/models/<name>/<run>

-r PATH            a checkpoint, or a run's folder, of which the best checkpoint is taken
-r PATH -c FILE    the same network, with the data, loss and metrics of another configuration
"""

import sys
import time

from parse_config import command


def add_arguments(parser):
    parser.add_argument("--split", choices=["test", "val", "train"], default="test", help="the samples to test on")
    parser.set_defaults(best=True)


@command(__doc__, add_arguments=add_arguments)
def main(config):
    from logger import report_test  # these import torch, which --help can do without
    from trainer import build_trained_network, evaluate, progress, start_test

    engine, data_loader = start_test(config)
    model = engine.prepare(build_trained_network(config))
    criterion, metrics = engine.to_device(config.init_obj("loss")), engine.to_device(config.init_obj("metrics"))
    begun = time.perf_counter()
    result = evaluate(model, progress(data_loader), criterion, metrics, engine)
    report_test(config, len(data_loader.dataset), result, time.perf_counter() - begun)


if __name__ == "__main__":
    sys.exit(main())
