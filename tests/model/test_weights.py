"""Weights from other checkpoints and from torchvision."""

import re
import urllib.error
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torchvision import models
from torchvision.models import densenet

from model.weights import load_weights, read_weights, torchvision_weights
from tests.conftest import SMALL_NETWORK, assert_same, last_checkpoint
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
    with pytest.raises(UserError, match=r"has only IMAGENET1K_V1 \(or DEFAULT\)"):
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


def backbone(network, head):
    """The weights of all but the modules whose names begin with `head`."""
    return {n: tensor for n, tensor in network.state_dict().items() if not n.startswith(head)}


def assert_backbone_loaded(network, weights):
    own = network.state_dict()
    assert_same({name: own[name] for name in own if name in weights}, weights)


@pytest.mark.parametrize(
    ("name", "head", "fresh"),
    [
        ("mobilenet_v2", "classifier", ["classifier.1.weight", "classifier.1.bias"]),
        ("resnet18", "fc", ["fc.weight", "fc.bias"]),
        ("squeezenet1_1", "classifier", ["classifier.1.weight", "classifier.1.bias"]),
        ("mobilenet_v3_small", "classifier.3", ["classifier.3.weight", "classifier.3.bias"]),
        (
            "mobilenet_v3_small",
            "classifier",
            [f"classifier.{layer}.{kind}" for layer in (0, 3) for kind in ("weight", "bias")],
        ),
    ],
)
def test_a_backbone_without_its_head_is_loaded(name, head, fresh):
    network, weights = models.get_model(name), backbone(models.get_model(name), head)
    before = network.state_dict()[fresh[0]].clone()
    assert load_weights(network, weights, "x", new_head=True) == fresh
    assert_backbone_loaded(network, weights)
    assert torch.equal(network.state_dict()[fresh[0]], before)
    with pytest.raises(CheckpointError, match=f"{len(fresh)} of .* tensors are missing"):
        load_weights(network, weights, "x", new_head=False)


OTHER_HEADS = {
    "fc": {"fc.weight": torch.ones(1000, 1280), "fc.bias": torch.ones(1000)},
    "no bias": {"head.fc.weight": torch.ones(7, 1280)},
    "a convolution": {"last.weight": torch.ones(7, 1280, 1, 1)},
    "not in a Sequential": {"classifier.weight": torch.ones(7, 1280)},
    "of two layers": {
        "classifier.2.weight": torch.ones(9, 1280),
        "classifier.4.weight": torch.ones(7, 9),
    },
}


@pytest.mark.parametrize("head", OTHER_HEADS.values(), ids=OTHER_HEADS)
def test_a_head_of_another_name_is_left_out(head):
    network, weights = models.mobilenet_v2(), backbone(models.mobilenet_v2(), "classifier")
    fresh = load_weights(network, weights | head, "x", new_head=True)
    assert fresh == ["classifier.1.weight", "classifier.1.bias"]
    assert_backbone_loaded(network, weights)
    with pytest.raises(CheckpointError, match=f"2 of 314 tensors are missing and {len(head)} unkn"):
        load_weights(network, weights | head, "x", new_head=False)


def test_half_a_backbone_or_one_layer_too_many_is_refused():
    network, whole = models.resnet18(num_classes=3), models.resnet18().state_dict()
    weights = backbone(models.resnet18(), "fc")
    half = {name: whole[name] for name in list(whole)[:60]}
    other = {"extra.weight": torch.ones(4, 4)}
    for given, message in [
        (half, "50 of 122 tensors are missing and 0 unknown, for example layer3.0.conv1.weight, "),
        (weights | other, "0 of 122 tensors are missing and 1 unknown, for example extra.weight"),
        (whole | other, "0 of 122 tensors are missing and 1 unknown, for example extra.weight"),
        (whole | {"b.weight": torch.ones(4, 512)}, "are missing and 1 unknown, for example b.weig"),
        ({"fc.weight": whole["fc.weight"]}, "100 of 122 tensors are missing and 0 unknown"),
        (models.resnet50().state_dict(), "missing and 198 unknown.* [1-9][0-9]* differ in size"),
    ]:
        with pytest.raises(
            CheckpointError, match=f"x holds another network than ResNet: .*{message}"
        ):
            load_weights(network, given, "x", new_head=True)


class Wrapper(nn.Module):
    """All of its layers are in one module, also the head."""

    def __init__(self, network):
        super().__init__()
        self.model = network


def test_weights_of_which_nothing_fits_are_refused():
    other = Wrapper(models.squeezenet1_1()).state_dict()
    with pytest.raises(CheckpointError, match="102 of 122 tensors are missing and 52 unknown"):
        load_weights(Wrapper(models.resnet18()), other, "x", new_head=True)


@pytest.mark.parametrize("has_auxiliary", [True, False])
def test_auxiliary_heads_may_be_missing_on_either_side(has_auxiliary):
    one, other = (
        models.GoogLeNet(num_classes=3, aux_logits=aux, init_weights=False)
        for aux in (has_auxiliary, not has_auxiliary)
    )
    fresh = load_weights(one, other.state_dict(), "x", new_head=True)
    assert fresh == [name for name in one.state_dict() if name.startswith("aux")]
    assert bool(fresh) == has_auxiliary
    assert_same(dict(one.fc.state_dict()), dict(other.fc.state_dict()))
    with pytest.raises(CheckpointError, match="GoogLeNet"):
        load_weights(one, other.state_dict(), "x", new_head=False)


def test_outputs_take_the_rows_of_their_classes():
    """The same names in another order; auxiliary heads, too."""
    one, other = (models.GoogLeNet(num_classes=4, init_weights=False) for _ in range(2))
    rows = [2, 0, 3, 1]
    assert load_weights(one, other.state_dict(), "x", new_head=True, rows=rows) == []
    data = torch.randn(2, 3, 64, 64)
    one.eval(), other.eval()
    with torch.no_grad():
        torch.testing.assert_close(one(data), other(data)[:, rows])
    for head in ("fc", "aux1.fc2", "aux2.fc2"):
        for before, after in zip(
            other.get_submodule(head).parameters(),
            one.get_submodule(head).parameters(),
            strict=True,
        ):
            assert torch.equal(after, before[rows])
    assert torch.equal(one.aux1.fc1.weight, other.aux1.fc1.weight)
    smaller = models.GoogLeNet(num_classes=2, init_weights=False)  # some of the classes
    assert load_weights(smaller, other.state_dict(), "x", new_head=False, rows=[3, 1]) == []
    assert torch.equal(smaller.fc.bias, other.fc.bias[[3, 1]])


def test_old_names_of_densenet_are_read_as_torchvision_reads_them(tmp_path):
    one, other, reference = (
        models.DenseNet(growth_rate=4, block_config=(2, 1), num_init_features=8, num_classes=3)
        for _ in range(3)
    )
    old = {
        re.sub(r"(denselayer\d+\.(?:norm|conv))([12])", r"\1.\2", name): tensor
        for name, tensor in other.state_dict().items()
        if not name.endswith("num_batches_tracked")  # older than that
    }
    assert "features.denseblock1.denselayer2.norm.1.running_mean" in old
    published = SimpleNamespace(get_state_dict=lambda **options: dict(old))
    densenet._load_state_dict(reference, published, progress=False)
    torch.save(old, tmp_path / "x.pth")
    load_weights(one, read_weights(tmp_path / "x.pth"), "x", new_head=False)
    assert_same(dict(one.state_dict()), dict(reference.state_dict()))
    larger = models.DenseNet(4, (2, 1), 8, num_classes=5)
    assert load_weights(larger, old, "x", new_head=True) == ["classifier.weight", "classifier.bias"]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "nn.Conv2d(1, 8, 3",
            "nn.Conv2d(1, 8, 5",
            "conv.weight is [8, 1, 3, 3] there and [8, 1, 5",
        ),
        ("conv=nn", "stem=nn", "2 of 9 tensors are missing and 2 unknown, for example stem.weight"),
        ("nn.ReLU()", "nn.PReLU()", "1 of 10 tensors are missing and 0 unknown, for example act"),
    ],
)
@pytest.mark.parametrize("average", [None, 0.9])
def test_resuming_with_changed_code_says_what_does_not_fit(
    digits, train, resume, own_code, capsys, old, new, message, average
):
    own_code("net", SMALL_NETWORK)
    sections = {"arch": {"type": "net.small"}, "trainer.epochs": 1}
    run = train(digits(sections | ({"trainer.ema_decay": average} if average else {})))
    assert old in SMALL_NETWORK
    own_code("net", SMALL_NETWORK.replace(old, new))
    resume(run, "--epochs", 2, code=2)
    error = capsys.readouterr().err
    assert message in error
    assert "the checkpoint" in error
    assert "Traceback" not in error


def test_imagenet_backbone_of_torchvision(kata_data):
    network = models.mobilenet_v2(num_classes=2)
    weights = read_weights(kata_data / "pretrained" / "mobilenet_v2_backbone.pth")
    fresh = load_weights(network, weights, "x", new_head=True)
    assert fresh == ["classifier.1.weight", "classifier.1.bias"]
    assert_backbone_loaded(network, dict(weights))


def test_a_network_without_a_head_can_start_from_weights():
    one, other = nn.Sequential(nn.LSTM(3, 4)), nn.Sequential(nn.LSTM(3, 4))
    assert load_weights(one, other.state_dict(), "x", new_head=True) == []
    assert_same(dict(one.state_dict()), dict(other.state_dict()))
    with pytest.raises(CheckpointError, match="3 of 4 tensors are missing and 0 unknown"):
        load_weights(one, {"0.bias_hh_l0": torch.zeros(16)}, "x", new_head=True)
