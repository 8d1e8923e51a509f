"""Trained networks as files for elsewhere, and the proof that a file agrees with its network."""

from exporter.compare import compare
from exporter.export import Export, export_checkpoint

__all__ = ["Export", "compare", "export_checkpoint"]
