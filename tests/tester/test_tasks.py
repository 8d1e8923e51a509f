"""A test takes what a task needs from the checkpoint, and not more."""

import test as test_script
from tests.conftest import last_checkpoint
from tests.trainer.test_distillation import distilled
from tests.trainer.test_gan import gan as gan_config
from utils import checkpoint


def test_a_test_judges_by_the_trained_discriminator(digits, train, capsys):
    run = train(digits(gan_config()))
    assert test_script.main(["-r", str(run), "--split", "val"]) == 0
    output = capsys.readouterr().out
    best = checkpoint.load(run / "model_best.pth")["monitor_best"]
    assert f"loss_d              {best:.4f}" in output


def test_teacher_is_not_needed_later_and_not_in_the_checkpoint(digits, train, tmp_path):
    teacher = train(digits())
    run = train(digits(distilled(teacher / "model_best.pth"), name="Student"))
    assert last_checkpoint(run)["kept"] == {"parts": {}, "values": {}}
    teacher.rename(tmp_path / "gone")
    assert test_script.main(["-r", str(run), "--split", "val"]) == 0
