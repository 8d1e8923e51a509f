"""Weights from other checkpoints and from torchvision."""

import urllib.error

import pytest
import torch
from torchvision import models

from model.weights import load_weights, read_weights, torchvision_weights
from tests.conftest import assert_same, last_checkpoint
from utils.errors import CheckpointError, UserError


@pytest.mark.parametrize(
    "kind", ["bare", "state_dict", "model", "model_ema", "module.", "_orig_mod."]
)
def test_weights_from_any_kind_of_checkpoint(tmp_path, kind):
    model = models.resnet18(num_classes=3)
    state = model.state_dict()
    if kind.endswith("."):
        state = {f"{kind}{name}": tensor for name, tensor in state.items()}
    elif kind == "model_ema":
        state = {
            "model": {name: torch.zeros_like(tensor) for name, tensor in state.items()},
            "model_ema": state,
            "epoch": 3,
        }
    elif kind != "bare":
        state = {kind: state, "optimizer": {"state": {}}}
    torch.save(state, tmp_path / "x.pth")
    assert_same(dict(read_weights(tmp_path / "x.pth")), dict(model.state_dict()))


def test_versions_of_layers_are_kept(tmp_path):
    """MNASNet refuses weights without its layers' versions, which are beside the tensors."""
    model, other = models.mnasnet0_5(num_classes=3), models.mnasnet0_5(num_classes=3)
    torch.save({"state_dict": model.state_dict()}, tmp_path / "x.pth")
    load_weights(other, read_weights(tmp_path / "x.pth"), "x", new_head=False)
    assert_same(dict(other.state_dict()), dict(model.state_dict()))
    larger = models.mnasnet0_5(num_classes=7)
    kept = load_weights(larger, read_weights(tmp_path / "x.pth"), "x", new_head=True)
    assert kept == ["classifier.1.weight", "classifier.1.bias"]


def test_weights_of_an_older_version_are_converted():
    """As in torchvision's published files, some of which are older than their layers' names."""
    arguments = {"image_size": 32, "patch_size": 16, "num_layers": 1, "num_heads": 1}
    arguments |= {"hidden_dim": 8, "mlp_dim": 8, "num_classes": 3}
    model, other = (models.VisionTransformer(**arguments) for _ in range(2))
    old = {
        name.replace("mlp.0", "mlp.linear_1").replace("mlp.3", "mlp.linear_2"): tensor
        for name, tensor in model.state_dict().items()
    }
    assert old.keys() != model.state_dict().keys()
    load_weights(other, old, "x", new_head=False)
    assert_same(dict(other.state_dict()), dict(model.state_dict()))


def test_a_head_of_another_size_keeps_its_values_and_anything_else_is_refused():
    other, own = models.resnet18(num_classes=7), models.resnet18(num_classes=3)
    before = own.fc.weight.clone()
    assert load_weights(own, other.state_dict(), "x", new_head=True) == ["fc.weight", "fc.bias"]
    assert torch.equal(own.fc.weight, before)
    assert torch.equal(own.layer4[1].conv2.weight, other.layer4[1].conv2.weight)
    message = r"fc\.weight is \[7, 512\] there and \[3, 512\] here; 2 of 122 tensors differ"
    with pytest.raises(CheckpointError, match=message):
        load_weights(own, other.state_dict(), "x", new_head=False)
    message = "x holds another network than ResNet: 0 of 122 tensors are missing and 96 unknown"
    with pytest.raises(CheckpointError, match=message):
        load_weights(own, models.resnet34().state_dict(), "x", new_head=True)
    message = "another network than SqueezeNet: 52 of 52 tensors are missing and 122 unknown"
    with pytest.raises(CheckpointError, match=message):
        load_weights(models.squeezenet1_1(), own.state_dict(), "x", new_head=True)


def test_torchvision_weights_come_from_the_cache_or_the_error_names_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))

    def refuse(*args, **kwargs):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    with pytest.raises(UserError) as caught:
        torchvision_weights("squeezenet1_1", "DEFAULT")
    assert "Put squeezenet1_1-b8a52dc0.pth into" in str(caught.value)
    assert str(tmp_path / "checkpoints") in str(caught.value)
    (tmp_path / "checkpoints").mkdir(exist_ok=True)
    state = models.squeezenet1_1().state_dict()
    torch.save(state, tmp_path / "checkpoints" / "squeezenet1_1-b8a52dc0.pth")
    assert_same(dict(torchvision_weights("squeezenet1_1", "IMAGENET1K_V1")), dict(state))
    with pytest.raises(UserError, match="has only IMAGENET1K_V1"):
        torchvision_weights("squeezenet1_1", "BEST")
    with pytest.raises(UserError, match="is not a network of torchvision"):
        torchvision_weights("LeNet", "DEFAULT")


def test_a_run_starts_from_weights_in_a_file(digits, train, tmp_path, capsys):
    old = train(digits())
    run = train(
        digits(
            {
                "arch.weights": str(old / "model_best.pth"),
                "optimizer.args.lr": 1e-9,
                "trainer.epochs": 1,
            }
        )
    )
    assert f"weights of {old / 'model_best.pth'}" in capsys.readouterr().out
    torch.testing.assert_close(
        last_checkpoint(run)["state_dict"]["fc1.weight"],
        last_checkpoint(old)["state_dict"]["fc1.weight"],
    )
    train(digits({"arch.weights": str(tmp_path / "none.pth")}), code=2)
    assert "there is no file" in capsys.readouterr().err
