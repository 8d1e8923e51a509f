"""Train a network:  python train.py -c config.json

-c FILE            start a new run
-r PATH            continue a run, in its own folders, as if it had never stopped
  -r                 continue the newest run; with -c FILE the newest of that configuration's name
-r PATH -c FILE    start a new run from another run's weights
"""

import sys

from parse_config import CustomArgs, command

# Flags that set one key of the config each; add yours here. Every key can also be set by -s a.b.c=value.
options = [
    CustomArgs(["--lr", "--learning_rate"], type=float, target=("optimizer", "args", "lr")),
    CustomArgs(["--bs", "--batch_size"], type=int, target=("data_loader", "args", "batch_size")),
    CustomArgs(["--epochs"], type=int, target=("trainer", "epochs")),
]


def add_arguments(parser):
    parser.add_argument("--profile", type=int, metavar="N", help="train N batches, say where the time went, and stop")


@command(__doc__, options, add_arguments)
def main(config):
    # these import torch, which --help can do without
    from trainer import build_loader, build_network, check_data, class_weights, load_pretrained, start
    from trainer.profile import profile

    engine, recorder = start(config)
    data_loader = config.init_obj("data_loader")
    valid_data_loader = build_loader(config, "valid_data_loader", "val") or data_loader.split_validation()
    check_data(config, data_loader, valid_data_loader)
    model = build_network(config, data_loader.classes, data_loader.input["shape"])
    load_pretrained(config, model)
    trainer = config.init_obj(
        "trainer",
        model=model,
        criterion=config.init_obj("loss", **class_weights(data_loader)),
        metrics=config.init_obj("metrics"),
        config=config,
        engine=engine,
        recorder=recorder,
        data_loader=data_loader,
        valid_data_loader=valid_data_loader,
    )
    if config.arguments.check:
        trainer.check()
    elif config.arguments.profile is not None:
        profile(trainer, config.arguments.profile)
    else:
        trainer.train()


if __name__ == "__main__":
    sys.exit(main())
