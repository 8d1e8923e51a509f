"""Test a trained network:  python test.py -r saved/models/<name>/<run>

-r PATH                    a checkpoint, a run's folder (its best checkpoint is tested), or an
                           exported file
-r PATH -c FILE            the same network, with the data, loss and metrics of another
                           configuration
-r PATH --images FILE ...  predict these images, or those in these folders
--arch NAME --weights FILE --images FILE ...
                           ask a network of torchvision, without any configuration
"""

import sys

from parse_config import command
from utils.errors import UserError


def add_arguments(parser):
    add = parser.add_argument
    add("--split", choices=["test", "val", "train"], default="test", help="the samples to test on")
    add("--images", nargs="+", metavar="PATH",
        help="predict these images, or those in these folders")  # fmt: skip
    add("--arch", metavar="NAME", help="with --images: ask this network of torchvision")
    add("--weights", metavar="FILE", default="DEFAULT",
        help="with --arch: its weights, a file or torchvision's (default: DEFAULT)")  # fmt: skip
    add("--heatmap", action="store_true",
        help="with --images: show where the network saw the class")  # fmt: skip
    add("--lang", choices=["en", "ja"], help="language of the report (default: the system's)")
    add("--threads", type=int, default=1, metavar="N",
        help="threads that run an exported file; 0 for all (default: 1)")  # fmt: skip


def prepare(arguments):
    """Answer a question that needs no configuration."""
    if arguments.arch is None:
        return False
    if arguments.resume or arguments.config or not arguments.images:
        raise UserError("--arch: pass --images, too, and neither -r nor -c")
    from tester.question import ask

    ask(arguments.arch, arguments.weights, arguments.images, arguments.device)
    return True


@command(__doc__, add_arguments=add_arguments, prepare=prepare, trains=False)
def main(config, arguments):
    # imported lazily: --help must not load torch
    from tester.inspection import find_novelty, find_threshold
    from tester.language import system_language
    from tester.predict import predict_images
    from tester.report import report_test
    from tester.trained import Test

    device, threads = arguments.device, arguments.threads
    if arguments.images:
        heatmap, check = arguments.heatmap, arguments.check
        predict_images(config, arguments.images, device, heatmap, threads, check)
        return None
    if arguments.heatmap:
        raise UserError(
            "--heatmap: also pass --images PATH; without it report.html shows heat maps of mistakes"
        )
    test = Test(config, device, arguments.split, threads)
    if arguments.check:
        return config.get_logger("test").info("check passed")
    threshold = find_threshold(test)
    novelty = find_novelty(test, threshold)
    test.decide()
    result = test.predict(test.loader, test.metrics, inspection=threshold, novelty=novelty)
    return report_test(test, result, threshold, novelty, arguments.lang or system_language())


if __name__ == "__main__":
    sys.exit(main())
