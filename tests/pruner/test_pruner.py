"""Channels removed from networks, compared with what these compute and with torch's counts."""

import copy
import itertools
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision import models

from exporter.onnx_exporter import onnx_bytes
from exporter.onnx_file import session
from model.freezing import set_training_mode
from model.heads import auxiliary_outputs, main_output
from model.model import LeNet
from model.structure import describe, get_structure, resize
from model.summary import multiply_adds
from pruner.graph import SizeForecast, output_layers
from pruner.latency_search import bisect
from pruner.pruners import MagnitudePruner
from pruner.sparse import BNScalePruner, GroupNormPruner, GrowingRegPruner
from tests.exporter.conftest import build_family, export_and_compare
from tests.model.test_networks import FAMILIES as EXPORTED
from utils.errors import CheckpointError, UserError

# name -> image size; the largest share of multiply-adds that half of the channels may leave
FAMILIES = {
    "alexnet": (64, 0.3), "vgg11_bn": (64, 0.3), "vgg16": (64, 0.3), "resnet18": (64, 0.3),
    "resnet50": (64, 0.3), "squeezenet1_1": (64, 0.3), "densenet121": (64, 0.3),
    "googlenet": (64, 0.3), "inception_v3": (299, 0.3), "mobilenet_v2": (64, 0.3),
    "mobilenet_v3_small": (64, 0.32), "efficientnet_b0": (64, 0.3), "efficientnet_v2_s": (64, 0.3),
    "mnasnet1_0": (64, 0.3), "shufflenet_v2_x1_0": (64, 0.6), "regnet_x_400mf": (64, 0.3),
    "regnet_y_400mf": (64, 0.45), "resnext50_32x4d": (64, 0.3), "convnext_tiny": (64, 0.3),
    "vit_b_16": (32, 0.3), "swin_t": (64, 0.9), "maxvit_t": (64, 0.65),
}  # fmt: skip
DEFAULT = ("resnet18", "googlenet", "mobilenet_v2", "shufflenet_v2_x1_0", "squeezenet1_1")


def build(name):
    """A network for 5 classes, always with the same weights."""
    torch.manual_seed(0)
    size = FAMILIES[name][0]
    if name == "maxvit_t":  # a small one: tracing the full one takes minutes
        return models.MaxVit(
            (size, size), 64, 2, [64, 128], [1, 1], 32, 0.2, num_classes=5
        ).eval()  # fmt: skip
    options = {"image_size": size} if name.startswith("vit") else {}
    options |= {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    network = getattr(models, name)(num_classes=5, **options)
    if name.startswith("vit"):
        nn.init.normal_(network.heads.head.weight)  # it is built with zeros, which prove nothing
    return network.eval()


def example(name, count=2):
    size = FAMILIES[name][0]
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def train_a_step(network, data):
    """One short step of SGD, as untrained networks give huge gradients; fails after a wrong cut."""
    set_training_mode(network)
    output = network(data)
    target = torch.tensor([0, 3])
    loss = F.cross_entropy(main_output(output), target) + sum(
        F.cross_entropy(o, target) for o in auxiliary_outputs(output)
    )
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-3)
    loss.backward()
    nn.utils.clip_grad_norm_(network.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    network.eval()


@pytest.mark.parametrize(
    "name",
    [name if name in DEFAULT else pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES],
)
def test_pruned_network_trains_loads_is_pruned_again_and_exports(name):
    network, x = build(name), example(name)
    before = multiply_adds(network, x)[0][""]
    pruner = MagnitudePruner(iterative_steps=3, channel_sparsity=0.5)
    assert [pruner.prune(network, x, step, {}) for step in (1, 2, 3)] == [False, False, True]
    assert multiply_adds(network, x)[0][""] <= FAMILIES[name][1] * before
    train_a_step(network, x)

    kept = {"structure": get_structure(network), "state_dict": network.state_dict()}
    again = build(name)
    resize(again, kept["structure"])
    again.load_state_dict(kept["state_dict"])
    with torch.no_grad():
        expected = main_output(network(x))
        assert torch.equal(main_output(again(x)), expected)
    assert expected.shape == (2, 5)
    assert expected.std() > 0

    further = MagnitudePruner(channel_sparsity=0.25)
    further.prune(again, x, 1, {})
    assert sum(p.numel() for p in again.parameters()) < sum(p.numel() for p in network.parameters())
    train_a_step(again, x)
    third = build(name)
    resize(third, get_structure(again))
    third.load_state_dict(again.state_dict())
    with torch.no_grad():
        assert torch.equal(main_output(third(x)), main_output(again(x)))
        file = session(onnx_bytes(again, x))
        for count in (1, 5):
            data = example(name, count)
            [output] = file.run(None, {"input": data.numpy()})
            expected = main_output(again(data)).numpy()
            assert np.abs(output - expected).max() <= 1e-4 * np.abs(expected).max()


@pytest.mark.slow
@pytest.mark.parametrize("name", EXPORTED)
def test_pruned_network_of_each_family_equals_its_file(name, tmp_path):
    model, size = build_family(name).eval(), EXPORTED[name]
    MagnitudePruner(channel_sparsity=0.5).prune(model, torch.randn(2, 3, size, size), 1, {})
    export_and_compare(model, size, tmp_path / "model.onnx")


def test_units_with_the_smallest_norms_are_removed():
    """Of two linear layers: the others compute the same function as before."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 3)).eval()
    whole, x = copy.deepcopy(network), torch.randn(2, 6)
    MagnitudePruner(channel_sparsity=0.5, round_to=1).prune(network, x, 1, {})
    with torch.no_grad():
        worth = whole[0].weight.square().sum(1) + whole[2].weight.square().sum(0)
        stays = worth.argsort(descending=True)[:16].sort().values
        expected = F.linear(F.relu(whole[0](x)[:, stays]), whole[2].weight[:, stays], whole[2].bias)
        assert torch.equal(network[0].weight, whole[0].weight[stays])
        torch.testing.assert_close(network(x), expected)


@pytest.mark.parametrize(
    "name", ["resnet18", "mobilenet_v2", pytest.param("vgg11_bn", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("what", ["macs", "params"])
@pytest.mark.parametrize("goal", [0.6, 0.3])
def test_size_targets_are_met_within_three_percent(name, what, goal):
    network, x = build(name), example(name)
    original = sizes(network, x)
    pruner = MagnitudePruner(iterative_steps=2, target={what: goal})
    pruner.prune(network, x, 1, original)
    assert goal < sizes(network, x)[what] / original[what] < 1
    assert pruner.prune(network, x, 2, original)
    assert 0.97 * goal <= sizes(network, x)[what] / original[what] <= goal


def sizes(network, x):
    """Multiply-adds and parameters."""
    return {
        "macs": multiply_adds(network, x)[0][""],
        "params": sum(p.numel() for p in network.parameters()),
    }


@pytest.mark.parametrize(
    "name", ["resnet18", "mobilenet_v2", pytest.param("densenet121", marks=pytest.mark.slow)]
)
def test_size_forecast_equals_the_pruned_network(name):
    network, x = build(name), example(name)
    graph = MagnitudePruner(channel_sparsity=0.5)._graph(network, x)
    forecast = SizeForecast(graph, multiply_adds(network, x)[0])
    removals = {name: np.arange(1, group.units, 3) for name, group in graph.groups.items()}
    expected = forecast(removals)
    graph.prune(removals)
    layers = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    channels = sum(layer.weight.shape[0] for layer in layers)
    assert expected == pytest.approx(sizes(network, x) | {"channels": channels}, rel=1e-9)


def plan_and_prune(network, x, **arguments):
    """The plan's lines; and after each step, beginning with the original, widths and sizes."""
    pruner, original = MagnitudePruner(**arguments), sizes(network, x)
    lines, measured, is_last = pruner.plan_steps(network, x, original), [], False
    while True:
        layers = {n: m for n, m in network.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}
        widths = {name: layer.weight.shape[0] for name, layer in layers.items()}
        share = {key: size / original[key] for key, size in sizes(network, x).items()}
        measured.append({"widths": widths, **share})
        if is_last:
            return lines, measured
        is_last = pruner.prune(network, x, len(measured), original)


def planned_rows(lines):
    """The plan's table: channels, shares of multiply-adds and of parameters after each step."""
    rows = [re.fullmatch(r"\d+ +([\d,]+) +([\d.]+)% +([\d.]+)%", line) for line in lines]
    return [[float(cell.replace(",", "")) for cell in row.groups()] for row in rows if row]


@pytest.mark.parametrize(
    ("arguments", "empty"),
    [
        ({"channel_sparsity": 0.8, "iterative_steps": 8}, "steps 2, 5 and 8 remove nothing"),
        ({"channel_sparsity": 0.2, "iterative_steps": 2}, "step 2 removes nothing"),
        ({"channel_sparsity": 0.8, "iterative_steps": 8, "round_to": 4}, None),
        ({"channel_sparsity": 0.8, "iterative_steps": 8, "round_to": 1}, None),
        (
            {"channel_sparsity": 0.5, "iterative_steps": 50, "global_pruning": True},
            "remove nothing",
        ),
        ({"channel_sparsity": 0.5, "iterative_steps": 9, "isomorphic": True}, "remove nothing"),
        ({"channel_sparsity": 0.8, "iterative_steps": 8, "ratios": {"fc1": 0.2}}, "remove nothing"),
        ({"target": {"max_accuracy_drop": 0.1}, "iterative_steps": 8}, "remove nothing"),
        ({"target": {"macs": 0.5}, "iterative_steps": 8}, "remove nothing"),
        ({"target": {"params": 0.3}, "iterative_steps": 20, "round_to": 2}, "remove nothing"),
    ],
)
def test_each_step_leaves_what_the_plan_says(arguments, empty):
    torch.manual_seed(0)
    lines, measured = plan_and_prune(LeNet().eval(), torch.randn(2, 1, 28, 28), **arguments)
    assert max(map(len, lines)) <= 80
    text, steps = " ".join(lines), arguments["iterative_steps"]
    rows = planned_rows(lines)
    assert len(rows) == len(measured)
    assert (empty or "") in text
    assert (f"{steps} steps become {len(rows) - 1}" in text) == (len(rows) - 1 < steps)
    assert (empty is None) == (len(rows) - 1 == steps)
    channels = [sum(step["widths"].values()) for step in measured]
    assert all(old > new for old, new in itertools.pairwise(channels))  # no step removes nothing
    expected = [[sum(s["widths"].values()), 100 * s["macs"], 100 * s["params"]] for s in measured]
    for measure, goal in arguments.get("target", {}).items():
        if measure in ("macs", "params"):
            assert measured[-1][measure] <= goal < measured[-2][measure]
            assert rows[-1][1 + (measure == "params")] <= 100 * goal
    # later cuts of a common ranking depend on what earlier ones did to it
    count = 2 if "global_pruning" in arguments else None
    assert np.array(rows[:count]) == pytest.approx(np.array(expected[:count]), abs=0.051)


@pytest.mark.parametrize("round_to", [8, 4, 1])
def test_widths_after_each_step_are_the_largest_that_the_aim_allows(round_to):
    lines, measured = plan_and_prune(
        LeNet().eval(), torch.randn(2, 1, 28, 28),
        channel_sparsity=0.8, iterative_steps=8, round_to=round_to,
    )  # fmt: skip
    whole, expected = {"conv1": 10, "conv2": 20, "fc1": 50}, []
    for step in range(9):
        left = {name: (10 - step) * width // 10 for name, width in whole.items()}
        widths = {name: max(round_to, width // round_to * round_to) for name, width in left.items()}
        expected += [widths if step else whole]
    different = [widths for widths, _ in itertools.groupby(expected)]
    assert [step["widths"] for step in measured] == [w | {"fc2": 10} for w in different]
    stays = ", ".join(f"{name} {different[-1][name]} of {whole[name]}" for name in whole)
    assert f"Channels left: {stays}; the limits are round_to {round_to}" in " ".join(lines)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"channel_sparsity": 0.5}, "would remove nothing. Channels left: 0 8 of 8"),
        ({"channel_sparsity": 0.5, "round_to": 1, "min_channels": 8}, "would remove nothing"),
        ({"channel_sparsity": 0.5, "round_to": 2, "ratios": {"0": 0.0}}, "would remove nothing"),
        ({"target": {"macs": 0.5}}, "macs cannot be reduced to 0.5 of the original's, only to 1"),
        ({"target": {"params": 0.1}, "round_to": 2}, "params cannot be reduced to 0.1"),
        ({"target": {"max_accuracy_drop": 0.5}}, "would remove nothing"),
    ],
)
@pytest.mark.parametrize("steps", [1, 8])
def test_network_that_cannot_be_reduced_is_refused_by_the_plan(arguments, message, steps):
    network = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    x, pruner = torch.randn(2, 6), MagnitudePruner(iterative_steps=steps, **arguments)
    with pytest.raises(UserError, match=message):
        pruner.plan_steps(network, x, sizes(network, x))


def test_step_that_would_remove_nothing_goes_on_to_the_next_part():
    """Here 45 of 100 units are gone before the second of four steps, which should leave 60."""
    torch.manual_seed(0)
    network, x = nn.Sequential(nn.Linear(6, 100), nn.ReLU(), nn.Linear(100, 3)), torch.randn(2, 6)
    arguments = {"channel_sparsity": 0.8, "iterative_steps": 4, "round_to": 1}
    pruner = MagnitudePruner(**arguments)
    assert not pruner.prune(network.eval(), x, 1, {})
    assert network[0].out_features == 80
    MagnitudePruner(channel_sparsity=0.3125, round_to=1).prune(network, x, 1, {})
    assert network[0].out_features == 55
    assert not pruner.prune(network, x, 2, {})
    assert network[0].out_features == 40
    again = MagnitudePruner(**arguments)
    again.load_state_dict(pruner.state_dict())
    assert again.prune(network, x, 3, {})
    assert network[0].out_features == 20


def test_nothing_left_to_remove_ends_the_steps_and_says_why(caplog):
    torch.manual_seed(0)
    network, x = nn.Sequential(nn.Linear(6, 40), nn.ReLU(), nn.Linear(40, 3)), torch.randn(2, 6)
    pruner = MagnitudePruner(channel_sparsity=0.8, iterative_steps=4)
    assert not pruner.prune(network.eval(), x, 1, {})
    MagnitudePruner(channel_sparsity=0.9).prune(network, x, 1, {})
    before = copy.deepcopy(network.state_dict())
    with caplog.at_level("INFO"):
        assert pruner.prune(network, x, 2, {})
    assert "step 2 removes nothing more: the aim is reached, or the limits are. " in caplog.text
    assert "Channels left: 0 8 of 40; the limits are round_to 8" in caplog.text
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())


def test_multiply_adds_equal_those_of_torch_pruning():
    import torch_pruning

    network, x = build("resnet18"), example("resnet18", 1)
    counted, _ = torch_pruning.utils.count_ops_and_params(network, x)
    # it counts batch norms and poolings too
    assert multiply_adds(network, x)[0][""] == pytest.approx(counted, rel=0.02)


def test_limits_are_kept():
    network, x = build("resnet18"), example("resnet18")
    before = describe(network)["shapes"]
    pruner = MagnitudePruner(
        channel_sparsity=0.9, max_channel_sparsity=0.6, min_channels=40, round_to=16,
        global_pruning=True, ignored_layers=["layer3"], ratios={r"layer4\.1\.conv1": 0.25},
    )  # fmt: skip
    pruner.prune(network, x, 1, {})
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d):
            built, now = before[f"{name}.weight"][0], module.out_channels
            assert now >= max(40, 0.4 * built), name
            assert now % 16 == 0, name
            if name.startswith("layer3"):
                assert now == built, name
    assert network.layer4[1].conv1.out_channels == 384
    assert network.fc.out_features == 5
    assert network.layer1[0].conv1.out_channels < 64


@pytest.mark.parametrize("options", [{"global_pruning": True}, {"isomorphic": True}])
def test_common_ranking_removes_more_where_less_is_lost(options):
    """Ranked alone three layers lose half each; together, those made unimportant lose more."""
    torch.manual_seed(0)
    network = nn.Sequential(
        *[part for _ in range(3) for part in (nn.Linear(32, 32), nn.ReLU())], nn.Linear(32, 3)
    ).eval()
    with (
        torch.no_grad()
    ):  # importance is relative to a group's mean: what counts is how uneven it is
        for layer in (network[2], network[4]):
            layer.weight[:24] *= 1e-3
        network[4].weight[:, :24] *= 1e-3
        network[6].weight[:, :24] *= 1e-3
    x, alone = torch.randn(2, 32), copy.deepcopy(network)
    MagnitudePruner(channel_sparsity=0.5, round_to=1, min_channels=4, **options).prune(
        network, x, 1, {}
    )
    MagnitudePruner(channel_sparsity=0.5, round_to=1).prune(alone, x, 1, {})
    assert [alone[place].out_features for place in (0, 2, 4)] == [16, 16, 16]
    assert network[0].out_features > 16 > network[2].out_features
    assert sum(network[place].out_features for place in (0, 2, 4)) == 48


@pytest.mark.parametrize(
    "importance",
    [
        *("MagnitudeImportance", "LAMPImportance", "FPGMImportance", "RandomImportance"),
        *("BNScaleImportance", "TaylorImportance"),
        {"type": "MagnitudeImportance", "args": {"p": 1}},
    ],
)
def test_criterion_by_name(importance):
    network, x = build("resnet18"), example("resnet18")
    pruner = MagnitudePruner(channel_sparsity=0.5, importance=importance)
    assert pruner.needs_gradients == (importance == "TaylorImportance")
    F.cross_entropy(network(x), torch.tensor([0, 3])).backward()
    pruner.prune(network, x, 1, {})
    assert network.layer1[0].conv1.out_channels == 32


def test_network_slimming_adds_the_sign_of_each_batch_norm_scale():
    network, x = build("resnet18"), example("resnet18")
    pruner = BNScalePruner(channel_sparsity=0.5, reg=1e-3)
    network(x).sum().backward()
    before = {name: p.grad.clone() for name, p in network.named_parameters()}
    pruner.begin_sparse(network, x)
    pruner.regularize(network)
    for name, parameter in network.named_parameters():
        is_scale = name.endswith("weight") and parameter.ndim == 1
        expected = before[name] + 1e-3 * parameter.detach().sign() if is_scale else before[name]
        torch.testing.assert_close(parameter.grad, expected, msg=name)


@pytest.mark.parametrize("kind", [GroupNormPruner, GrowingRegPruner])
def test_sparse_training_draws_the_least_important_units_most(kind):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))
    x = torch.randn(2, 6)
    pruner = kind(
        channel_sparsity=0.5, reg=1e-2, **({"delta_reg": 1e-2} if kind is GrowingRegPruner else {})
    )
    for _ in range(3):
        pruner.begin_sparse(network, x)
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    pruner.regularize(network)
    pull = (network[0].weight.grad / network[0].weight.detach()).mean(1)  # of each hidden unit
    worth = network[0].weight.detach().square().sum(1) + network[2].weight.detach().square().sum(0)
    assert torch.equal(pull.argsort(descending=True), worth.argsort())
    assert pull.min() > 0
    assert pull.max() > 1.5 * pull.min()


def test_grown_strength_is_restored():
    torch.manual_seed(0)
    network, x = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3)), torch.randn(2, 6)
    one, other = (GrowingRegPruner(channel_sparsity=0.5, delta_reg=1e-2) for _ in range(2))
    for _ in range(2):
        one.begin_sparse(network, x)
    other.load_state_dict(one.state_dict())
    pulls = []
    for pruner in (one, other):
        pruner.begin_sparse(network, x)
        for parameter in network.parameters():
            parameter.grad = torch.zeros_like(parameter)
        pruner.regularize(network)
        pulls.append(network[0].weight.grad.clone())
    assert torch.equal(*pulls)


def test_output_layers_are_found_in_any_order():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.head, self.body, self.extra = nn.Linear(8, 3), nn.Linear(6, 8), nn.Linear(8, 3)

        def forward(self, x):
            x = F.relu(self.body(x))
            return self.head(x) + self.extra(x)

    network = Odd().requires_grad_(False)
    assert sorted(output_layers(network, torch.randn(2, 6))) == ["extra", "head"]
    assert not any(p.requires_grad for p in network.parameters())
    assert sorted(output_layers(build("googlenet"), example("googlenet"))) == [
        "aux1.fc2",
        "aux2.fc2",
        "fc",
    ]
    assert output_layers(build("squeezenet1_1"), example("squeezenet1_1")) == ["classifier.1"]


def test_frozen_layers_are_pruned_too():
    network, x = build("resnet18"), example("resnet18")
    for parameter in network.layer1.parameters():
        parameter.requires_grad_(False)
    MagnitudePruner(channel_sparsity=0.5).prune(network, x, 1, {})
    assert network.layer1[0].conv1.out_channels == 32


class TestStructure:
    @pytest.fixture
    def pruned(self):
        network = build("resnet18")
        MagnitudePruner(channel_sparsity=0.5).prune(network, example("resnet18"), 1, {})
        return network

    def test_is_plain_data(self, pruned, tmp_path):
        torch.save(get_structure(pruned), tmp_path / "structure.pth")
        assert torch.load(tmp_path / "structure.pth", weights_only=True) == get_structure(pruned)

    def test_fits_a_head_for_other_classes(self, pruned):
        other = models.resnet18(num_classes=7)
        resize(other, get_structure(pruned))
        assert (other.fc.in_features, other.fc.out_features) == (256, 7)
        assert other(example("resnet18")).shape == (2, 7)

    @pytest.mark.parametrize("other", ["resnet34", "resnet50", "mobilenet_v2", "wide_resnet50_2"])
    def test_refuses_another_network(self, pruned, other):
        network = getattr(models, other)()

        def load():
            resize(network, get_structure(pruned))
            network.load_state_dict(pruned.state_dict())

        with pytest.raises(
            (CheckpointError, RuntimeError), match=r"another, pruned network|Missing key"
        ):
            load()

    def test_shared_weights_stay_shared(self):
        class Tied(nn.Module):
            def __init__(self):
                super().__init__()
                self.one, self.two, self.head = (
                    nn.Linear(16, 16),
                    nn.Linear(16, 16),
                    nn.Linear(16, 2),
                )
                self.two.weight = self.one.weight

        structure = {
            "shapes": {"one.weight": [[16, 16], [8, 16]], "two.weight": [[16, 16], [8, 16]]},
            "attributes": {},
        }
        network = Tied()
        resize(network, structure)
        assert network.one.weight is network.two.weight
        assert network.one.weight.shape == (8, 16)


class TestLatency:
    @pytest.mark.parametrize("goal", [0.8, 0.5, 0.2])
    @pytest.mark.parametrize("power", [0.6, 1.0, 1.3])
    def test_bisection_needs_few_trials(self, goal, power):
        trials = []

        def latency(share):
            trials.append(share)
            return 0.05 + 0.95 * share**power

        share = bisect(latency, goal, 0.95)
        assert 0.95 * goal <= 0.05 + 0.95 * share**power <= goal
        assert len(trials) <= 5

    def test_coarse_steps_give_the_nearest_that_is_fast_enough(self):
        share = bisect(lambda share: np.ceil(share * 8) / 8, 0.55, 0.95)
        assert np.ceil(share * 8) / 8 == 0.5

    def test_unreachable_latency_gives_none(self):
        assert bisect(lambda share: 0.9, 0.5, 0.95) is None

    def test_pruned_network_is_just_fast_enough(self, monkeypatch):
        """Here the latency is the length of the file."""
        network, x = build("resnet18"), example("resnet18")
        original = sizes(network, x) | {"onnx": onnx_bytes(network, x)}

        def lengths(files, batch, threads):
            return {name: [len(file)] for name, file in files.items()}

        monkeypatch.setattr("pruner.pruners.side_by_side", lengths)
        MagnitudePruner(target={"latency": 0.5}).prune(network, x, 1, original)
        assert 0.47 <= len(onnx_bytes(network, x)) / len(original["onnx"]) <= 0.5

    def test_unreachable_latency_is_a_clear_error(self):
        network, x = LeNet().eval(), torch.randn(2, 1, 28, 28)
        original = sizes(network, x) | {"onnx": onnx_bytes(network, x), "latency_ms": 1.0}
        with pytest.raises(UserError, match="latency_ms cannot be reduced to"):
            MagnitudePruner(target={"latency_ms": 0.001}).plan_steps(network, x, original)

    def test_plan_estimates_the_steps_and_measures_only_whether_the_aim_can_be_reached(
        self, monkeypatch
    ):
        measured = []

        def lengths(files, batch, threads):
            measured.append(files)
            return {name: [len(file)] for name, file in files.items()}

        monkeypatch.setattr("pruner.pruners.side_by_side", lengths)
        network, x = LeNet().eval(), torch.randn(2, 1, 28, 28)
        original = sizes(network, x) | {"onnx": onnx_bytes(network, x), "latency_ms": 4.0}
        pruner = MagnitudePruner(target={"latency_ms": 2.0}, iterative_steps=8)
        lines = pruner.plan_steps(network, x, original)
        assert "estimated from the MACs" in lines[0]
        assert len(measured) == 1
        assert planned_rows(lines)[-1][1] <= 50
        with pytest.raises(UserError, match="already takes only 4 ms"):
            MagnitudePruner(target={"latency_ms": 4.5}).plan_steps(network, x, original)

    @pytest.mark.parametrize("aim", [{"latency": 0.5}, {"latency_ms": 2.0}])
    def test_latency_of_a_network_that_cannot_be_exported_is_refused(self, monkeypatch, aim):
        def fail(network, example):
            raise UserError("torch cannot export LeNet")

        monkeypatch.setattr("pruner.pruners.onnx_bytes", fail)
        network, x = LeNet().eval(), torch.randn(2, 1, 28, 28)
        original = sizes(network, x) | {"onnx": b"", "latency_ms": None}
        with pytest.raises(UserError, match="torch cannot export LeNet"):
            MagnitudePruner(target=aim).plan_steps(network, x, original)


def test_network_that_torch_pruning_cannot_follow_is_a_clear_error():
    class Reshaped(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two, self.head = nn.Linear(8, 16), nn.Linear(4, 8), nn.Linear(32, 2)

        def forward(self, x):
            return self.head(self.two(self.one(x).view(-1, 4, 4)).flatten(1))

    with pytest.raises(UserError, match=r"pruner.*(ignored_layers|removed)"):
        MagnitudePruner(channel_sparsity=0.5, round_to=1).prune(
            Reshaped().eval(), torch.randn(2, 8), 1, {}
        )


def test_pruner_written_for_the_old_names_still_works():
    from base import BasePruner

    class Old(BasePruner):
        def cut(self, network, example, step, original):
            return step == 2

    assert [Old().prune(None, None, step, {}) for step in (1, 2)] == [False, True]
    assert Old().plan_steps(None, None, {}) == []
