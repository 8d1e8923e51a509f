import json
import logging
import os
from pathlib import Path
from typing import Any


def report_test(config: Any, count: int, result: dict[str, float], seconds: float) -> Path:
    """Show a test's result as a table, and keep it in test/ beside the checkpoint; returns the file's path."""
    split = config.arguments.split
    report = {
        "checkpoint": config.resume.name,
        "split": split,
        "n": count,
        **result,
        "seconds": seconds,
        "samples_per_second": count / seconds,
    }
    path = config.resume.parent / "test" / ("result.json" if split == "test" else f"result_{split}.json")
    path.parent.mkdir(exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    os.replace(temporary, path)
    logging.getLogger("test").info("\n".join([f"{config.resume}", *_table(report), f"written: {path}"]))
    return path


def _table(report: dict[str, Any]) -> list[str]:
    rows = {k: v for k, v in report.items() if k != "checkpoint"}
    width = max(map(len, rows))
    return [f"  {name:<{width}}  {f'{value:.4f}' if isinstance(value, float) else value}" for name, value in rows.items()]
