"""An exported file that was damaged is refused, wherever the damage is."""

import shutil

import numpy as np
import pytest

import export as export_script
import test as test_script
from exporter import onnx_file
from utils.errors import CheckpointError


@pytest.fixture
def file(digits, train):
    run = train(digits({"trainer.epochs": 1}))
    assert export_script.main(["-r", str(run), "-s", "exporter.args.opset=13"]) == 0
    return run / "model.onnx"


def damage(content, generator):
    """A flipped bit, a cut end, or a range of zeros."""
    content, kind = bytearray(content), generator.integers(3)
    place = int(generator.integers(len(content)))
    if kind == 0:
        content[place] ^= 1 << int(generator.integers(8))
    elif kind == 1:
        del content[place:]
    else:
        length = int(generator.integers(1, 64))
        content[place : place + length] = bytes(len(content[place : place + length]))
    return bytes(content)


@pytest.mark.parametrize("count", [100, pytest.param(1000, marks=pytest.mark.slow)])
def test_no_damage_is_read(file, tmp_path, count):
    whole, generator = file.read_bytes(), np.random.default_rng(count)
    damaged = tmp_path / "damaged.onnx"
    expected, refused = onnx_file.load(file), 0
    for _ in range(count):
        content = damage(whole, generator)
        damaged.write_bytes(content)
        try:
            state = onnx_file.load(damaged)
        except CheckpointError:
            refused += 1
        else:
            assert content == whole  # zeros were zeroed
            assert state == expected
    assert refused > 0.9 * count


def test_whole_and_amended_files_are_read(file, capsys):
    assert test_script.main(["-r", str(file), "-s", 'inspection.target="8"']) == 0
    assert onnx_file.load(file)["inspection"]["target"] == "8"
    content = file.read_bytes()
    place = content.index(b'"threshold": 0.') + len(b'"threshold": 0.')
    file.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
    assert test_script.main(["-r", str(file)]) == 2
    assert "model.onnx is damaged: its content does not have the digest" in capsys.readouterr().err


def test_old_files_have_no_digest(tmp_path):
    from tests.exporter.test_old_files import OLD_FILES

    shutil.copy(OLD_FILES / "model.onnx", tmp_path / "model.onnx")
    assert onnx_file.load(tmp_path / "model.onnx")["classes"] == ["NG", "OK"]
