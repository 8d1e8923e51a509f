"""The config section of this folder."""

from utils.config.lookup import Source

BASE = "exporter.base_exporter.BaseExporter"
SECTIONS = {"exporter": Source(BASE, folders=("exporter",), functions=False)}
# what `train.py --data` writes into a configuration of its own, for images of one class each
PROPOSED = {"exporter": {"type": "OnnxExporter", "args": {"preprocess": "image", "softmax": True}}}
PAGES = ("export.md", "readers")  # in docs/, about this folder
