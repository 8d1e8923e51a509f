"""Torchvision's networks behind our door, transfer learning and freezing, compared with torch by hand."""

import copy
import urllib.error

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision import models

from model.model import LeNet
from tests.conftest import assert_same, build, last_checkpoint
from trainer.heatmap import heat_maps
from trainer.start import build_network
from utils.errors import CheckpointError, UserError
from utils.networks import Freezing, auxiliary_outputs, head_of, main_output, parameter_groups, set_training_mode
from utils.summary import summary
from utils.weights import load_weights, read_weights, torchvision_weights

FAMILIES = {  # name -> size of the pictures it is tried on
    "alexnet": 64, "vgg11_bn": 32, "resnet18": 32, "squeezenet1_1": 64, "densenet121": 32, "googlenet": 64,
    "inception_v3": 299, "mobilenet_v2": 32, "mobilenet_v3_small": 32, "efficientnet_b0": 32, "mnasnet0_5": 32,
    "shufflenet_v2_x0_5": 32, "regnet_y_400mf": 32, "resnext50_32x4d": 32, "convnext_tiny": 32, "vit_b_32": 64,
    "swin_t": 32, "maxvit_t": 224,
}  # fmt: skip
CLASSES = ["a", "b", "c"]


class Settings:
    """The part of a ConfigParser that building a network needs."""

    def __new__(cls, arch):
        from parse_config import ConfigParser
        from tests.conftest import DIGITS

        return ConfigParser(copy.deepcopy(DIGITS) | {"arch": arch})


def one_step(name, size, channels):
    """Build for 3 classes, train one step, evaluate, look at where it sees a class."""
    torch.manual_seed(0)
    model = build_network(Settings({"type": name}), CLASSES, [channels, size, size])
    data, target = torch.randn(2, channels, size, size), torch.tensor([0, 2])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    set_training_mode(model)
    output = model(data)
    loss = F.cross_entropy(main_output(output), target) + 0.3 * sum(
        F.cross_entropy(o, target) for o in auxiliary_outputs(output)
    )
    loss.backward()
    optimizer.step()
    model.eval()
    with torch.no_grad():
        assert main_output(model(data)).shape == (2, 3)
    head = model.get_submodule(head_of(model))
    assert head.weight.shape[0] == 3
    heat = heat_maps(model, data, torch.tensor([0, 1]))
    assert heat.shape == (2, size, size)
    assert 0 <= heat.min() <= heat.max() <= 1


@pytest.mark.parametrize("name", FAMILIES)
def test_one_of_each_family(name):
    one_step(name, FAMILIES[name], 3)


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_one_of_each_family_on_grey_pictures(name):
    one_step(name, FAMILIES[name], 1)


@pytest.mark.slow
@pytest.mark.parametrize("name", models.list_models(module=models))
def test_every_builder(name):
    sizes = {"maxvit_t": 224, "inception_v3": 299}  # what their parts need at least
    one_step(name, sizes.get(name, 112 if name.endswith(("_14", "_16")) else 96), 3)


def test_pictures_of_one_channel_are_the_grey_picture_in_colour():
    torch.manual_seed(0)
    colour = models.resnet18(num_classes=3).eval()
    grey = build_network(Settings({"type": "resnet18"}), CLASSES, [1, 32, 32]).eval()
    load_weights(grey, colour.state_dict(), "x", new_head=False)
    x = torch.randn(2, 1, 32, 32)
    torch.testing.assert_close(grey(x), colour(x.expand(-1, 3, -1, -1)), rtol=1e-4, atol=1e-5)


def test_a_builder_that_takes_anything_is_given_the_number_of_classes_only(own_code):
    own_code(
        "any_net",
        "from torch import nn\ndef make(kind, **kwargs):\n    return nn.Linear(4, kwargs.pop('num_classes'), **kwargs)\n",
    )
    model = build_network(Settings({"type": "any_net.make", "args": {"kind": "x"}}), CLASSES, [3, 32, 32])
    assert model.out_features == 3


def test_builders_arguments_are_checked():
    with pytest.raises(UserError, match=r'resnet18 takes no "num_clases"; did you mean "num_classes"'):
        Settings({"type": "resnet18", "args": {"num_clases": 3}})
    with pytest.raises(UserError, match="should be a number"):
        Settings({"type": "mobilenet_v2", "args": {"dropout": "much"}})
    assert Settings({"type": "resnet18", "args": {"zero_init_residual": True}}).init_obj("arch").fc.out_features == 1000


@pytest.mark.parametrize(
    ("name", "size", "macs", "parameters"),
    [("resnet18", 224, 1.814e9, 11_689_512), ("mobilenet_v2", 224, 0.301e9, 3_504_872), ("vgg11", 224, 7.61e9, 132_863_336)],
)
def test_summary_counts_as_torchvision_publishes(name, size, macs, parameters):
    with torch.device("meta"):
        model = getattr(models, name)()
    table, output = summary(model, torch.empty(2, 3, size, size, device="meta"))
    *_, total, trainable, counted = table.splitlines()[-1].split()
    assert int(total.replace(",", "")) == int(trainable.replace(",", "")) == parameters
    assert int(counted.replace(",", "")) == pytest.approx(macs, rel=0.01)
    assert output.shape == (2, 1000)
    assert "GFLOPS" not in table


@pytest.mark.parametrize("kind", ["bare", "state_dict", "model", "model_ema", "module.", "_orig_mod."])
def test_weights_from_any_kind_of_checkpoint(tmp_path, kind):
    model = models.resnet18(num_classes=3)
    state = model.state_dict()
    if kind.endswith("."):
        state = {f"{kind}{name}": tensor for name, tensor in state.items()}
    elif kind == "model_ema":
        state = {"model": {name: torch.zeros_like(tensor) for name, tensor in state.items()}, "model_ema": state, "epoch": 3}
    elif kind != "bare":
        state = {kind: state, "optimizer": {"state": {}}}
    torch.save(state, tmp_path / "x.pth")
    assert_same(dict(read_weights(tmp_path / "x.pth")), dict(model.state_dict()))


def test_a_head_of_another_size_stays_fresh_and_anything_else_is_refused():
    other, own = models.resnet18(num_classes=7), models.resnet18(num_classes=3)
    before = own.fc.weight.clone()
    assert load_weights(own, other.state_dict(), "x", new_head=True) == ["fc.weight", "fc.bias"]
    assert torch.equal(own.fc.weight, before)
    assert torch.equal(own.layer4[1].conv2.weight, other.layer4[1].conv2.weight)
    with pytest.raises(CheckpointError, match=r"fc\.weight is \[7, 512\] there and \[3, 512\] here"):
        load_weights(own, other.state_dict(), "x", new_head=False)
    with pytest.raises(CheckpointError, match="another network"):
        load_weights(own, models.resnet34().state_dict(), "x", new_head=True)


def test_torchvisions_weights_come_from_the_cache_or_say_which_file_to_put_where(tmp_path, monkeypatch):
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
    with pytest.raises(UserError, match="no network of torchvision"):
        torchvision_weights("LeNet", "DEFAULT")


def transfer(digits, changes=None):
    """A small convolutional network on the digits, its backbone frozen."""
    return digits(
        {
            "arch": {"type": "resnet18", "freeze": "backbone"},
            "data_loader.args.batch_size": 150,
            "optimizer.args.lr": 0.01,
            "lr_scheduler": None,
            "trainer.epochs": 2,
            **(changes or {}),
        }
    )


def test_what_is_frozen_stays_to_the_last_bit(digits, own_code, train):
    own_code("net", "from torch import nn\n" + SMALL)
    run = train(
        transfer(digits, {"arch.type": "net.small", "optimizer": {"type": "AdamW", "args": {"lr": 0.01}}}), "--epochs", 1
    )
    first = last_checkpoint(run)["state_dict"]
    run = train(transfer(digits, {"arch.type": "net.small", "optimizer": {"type": "AdamW", "args": {"lr": 0.01}}}))
    second = last_checkpoint(run)["state_dict"]
    for name, tensor in first.items():  # batch norm's running mean and count too
        assert torch.equal(tensor, second[name]) == (not name.startswith("head.")), name


SMALL = """
def small(num_classes=10):
    from collections import OrderedDict
    return nn.Sequential(OrderedDict(
        conv=nn.Conv2d(1, 8, 3, stride=2), norm=nn.BatchNorm2d(8), act=nn.ReLU(), pool=nn.AdaptiveAvgPool2d(4),
        flat=nn.Flatten(), head=nn.Linear(128, num_classes)))
def dropping(num_classes=10):
    network = small(num_classes)
    network.flat = nn.Sequential(nn.Flatten(), nn.Dropout())
    return network
"""


def test_features_are_computed_once_and_give_the_same_head(digits, own_code, train, capsys):
    own_code("net", "from torch import nn\n" + SMALL)
    changes = {"arch.type": "net.small", "trainer.ema_decay": 0.9, "trainer.epochs": 5}
    once = train(transfer(digits, changes))
    assert "features are computed once" in capsys.readouterr().out
    each = train(transfer(digits, {**changes, "trainer.reuse_features": False}))
    assert "features are computed once" not in capsys.readouterr().out
    ours, reference = last_checkpoint(once), last_checkpoint(each)
    for part in (lambda s: s["state_dict"], lambda s: s["ema"]["state_dict"]):
        assert part(ours).keys() == part(reference).keys()
        for name, tensor in part(reference).items():
            torch.testing.assert_close(part(ours)[name], tensor, rtol=1e-4, atol=1e-6)
    assert ours["monitor_best"] == pytest.approx(reference["monitor_best"], rel=1e-4)
    assert ours["input"] == reference["input"]


def test_a_run_on_stored_features_resumes_bit_for_bit(digits, own_code, train, resume):
    own_code("net", "from torch import nn\n" + SMALL)
    whole = train(transfer(digits, {"arch.type": "net.small"}), "--epochs", 4)
    half = train(transfer(digits, {"arch.type": "net.small"}), "--epochs", 2)
    resume(half, "--epochs", 4)
    assert_same(last_checkpoint(half)["state_dict"], last_checkpoint(whole)["state_dict"])


@pytest.mark.parametrize(
    "changes", [{"arch.type": "net.dropping"}, {"arch.unfreeze_at": 2}, {"arch.freeze": ["conv"]}, "augmented"]
)
def test_features_are_not_stored_where_that_would_change_something(digits, own_code, train, capsys, changes):
    own_code("net", "from torch import nn\n" + SMALL)
    own_code(
        "noisy",
        "import torch\n"
        "from data_loader.data_loaders import DigitsDataLoader\n"
        "class Noisy(torch.utils.data.Dataset):\n"
        "    def __init__(self, inner): self.inner, self.targets = inner, inner.targets\n"
        "    def __len__(self): return len(self.inner)\n"
        "    def __getitem__(self, i): return self.inner[i][0] + torch.rand(1), self.inner[i][1]\n"
        "class Loader(DigitsDataLoader):\n"
        "    def build_dataset(self, subset, augment):\n"
        "        inner = super().build_dataset(subset, augment)\n"
        "        return Noisy(inner) if augment else inner\n",
    )
    changes = {"data_loader.type": "noisy.Loader"} if changes == "augmented" else changes
    train(transfer(digits, {"arch.type": "net.small", **changes}))
    assert "features are computed once" not in capsys.readouterr().out


def test_thawing_at_an_epoch(digits, own_code, train, resume):
    own_code("net", "from torch import nn\n" + SMALL)
    config = transfer(digits, {"arch.type": "net.small", "arch.unfreeze_at": 3})
    two, three = (last_checkpoint(train(config, "--epochs", n))["state_dict"] for n in (2, 3))
    fresh = last_checkpoint(train(config, "--epochs", 1, "-s", "optimizer.args.lr=1e-30"))["state_dict"]
    assert torch.equal(two["conv.weight"], fresh["conv.weight"])
    assert not torch.equal(three["conv.weight"], fresh["conv.weight"])
    half = train(config, "--epochs", 2)
    resume(half, "--epochs", 3)
    assert_same(last_checkpoint(half)["state_dict"], three)


@pytest.mark.parametrize(
    ("freeze", "said"),
    [("(", "no regular expression"), (["nowhere"], 'no parameter matches "nowhere"'), ([""], "nothing is left to train")],
)
def test_freezing_nothing_or_all_is_a_plain_sentence(digits, train, capsys, freeze, said):
    train(digits({"arch.freeze": freeze}), code=2)
    assert said in capsys.readouterr().err


def test_freezing_by_pattern():
    model = LeNet()
    Freezing(["^conv"], until=4).apply(model, 1)
    assert [name for name, p in model.named_parameters() if not p.requires_grad] == [
        "conv1.weight", "conv1.bias", "conv2.weight", "conv2.bias",
    ]  # fmt: skip
    Freezing(["^conv"], until=4).apply(model, 4)
    assert all(p.requires_grad for p in model.parameters())


def test_parameter_groups_learn_as_told(digits):
    rules = [{"match": "^fc2", "lr": 0.01, "weight_decay": 0.5}, {"match": "^fc", "lr": 0.005}]
    config = digits({"optimizer": {"type": "AdamW", "args": {"lr": 0.001}, "param_groups": rules, "no_decay": True}})
    trainer = build(config)
    told = {id(p): group for group in trainer.optimizer.param_groups for p in group["params"]}
    expected = {
        "conv1.weight": (0.001, 0.01),
        "fc1.weight": (0.005, 0.01),
        "fc2.weight": (0.01, 0.5),
        "fc2.bias": (0.01, 0.0),
    }
    named = dict(trainer.model.named_parameters())
    assert len(told) == len(named)
    for name, (lr, decay) in expected.items():
        group = told[id(named[name])]
        assert (group["lr"], group["weight_decay"]) == (lr, decay)
    # one step by hand, a group at a time
    model = copy.deepcopy(trainer.model)
    data, target = next(trainer.data_loader.batches())
    trainer.model.eval(), model.eval()
    F.cross_entropy(model(data), target).backward()
    for name, p in model.named_parameters():
        lr = 0.01 if name.startswith("fc2") else 0.005 if name.startswith("fc") else 0.001
        decay = 0.0 if p.ndim == 1 else 0.5 if name.startswith("fc2") else 0.01
        torch.optim.AdamW([p], lr=lr, weight_decay=decay).step()
    F.cross_entropy(trainer.model(data), target).backward()
    trainer.optimizer.step()
    for (name, ours), theirs in zip(trainer.model.named_parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, msg=name)


def test_layers_further_from_the_head_learn_slower():
    model = models.resnet18(num_classes=3)
    rates = {id(p): group["lr"] for group in parameter_groups(model, 0.1, layer_decay=0.5) for p in group["params"]}
    depth = {"fc": 0, "layer4": 1, "layer3": 2, "layer2": 3, "layer1": 4, "bn1": 5, "conv1": 6}
    for name, parameter in model.named_parameters():
        assert rates[id(parameter)] == pytest.approx(0.1 * 0.5 ** depth[name.split(".")[0]])


def test_a_rule_that_matches_nothing_is_a_plain_sentence(digits, train, capsys):
    train(digits({"optimizer.param_groups": [{"match": "^head", "lr": 0.1}]}), code=2)
    assert 'no parameter matches "^head"; there are conv1.weight' in capsys.readouterr().err
    train(digits({"optimizer.param_groups": [{"match": "fc", "learning_rate": 0.1}]}), code=2)
    assert "optimizer.param_groups" in capsys.readouterr().err


def test_auxiliary_heads_count_three_tenths(digits):
    trainer = build(digits())
    main, aux = torch.randn(4, 10), torch.randn(4, 10)
    target = torch.tensor([1, 2, 3, 4])
    expected = F.cross_entropy(main, target) + 0.3 * F.cross_entropy(aux, target)
    torch.testing.assert_close(trainer.loss(models.inception.InceptionOutputs(main, aux), target), expected)
    torch.testing.assert_close(trainer.loss(main, target), F.cross_entropy(main, target))


def test_head_of():
    assert [head_of(n) for n in (LeNet(), models.squeezenet1_1())] == ["fc2", "classifier.1"]
    with pytest.raises(UserError, match="no linear"):
        head_of(nn.Flatten())


def test_starting_from_weights_in_a_file(digits, train, tmp_path, capsys):
    old = train(digits())
    run = train(digits({"arch.weights": str(old / "model_best.pth"), "optimizer.args.lr": 1e-9, "trainer.epochs": 1}))
    assert f"weights of {old / 'model_best.pth'}" in capsys.readouterr().out
    torch.testing.assert_close(
        last_checkpoint(run)["state_dict"]["fc1.weight"], last_checkpoint(old)["state_dict"]["fc1.weight"]
    )
    train(digits({"arch.weights": str(tmp_path / "none.pth")}), code=2)
    assert "there is no file" in capsys.readouterr().err
