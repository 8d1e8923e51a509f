"""A network learns from a teacher: a run, a checkpoint, or the network before the first cut."""

import copy

import pytest
import torch
import torch.nn.functional as F

from tests.conftest import SMALL_NETWORK, build


def distilled(teacher, **arguments):
    return {"task": {"type": "DistillationTask", "args": {"teacher": str(teacher), **arguments}}}


def test_loss_is_that_of_the_paper(digits, train):
    run = train(digits())
    trainer = build(digits(distilled(run, weight=0.3, temperature=2.0)))
    data, target = next(iter(trainer.data_loader))
    teacher = copy.deepcopy(trainer.model)
    teacher.load_state_dict(torch.load(run / "model_best.pth", weights_only=True)["state_dict"])
    trainer.model.eval()  # without dropout
    step = trainer.task.step(trainer.model, (data, target))
    with torch.no_grad():
        wanted = teacher.eval()(data)
    answer = trainer.model(data)
    soft = -(F.softmax(wanted / 2, 1) * F.log_softmax(answer / 2, 1)).sum(1).mean()
    entropy = -(F.softmax(wanted / 2, 1) * F.log_softmax(wanted / 2, 1)).sum(1).mean()
    expected = 0.7 * F.cross_entropy(answer, target) + 0.3 * 4 * (soft - entropy)
    torch.testing.assert_close(step.loss, expected)
    with torch.no_grad():
        loss = trainer.task.step(trainer.model, (data, target)).loss
    torch.testing.assert_close(loss, F.cross_entropy(answer, target))


@pytest.mark.parametrize(
    ("teacher", "message"),
    [
        ("nowhere/at/all", "nowhere"),
        ("original", 'this run does not change its "original" network'),
        ("FIVE", "the data's classes"),
    ],
)
def test_an_unsuitable_teacher_is_a_sentence(digits, train, capsys, own_code, teacher, message):
    own_code("five", "from data_loader.data_loaders import DigitsDataLoader\n"
                     "class Named(DigitsDataLoader):\n"
                     "    classes = list('abcdefghij')\n")  # fmt: skip
    if teacher == "FIVE":
        teacher = train(digits({"data_loader.type": "five.Named"}))
        capsys.readouterr()
    train(digits(distilled(teacher)), code=2)
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_a_teacher_of_another_network_teaches_too(digits, train, own_code):
    own_code("net", SMALL_NETWORK)
    teacher = train(digits({"arch": "net.small"}))
    train(digits(distilled(teacher)))
