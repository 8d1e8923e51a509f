"""Running statistics counted anew, compared with torch's update_bn."""

import copy

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import update_bn

from model.batch_norm import batch_norms, recompute_statistics, unsettled
from tests.conftest import assert_same

BATCHES = [torch.randn(size, 3, 6, 6) * 2 + 1 for size in (8, 8, 5)]


def network(momentum=0.1):
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, momentum=momentum), nn.ReLU(),
        nn.Conv2d(4, 5, 3), nn.BatchNorm2d(5, momentum=momentum), nn.Flatten(), nn.Dropout(0.5),
        nn.Linear(20, 2),
    )  # fmt: skip


def test_statistics_equal_torchs():
    ours, torchs = network(), network()
    before = copy.deepcopy(ours.state_dict())
    kept = recompute_statistics(ours, batch_norms(ours), ours, BATCHES)
    update_bn(BATCHES, torchs)
    assert_same(dict(ours.state_dict()), dict(torchs.state_dict()))
    assert ours[1].momentum == 0.1
    ours.load_state_dict(kept, strict=False)
    assert_same(dict(ours.state_dict()), dict(before))


def test_only_the_named_norms_change_and_modes_stay():
    net = network()
    net[1].eval()
    modes = [module.training for module in net.modules()]
    before = copy.deepcopy(net.state_dict())
    recompute_statistics(net, ["4"], net, BATCHES)
    assert modes == [module.training for module in net.modules()]
    changed = {k for k, v in net.state_dict().items() if not torch.equal(v, before[k])}
    assert changed == {"4.running_mean", "4.running_var", "4.num_batches_tracked"}


def test_a_norm_that_is_not_used_and_batches_of_one_keep_their_statistics():
    net = network()
    net.unused = nn.BatchNorm1d(2)
    net.unused.running_mean.fill_(3.0)
    first = nn.Sequential(*list(net)[:-1])
    recompute_statistics(net, ["unused"], first, BATCHES)
    assert net.unused.running_mean.tolist() == [3.0, 3.0]
    before = copy.deepcopy(net.state_dict())
    recompute_statistics(net, ["1"], first, [batch[:1] for batch in BATCHES])
    assert_same(dict(net.state_dict()), dict(before))


@pytest.mark.parametrize(
    ("momentum", "updates", "expected"),
    [(0.1, 99, ["1", "4"]), (0.1, 101, []), (0.01, 180, ["1", "4"]), (0.01, 1001, []),
     (None, 1, [])],
)  # fmt: skip
def test_few_updates_with_a_small_momentum_are_unsettled(momentum, updates, expected):
    net = network(momentum)
    for norm in (net[1], net[4]):
        norm.num_batches_tracked.fill_(updates)
    assert unsettled(net, updates) == expected
    assert unsettled(net.eval(), updates) == []


def test_a_pretrained_network_counts_the_updates_of_this_run():
    net = network()
    for norm in (net[1], net[4]):
        norm.num_batches_tracked.fill_(100_000)
    assert unsettled(net, updates=20) == ["1", "4"]
