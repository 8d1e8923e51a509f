"""Files that can stand in for a checkpoint: suffix -> module or object with `load`, `amend` and
`network` (utils.checkpoint.FileFormat). Found by name; imports neither torch nor onnx.
"""

from exporter import onnx_file

READERS = {onnx_file.SUFFIX: onnx_file}
