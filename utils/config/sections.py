"""What a config may hold: its sections, and where each finds what it names.

A folder declares its own sections in a file sections.py: SECTIONS and PLAIN like those below, and
EXTENDS for what it adds to another's section, PROPOSED for what a new configuration for images says
of it. So a folder that is deleted takes its sections along.
"""

import dataclasses
import importlib
from collections.abc import Container
from typing import Any, Literal

from utils.config import hints
from utils.config.lookup import Source
from utils.files import ROOT

LOADERS = ("data_loader", "valid_data_loader", "test_data_loader")
HELPERS = ("batch_norm.py", "freezing.py", "heads.py", "structure.py", "summary.py", "weights.py")
NOT_NETWORKS = ("loss.py", "metric.py", *HELPERS)  # nor optimizers or schedulers
NETWORK = ("num_classes", "in_channels", "image_size", "input_size", "init_weights",
           "weights_backbone")  # fmt: skip
PARTS = ("model", "criterion", "metrics", "optimizer", "lr_scheduler", "config", "engine",
         "recorder", "data_loader", "valid_data_loader", "freeze", "task", "optimizers",
         "schedules")  # fmt: skip

LOADER = Source("base.BaseDataLoader", ("data_loader",), given=("dataset", "collate_fn"),
                offered=("seed", "subset"), nested={"transforms": "transforms"},
                functions=False)  # fmt: skip
SOURCES = {
    "arch": Source("torch.nn.Module", ("model",), NOT_NETWORKS,
                   ("torchvision.models", "torchvision.models.segmentation"),
                   "^(?!get_|list_)[a-z]", offered=NETWORK,
                   keys={"weights": str, "freeze": str | list[str],
                         "unfreeze_at": hints.PositiveInt}),
    "loss": Source("torch.nn.Module", ("model/loss.py",), (), ("torch.nn.functional", "torch.nn"),
                   "[Ll]oss|[Ee]ntropy|kl_div", offered=("weight",), functional=True),
    "metrics": Source("torchmetrics.Metric", ("model/metric.py",), (),
                      ("torchmetrics", "torchmetrics.classification"),
                      offered=("num_classes",), keys={"name": str}, functional=True,
                      listed=True),
    "data_loader": LOADER,
    "valid_data_loader": LOADER,
    "test_data_loader": LOADER,
    "transforms": Source("torch.nn.Module", ("data_loader/transforms.py",), (),
                         ("torchvision.transforms.v2",), "^[A-Z]", offered=("num_classes",),
                         nested={"transforms": "transforms"}, functions=False, inner=True),
    "optimizer": Source("torch.optim.Optimizer", ("model",), NOT_NETWORKS, ("torch.optim",),
                        "^[A-Z]", given=("params",),
                        keys={"param_groups": list[hints.ParameterRule], "no_decay": bool,
                              "layer_decay": hints.OpenShare}),
    "lr_scheduler": Source("torch.optim.lr_scheduler.LRScheduler", ("model",), NOT_NETWORKS,
                           ("torch.optim.lr_scheduler",), "(LR|Plateau|Scheduler|Restarts)$",
                           given=("optimizer",), offered=("total_steps", "max_lr"),
                           keys={"interval": Literal["step", "epoch"]},
                           nested={"schedulers": "lr_scheduler"}),
    "task": Source("base.BaseTask", ("trainer",), functions=False,
                   given=("criterion", "load_network")),
    "trackers": Source("logger.base_tracker.BaseTracker", ("logger",), functions=False,
                       listed=True),
    "trainer": Source("base.BaseTrainer", ("trainer",), given=PARTS, default="Trainer",
                      nested={"batch_transforms": "transforms"}, functions=False),
}  # fmt: skip
# What a section of one's own may say it is, and the keys that it then takes beside the role's.
ROLES: dict[str, dict[str, Any]] = {"arch": {"weights": str}, "loss": {},
                                    "optimizer": {"network": str},
                                    "lr_scheduler": {"optimizer": str}}  # fmt: skip
PLAIN: dict[str, Any] = {"$schema": str, "name": str, "about": str, "seed": int, "versions": dict,
                         "n_gpu": hints.NonNegativeInt, "engine": hints.EngineSettings,
                         "inspection": hints.InspectionSettings}  # fmt: skip
REQUIRED = ("name", "arch", "data_loader", "optimizer", "trainer")
ALIASES = {("trainer", "save_period"): "save_freq"}  # pytorch-template's own file says save_period

PROPOSED: dict[str, Any] = {}

for _file in sorted(ROOT.glob("*/sections.py")):
    _module = importlib.import_module(f"{_file.parent.name}.sections")
    SOURCES |= getattr(_module, "SECTIONS", {})
    PLAIN |= getattr(_module, "PLAIN", {})
    PROPOSED |= getattr(_module, "PROPOSED", {})
    for _section, _more in getattr(_module, "EXTENDS", {}).items():
        _source = SOURCES[_section]
        _joined = {key: getattr(_source, key) + value for key, value in _more.items()}
        SOURCES[_section] = dataclasses.replace(_source, **_joined)


def role_of(section: str, spec: object) -> str | None:
    """The section whose rules hold for this one: itself, or what it says as its "role"; or None."""
    role = spec.get("role") if isinstance(spec, dict) else None
    return section if section in SOURCES else role if role in tuple(ROLES) else None


def sources_of(config: dict, dotted: Container[str] = ()) -> dict[str, Source]:
    """The sources of a config's sections; what has a role is supplied to the task.

    `dotted` are the dotted paths that may be named in it.
    """
    own = {}
    for section, spec in config.items():
        role = role_of(section, spec)
        if role is not None and section not in SOURCES:
            source = SOURCES[role]
            keys = {} if role == "arch" else source.keys
            own[section] = dataclasses.replace(source, keys={"role": str} | keys | ROLES[role])
    task = SOURCES["task"]
    sources = SOURCES | own | {"task": dataclasses.replace(task, given=(*task.given, *own))}
    return {name: dataclasses.replace(source, dotted=dotted) for name, source in sources.items()}
