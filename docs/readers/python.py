"""Decide about images with a file made with "preprocess": "image", without torch.

python python.py model.onnx IMAGE ...    needs onnxruntime, numpy, Pillow, and export.json beside
                                         the file
"""

import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

file, images = Path(sys.argv[1]), sys.argv[2:]
report = json.loads(file.with_name("export.json").read_text("utf-8"))
about, content = report["metadata"], file.read_bytes()
if hashlib.blake2b(content, digest_size=16).hexdigest() != report["files"][file.name]["blake2b"]:
    sys.exit(f"{file} is damaged, or not the file that export.json describes")
if not report["passed"] or about["preprocessed"] != "image":
    sys.exit(f'{file} was not proven, or not made with "preprocess": "image"')
session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
classes, reduced = about["classes"], about["preprocess"]["reduced while reading"]


def read(path):
    """The image as the training reads it, uint8 (1, height, width, 3)."""
    image = Image.open(path)
    is_large = reduced and min(image.size) > reduced["longer than"]
    if is_large:  # very large ones are reduced, a JPEG already while it is decoded
        scale = reduced["shorter side"] / min(image.size)
        size = round(image.width * scale), round(image.height * scale)
        image.draft(image.mode, size)
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith(("I", "F")):
        sys.exit(f'{path} has more than 8 bits: see preprocess["more than 8 bits"] in export.json')
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = image.convert("RGB")
    if is_large:
        scale = reduced["shorter side"] / min(image.size)
        size = round(image.width * scale), round(image.height * scale)
        image = image.resize(size, Image.Resampling.BILINEAR)
    return np.asarray(image)[None]


for path in images:
    output, decision, confidence = session.run(
        ["output", "decision", "confidence"], {"input": read(path)}
    )
    probability = output[0]
    if not about["softmax"]:
        probability = np.exp(output[0] - output[0].max())
        probability /= probability.sum()
    name = "unsure" if decision[0] < 0 else classes[decision[0]]
    print(f"{path}\t{name}\t{confidence[0]:.4f}\t{probability.max():.6f}")
