"""The config section of this folder."""

from utils.config.lookup import Source

BASE = "exporter.base_exporter.BaseExporter"
SECTIONS = {"exporter": Source(BASE, folders=("exporter",), functions=False)}
PAGES = ("export.md", "readers")  # in docs/, about this folder
