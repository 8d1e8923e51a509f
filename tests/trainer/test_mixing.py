"""MixUp, CutMix and soft targets."""

import pytest
import torch
import torch.nn.functional as F
from torchvision.transforms import v2

from tests.conftest import assert_same, build, last_checkpoint
from tests.trainer.test_resume import STOPPER
from trainer.tasks import MultiLabelTask

MIX = {"trainer.batch_transforms": [{"type": "MixUp", "args": {"alpha": 0.4}}]}


def test_batches_are_torchvisions(digits):
    trainer = build(digits(dict(MIX)))
    batch = next(iter(trainer.data_loader))
    torch.manual_seed(1)
    data, target = v2.MixUp(alpha=0.4, num_classes=10)(*batch)
    trainer.model.eval()
    output = trainer.model(data)
    torch.manual_seed(1)
    [step] = trainer.train_steps(trainer.model, batch)
    assert torch.equal(step.data, data)
    torch.testing.assert_close(step.loss, F.cross_entropy(output, target))
    assert torch.equal(step.target, target.argmax(1))  # for the metrics


def test_only_training_batches_are_mixed(digits):
    trainer, plain = build(digits(dict(MIX))), build(digits())
    plain.model.load_state_dict(trainer.model.state_dict())
    assert trainer._valid_epoch(1) == plain._valid_epoch(1)


def test_run_that_stops_within_an_epoch_goes_on_exactly(digits, train, own_code, resume):
    own_code("stopper", STOPPER)
    config = digits({**MIX, "trainer.type": "stopper.Stopped"})
    whole, cut = (
        train(config, "-s", "trainer.at=1000"),
        train(config, "-s", "trainer.at=5", code=130),
    )
    resume(cut, "-s", "trainer.at=1000")
    one, two = last_checkpoint(whole), last_checkpoint(cut)
    for key in ("state_dict", "optimizer", "monitor_best"):
        assert_same(one[key], two[key], key)


@pytest.mark.parametrize(
    ("transform", "message"),
    [
        ("MixUpp", 'there is no "MixUpp"'),
        ({"type": "MixUp", "args": {"alfa": 1}}, 'MixUp takes no "alfa"; it takes alpha'),
    ],
)
def test_a_mistake_is_a_sentence(digits, train, capsys, transform, message):
    train(digits({"trainer.batch_transforms": [transform]}), code=2)
    assert message in capsys.readouterr().err


def test_mixed_labels_of_several_classes_count_as_the_larger_share():
    task = MultiLabelTask(torch.nn.BCEWithLogitsLoss())
    mixed = torch.tensor([[0.7, 0.3, 1.0], [0.0, 0.5, 0.2]])
    step = task.step(torch.nn.Identity(), (torch.zeros(2, 3), mixed))
    assert step.target.tolist() == [[1, 0, 1], [0, 1, 0]]
    torch.testing.assert_close(step.loss, F.binary_cross_entropy(torch.full((2, 3), 0.5), mixed))
