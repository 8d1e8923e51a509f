"""Test a trained network:  python test.py -r saved/models/<name>/<run>

-r PATH                    a checkpoint, a run's folder, of which the best checkpoint is taken, or an exported .onnx file
-r PATH -c FILE            the same network, with the data, loss and metrics of another configuration
-r PATH --images FILE ...  what it says of these pictures, or of those in these folders
"""

import sys
import time
from itertools import islice

from parse_config import command
from utils.errors import UserError


def add_arguments(parser):
    parser.add_argument("--split", choices=["test", "val", "train"], default="test", help="the samples to test on")
    parser.add_argument("--images", nargs="+", metavar="PATH", help="predict these pictures, or those in these folders")
    parser.add_argument("--heatmap", action="store_true", help="with --images: show where the network saw the class")
    parser.add_argument("--threads", type=int, default=1, metavar="N",
                        help="of an .onnx file: how many compute; 0 for all (default: 1)")  # fmt: skip
    parser.set_defaults(best=True)


@command(__doc__, add_arguments=add_arguments)
def main(config):
    from logger import report_test  # these import torch, which --help can do without
    from trainer import build_trained_network, evaluate, progress, start_test
    from trainer.heatmap import explain
    from trainer.inspection import find_threshold, inspect
    from trainer.predict import predict_images
    from trainer.predictions import Predictions
    from trainer.speed import speed_of
    from trainer.start import trained_state

    if config.arguments.images:
        predict_images(config)
        return
    if config.arguments.heatmap:
        raise UserError("--heatmap: say --images PATH too; without them report.html shows heat maps of mistakes by itself")
    engine, data_loader = start_test(config)
    model = engine.prepare(build_trained_network(config))
    criterion, metrics = engine.to_device(config.init_obj("loss")), engine.to_device(config.init_obj("metrics"))
    if config.arguments.check:
        evaluate(model, islice(data_loader, 1), criterion, metrics, engine)
        config.get_logger("test").info("check passed")
        return
    trained = trained_state(config)
    threshold = find_threshold(config, trained, model, criterion, engine)  # on validation data, never on what is tested
    predictions = Predictions(trained.get("classes"), data_loader.classes)
    begun = time.perf_counter()
    result = evaluate(model, progress(data_loader), criterion, metrics, engine, predictions.add)
    seconds = time.perf_counter() - begun
    inspection = inspect(predictions, threshold)
    maps, speed = explain(config, model, predictions, engine), speed_of(config, model, data_loader, engine)
    report_test(config, data_loader, result, seconds, predictions, inspection, maps, speed)


if __name__ == "__main__":
    sys.exit(main())
