from functools import partial
from typing import Any

from torch import nn

from utils.engine import Engine
from utils.exported import ExportedNetwork
from utils.latency import enough_rounds, interleaved, spread


def speed_of(config: Any, network: nn.Module, loader: Any, engine: Engine) -> dict[str, Any] | None:
    """How fast an exported file answers; None for a checkpoint.

    {"device", "threads", "p50", "p95": milliseconds for one sample, "batch_size", "samples_per_second": in such batches}.
    The session is the one that the test used.
    """
    if not isinstance(network, ExportedNetwork):
        return None
    batch = network.raw(next(iter(loader))[0])
    runs = {name: partial(network.opened(engine.device), part) for name, part in (("one", batch[:1]), ("all", batch))}
    times = interleaved(runs, enough_rounds(runs))
    return {
        "device": str(engine.device),
        "threads": config.arguments.threads,
        **spread(times["one"]),
        "batch_size": len(batch),
        "samples_per_second": len(batch) / spread(times["all"])["p50"] * 1000,
    }
