"""Prune a network:  python prune.py -c configs/prune_digits.json -r saved/models/<name>/<run>

-c FILE -r PATH    a new run that prunes the network of a checkpoint, or of a run's best one
-r PATH            resume a pruning run that was interrupted, as if it had never stopped
  -r                 resume the newest run; with -c FILE the newest of that configuration's name
"""

import functools
import sys

from parse_config import command
from train import build_trainer


@command(
    __doc__,
    keeps_network=True,
    defaults={"trainer": "PruneTrainer", "exporter": "OnnxExporter"},
    needs={"pruner": '{"type": "MagnitudePruner", "args": {"channel_sparsity": 0.5}}'},
)
def main(config, arguments):
    from exporter.export import export_checkpoint  # imported lazily: --help must not load torch

    trainer = build_trainer(
        config,
        arguments.device,
        new_head=False,
        pruner=config.init_obj("pruner", dotted=config.trust),
        # files run on the CPU, whatever trains
        exporter=functools.partial(export_checkpoint, config, None),
    )
    return trainer.check() if arguments.check else trainer.result(trainer.train())


if __name__ == "__main__":
    sys.exit(main())
