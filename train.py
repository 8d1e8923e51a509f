"""Train a network:  python train.py -c config.json

-c FILE            start a new run
-r PATH            resume a run, in its own folders, as if it had never stopped
  -r                 resume the newest run; with -c FILE the newest of that configuration's name
-r PATH -c FILE    start a new run from another run's weights
--data FOLDER      write a configuration for a folder of images, or a table, and train by it
"""

import sys
from pathlib import Path

from parse_config import CustomArgs, command
from utils.errors import UserError

# Flags that set one key of the config each; add yours here. Any key can also be set by -s
# a.b.c=value.
options = [
    CustomArgs(["--lr", "--learning_rate"], type=float, target=("optimizer", "args", "lr")),
    CustomArgs(["--bs", "--batch_size"], type=int, target=("data_loader", "args", "batch_size")),
    CustomArgs(["--epochs"], type=int, target=("trainer", "epochs")),
]


def add_arguments(parser):
    add = parser.add_argument
    add("--profile", type=int, metavar="N",
        help="train N batches, show where the time went, and stop")  # fmt: skip
    add("--data", metavar="FOLDER",
        help="write configs/<FOLDER>.json for the images in it, and train by that; a CSV or TSV "
             "file with the columns path and label, too")  # fmt: skip
    add("--target", metavar="CLASS", help="with --data: the class that must not be missed")
    add("--weights", metavar="FILE",
        help="with --data: trained weights to start from, or torchvision's DEFAULT")  # fmt: skip


def prepare(arguments):
    """Write the configuration for --data."""
    if arguments.data is None:
        if arguments.target or arguments.weights:
            raise UserError("--target and --weights belong to --data FOLDER")
        return
    if arguments.config or arguments.resume:
        raise UserError("--data writes a configuration of its own: leave out -c and -r")
    from trainer.proposal import propose

    settings = arguments.target, arguments.weights, arguments.device
    arguments.config = propose(Path(arguments.data), *settings)


def build_trainer(config, device, new_head=True, **supplied):
    """Everything that a run is made of, in order. `supplied` are further parts that the trainer
    takes.
    """
    # imported lazily: --help must not load torch
    from model.freezing import Freezing
    from trainer import build, optimization

    engine, recorder = build.start(config, device)
    data_loader, valid_data_loader = build.build_loaders(config)
    model = build.build_model(config, engine, data_loader, new_head)
    criterion = config.init_obj("loss", **build.class_weights(data_loader))
    task = build.build_task(config, engine, model, criterion, data_loader)
    class_count = build.class_count(data_loader)
    freezing = Freezing(config.option("arch", "freeze"), config.option("arch", "unfreeze_at"))
    return config.init_obj(
        "trainer",
        model=model,
        criterion=criterion,
        metrics=config.init_obj("metrics", **class_count),
        optimizer=optimization.build_optimizer(config, engine, model, task=task),
        lr_scheduler=optimization.build_schedule(config),
        config=config,
        engine=engine,
        recorder=recorder,
        data_loader=data_loader,
        valid_data_loader=valid_data_loader,
        freeze=freezing.apply,
        task=task,
        optimizers=optimization.build_optimizers(config, engine, task),
        schedules=optimization.build_schedules(config),
        **class_count,
        **supplied,
    )


@command(__doc__, options, add_arguments, prepare)
def main(config, arguments):
    trainer = build_trainer(config, arguments.device)
    if arguments.check:
        return trainer.check()
    if arguments.profile is not None:
        from trainer.profile import profile

        return profile(trainer, arguments.profile)
    return trainer.result(trainer.train())


if __name__ == "__main__":
    sys.exit(main())
