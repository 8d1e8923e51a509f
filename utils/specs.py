"""What a section of a config says: "Name", {"type": "Name", "args": {...}}, or its arguments alone."""

from typing import Any

from utils.lookup import Source


def spec_args(source: Source, spec: Any) -> tuple[str, Any]:
    """Type and arguments of "Name", {"type": "Name", "args": {...}}, or a flat section that has a default type."""
    if isinstance(spec, str):
        return spec, {}
    if source.default:
        return spec.get("type", source.default), {key: value for key, value in spec.items() if key != "type"}
    return spec["type"], spec.get("args", {})


def metric_name(spec: Any) -> str:
    """What a metric is called in logs: its "name", else the last part of its type."""
    return spec if isinstance(spec, str) else spec.get("name") or str(spec.get("type")).rpartition(".")[2]
