"""Config, engine, checkpoints, files, errors: what every folder uses. Import from its modules."""

from utils.util import MetricTracker, ensure_dir, inf_loop, prepare_device, read_json, write_json

__all__ = ["MetricTracker", "ensure_dir", "inf_loop", "prepare_device", "read_json", "write_json"]
