"""What a config may hold: its sections, and where what each names is looked for."""

from typing import Literal

from utils.hints import HeatMap, Inspection, Machine, NonNegativeInt, OpenShare, ParameterRule, PositiveInt
from utils.lookup import Source

_LOADER = Source("base.BaseDataLoader", "data_loader", offered=("seed", "subset"), functions=False,
                 nested={"transforms": "transforms"})  # fmt: skip
SOURCES = {
    "arch": Source("torch.nn.Module", "model", without=("loss.py", "metric.py"), libraries=("torchvision.models",),
                   pattern="^(?!get_|list_)[a-z]",
                   offered=("num_classes", "in_channels", "image_size", "input_size", "init_weights"),
                   keys={"weights": str, "freeze": str | list[str], "unfreeze_at": PositiveInt}),
    "loss": Source("torch.nn.Module", "model/loss.py", libraries=("torch.nn.functional", "torch.nn"),
                   pattern="[Ll]oss|[Ee]ntropy|kl_div", offered=("weight",), functional=True),
    "metrics": Source("torchmetrics.Metric", "model/metric.py", libraries=("torchmetrics", "torchmetrics.classification"),
                      functional=True, keys={"name": str}),
    "data_loader": _LOADER,
    "valid_data_loader": _LOADER,
    "test_data_loader": _LOADER,
    "transforms": Source("torch.nn.Module", "data_loader/transforms.py", libraries=("torchvision.transforms.v2",),
                         pattern="^[A-Z]", functions=False, nested={"transforms": "transforms"}, inner=True),
    "optimizer": Source("torch.optim.Optimizer", "model", without=("loss.py", "metric.py"), libraries=("torch.optim",),
                        pattern="^[A-Z]", given=("params",),
                        keys={"param_groups": list[ParameterRule], "no_decay": bool, "layer_decay": OpenShare}),
    "lr_scheduler": Source("torch.optim.lr_scheduler.LRScheduler", "model", without=("loss.py", "metric.py"),
                           libraries=("torch.optim.lr_scheduler",), pattern="(LR|Plateau|Scheduler|Restarts)$",
                           given=("optimizer",), offered=("total_steps",), nested={"schedulers": "lr_scheduler"},
                           keys={"interval": Literal["step", "epoch"]}),
    "trainer": Source("base.BaseTrainer", "trainer", default="Trainer", functions=False,
                      given=("model", "criterion", "metrics", "config", "engine", "recorder",
                             "data_loader", "valid_data_loader", "pruner", "exporter")),
    "pruner": Source("base.BasePruner", "pruner", functions=False),
    "exporter": Source("base.BaseExporter", "exporter", functions=False),
}  # fmt: skip
PLAIN = {"$schema": str, "name": str, "about": str, "seed": int, "n_gpu": NonNegativeInt, "versions": dict,
         "engine": Machine, "inspection": Inspection, "heatmap": HeatMap}  # fmt: skip
REQUIRED = ("name", "arch", "data_loader", "loss", "optimizer", "trainer")
ALIASES = {("trainer", "save_period"): "save_freq"}  # pytorch-template's own file says save_period
