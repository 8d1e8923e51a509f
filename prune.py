"""Make a trained network smaller and faster:  python prune.py -c configs/prune_digits.json -r saved/models/<name>/<run>

-c FILE -r PATH    a new run that prunes the network of a checkpoint, or of a run's best one
-r PATH            continue a pruning run that was interrupted, as if it had never stopped
  -r                 continue the newest run; with -c FILE the newest of that configuration's name
"""

import sys
from functools import partial

from parse_config import command


def add_arguments(parser):
    parser.set_defaults(defaults={"trainer": "PruneTrainer", "exporter": "OnnxExporter"}, needs="pruner")


@command(__doc__, add_arguments=add_arguments)
def main(config):
    from exporter import export_checkpoint  # these import torch, which --help can do without
    from trainer import (
        build_loader,
        build_network,
        build_trained_network,
        check_data,
        class_weights,
        load_pretrained,
        start,
    )
    from trainer.judge import Judge

    pruner = config.init_obj("pruner")
    engine, recorder = start(config, same_network=True)
    data_loader = config.init_obj("data_loader")
    valid_data_loader = build_loader(config, "valid_data_loader", "val") or data_loader.split_validation()
    check_data(config, data_loader, valid_data_loader)
    model = build_network(config, data_loader.classes, data_loader.input["shape"])
    load_pretrained(config, model, new_head=False)
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
        pruner=pruner,
        exporter=partial(export_checkpoint, config, build_trained_network, Judge),
    )
    trainer.check() if config.arguments.check else trainer.train()


if __name__ == "__main__":
    sys.exit(main())
