"""A trained network is asked without a configuration: its answers are torchvision's own."""

import pytest
import torch
from PIL import Image
from torchvision import models

import test as script
from model.__main__ import main as list_networks
from tests.conftest import save_images


@pytest.fixture
def images(tmp_path):
    save_images(tmp_path / "images", {"all": 3}, size=(260, 300))
    return tmp_path / "images"


def test_answers_are_those_of_torchvision(images, tmp_path, capsys):
    torch.manual_seed(0)
    network = models.mobilenet_v2()
    with torch.no_grad():
        for _ in range(20):  # without statistics its outputs would all be nearly zero
            network(torch.rand(8, 3, 64, 64))
    network.eval()
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    ask = ["--arch", "mobilenet_v2", "--weights", str(tmp_path / "weights.pth")]
    assert script.main([*ask, "--images", str(images), "-d", "cpu"]) == 0
    lines = capsys.readouterr().out.splitlines()
    usual = models.MobileNet_V2_Weights.DEFAULT
    for path, line in zip(sorted(images.glob("*/*")), lines, strict=True):
        with torch.no_grad(), Image.open(path) as image:
            output = network(usual.transforms()(image)[None])
        values, numbers = output.softmax(1)[0].topk(5)
        shown = line.partition(": ")[2]
        assert [text.rpartition(" ")[0] for text in shown.split(", ")[:1]] == [
            usual.meta["categories"][numbers[0]]
        ]
        found = [float(part.rpartition(" ")[2]) for part in shown.split(", ") if "0." in part]
        assert found == pytest.approx(values.tolist(), abs=2e-4)


def test_device_need_not_be_named(images, tmp_path, capsys):
    torch.save(models.mobilenet_v2(num_classes=2).state_dict(), tmp_path / "two.pth")
    arguments = ["--arch", "mobilenet_v2", "--weights", str(tmp_path / "two.pth")]
    assert script.main([*arguments, "--images", str(images)]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(list(images.glob("*/*")))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--arch", "mobilenet_v2"], "pass --images, too"),
        (["--arch", "mobilenet", "--images", "x"], 'no network "mobilenet"; it has alexnet'),
        (["--arch", "resnet18", "--weights", "lost.pth", "--images", "x"], "there is no file lost"),
        (["--arch", "resnet18", "--weights", "BEST", "--images", "x"], "has only IMAGENET1K_V1"),
    ],
)
def test_mistakes_are_said(arguments, message, capsys):
    assert script.main(arguments) == 2
    assert message in capsys.readouterr().err


def test_weights_without_a_head_give_no_answer(images, tmp_path, capsys):
    state = models.mobilenet_v2().state_dict()
    backbone = {name: value for name, value in state.items() if not name.startswith("classifier")}
    torch.save(backbone, tmp_path / "backbone.pth")
    ask = ["--arch", "mobilenet_v2", "--weights", str(tmp_path / "backbone.pth")]
    assert script.main([*ask, "--images", str(images)]) == 2
    assert "lacks classifier.1" in capsys.readouterr().err


def test_networks_are_listed_with_their_size(capsys):
    assert list_networks(["mobilenet_v2", "lenet", "resnet18"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    found = {row[0]: row[1:] for row in rows}
    parameters = sum(value.numel() for value in models.resnet18().parameters())
    assert float(found["resnet18"][0]) == pytest.approx(parameters / 1e6, abs=0.01)
    assert float(found["resnet18"][2]) == pytest.approx(1.814, abs=0.01)  # torchvision's page
    assert float(found["mobilenet_v2"][2]) == pytest.approx(0.301, abs=0.01)
    assert {"LeNet", "googlenet"} <= found.keys()
    assert list_networks(["nothing"]) == 2
