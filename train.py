"""Train a network:  python train.py -c config.json

-c FILE            start a new run
-r PATH            resume a run, in its own folders, as if it had never stopped
  -r                 resume the newest run; with -c FILE the newest of that configuration's name
-r PATH -c FILE    start a new run from another run's weights
"""

import sys

from parse_config import CustomArgs, command

# Flags that set one key of the config each; add yours here. Any key can also be set by -s
# a.b.c=value.
options = [
    CustomArgs(["--lr", "--learning_rate"], type=float, target=("optimizer", "args", "lr")),
    CustomArgs(["--bs", "--batch_size"], type=int, target=("data_loader", "args", "batch_size")),
    CustomArgs(["--epochs"], type=int, target=("trainer", "epochs")),
]


def add_arguments(parser):
    parser.add_argument(
        "--profile",
        type=int,
        metavar="N",
        help="train N batches, show where the time went, and stop",
    )


def build_trainer(config, device, new_head=True, **supplied):
    """Everything that a run is made of, in order. `supplied` are further parts that the trainer
    takes.
    """
    # imported lazily: --help must not load torch
    from model.freezing import Freezing
    from trainer.build import build_loaders, build_model, build_task, class_weights, start
    from trainer.optimization import (
        build_optimizer,
        build_optimizers,
        build_schedule,
        build_schedules,
    )

    engine, recorder = start(config, device)
    data_loader, valid_data_loader = build_loaders(config)
    model = build_model(config, engine, data_loader, new_head)
    criterion = config.init_obj("loss", **class_weights(data_loader))
    task = build_task(config, engine, model, criterion, data_loader)
    freezing = Freezing(config.option("arch", "freeze"), config.option("arch", "unfreeze_at"))
    return config.init_obj(
        "trainer",
        model=model,
        criterion=criterion,
        metrics=config.init_obj("metrics"),
        optimizer=build_optimizer(config, engine, model, task=task),
        lr_scheduler=build_schedule(config),
        config=config,
        engine=engine,
        recorder=recorder,
        data_loader=data_loader,
        valid_data_loader=valid_data_loader,
        freeze=freezing.apply,
        task=task,
        optimizers=build_optimizers(config, engine, task),
        schedules=build_schedules(config),
        num_classes=len(data_loader.classes) if data_loader.classes else None,
        **supplied,
    )


@command(__doc__, options, add_arguments)
def main(config, arguments):
    trainer = build_trainer(config, arguments.device)
    if arguments.check:
        trainer.check()
    elif arguments.profile is not None:
        from trainer.profile import profile

        profile(trainer, arguments.profile)
    else:
        trainer.train()


if __name__ == "__main__":
    sys.exit(main())
