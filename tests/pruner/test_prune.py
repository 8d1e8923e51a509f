"""Pruning runs on the real digits; a resumed run equals an unbroken one."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch

import export as export_script
import prune as script
import test as test_script
import train as train_script
from model.model import LeNet
from model.structure import resize
from parse_config import ConfigParser
from tests.conftest import ROOT, assert_same, runs
from utils import checkpoint, run_folder
from utils.errors import UserError

PRUNE = {
    "pruner": {
        "type": "MagnitudePruner",
        "args": {"iterative_steps": 2, "target": {"macs": 0.5}, "round_to": 2},
    },
    "trainer": {
        "epochs": 2,
        "last_epochs": 2,
        "verbosity": 1,
        "monitor": "max val_accuracy",
        "tensorboard": False,
    },
    "optimizer": {"type": "SGD", "args": {"lr": 0.05, "momentum": 0.9}},
    "lr_scheduler": {"type": "OneCycleLR", "args": {"max_lr": 0.05}},
}


@pytest.fixture(autouse=True)
def _short_measurements(monkeypatch):
    monkeypatch.setattr("exporter.latency.SECONDS", 0.1)


@pytest.fixture
def pruning(tmp_path, digits):
    """A function that gives the path of a pruning configuration, changed by keys."""

    def make(changes=None):
        file = tmp_path / "prune.json"
        file.write_text(json.dumps(digits(changes, **json.loads(json.dumps(PRUNE)))))
        return str(file)

    return make


@pytest.fixture
def prune(tmp_path, digits_run):
    """A function that prunes the trained run by a configuration; returns the new run's folder."""

    def run(file, *arguments, code=0, path=digits_run):
        before = set(runs(tmp_path))
        assert script.main(["-c", file, "-r", str(path), *arguments]) == code
        made = sorted(set(runs(tmp_path)) - before)
        return made[0] if made else None

    return run


GUIDE = {"channel_sparsity": 0.8, "iterative_steps": 8}
SHORT = {"trainer.epochs": 1, "trainer.last_epochs": 1}


def rows(run):
    with open(run / "prune" / "steps.csv", encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


def rebuilt(state):
    """The network of a checkpoint, from its constructor and structure."""
    network = LeNet(num_classes=10)
    resize(network, state["structure"])
    network.load_state_dict(state["state_dict"])
    return network.eval()


def comparable(state):
    """A checkpoint without what differs between runs: measured times, the folder."""
    state = {
        key: value for key, value in state.items() if key not in ("config", "versions", "sessions")
    }
    for row in state["trainer"]["pruning"]["rows"]:
        for key in ("latency_ms", "latency", "torch_ms"):
            row.pop(key, None)
    return state


def resumed(run, file):
    """A copy of the run that was resumed from its numbered checkpoint `file`."""
    again = run.with_name(f"again-{file.stem}")
    shutil.copytree(run, again)
    shutil.copytree(run_folder.log_dir_for(run), run_folder.log_dir_for(again))
    for later in checkpoint.numbered_checkpoints(again):
        if int(later.stem[16:]) > int(file.stem[16:]):
            later.unlink()
    assert script.main(["-r", str(again)]) == 0
    return again


def test_steps_csv_agrees_with_the_checkpoints(prune, pruning, digits_run):
    run = prune(pruning())
    table = rows(run)
    assert [row["step"] for row in table] == ["0", "1", "2"]
    columns = ["step", "channels", "macs", "params", "size_mb", "latency_ms", "accuracy"]
    assert list(table[0])[: len(columns)] == columns
    assert int(table[0]["params"]) == sum(p.numel() for p in LeNet(num_classes=10).parameters())
    assert int(table[0]["macs"]) == 24 * 24 * 25 * 10 + 8 * 8 * 25 * 10 * 20 + 320 * 50 + 500
    shares = [int(row["macs"]) / int(table[0]["macs"]) for row in table]
    assert shares[0] == 1 > shares[1] > 0.5 >= shares[2] > 0.45
    state = checkpoint.load(run / "model_best.pth")
    c1, c2, f1 = (
        state["state_dict"][f"{name}.weight"].shape[0] for name in ("conv1", "conv2", "fc1")
    )
    assert int(table[2]["channels"]) == c1 + c2 + f1 + 10 < 90
    assert int(table[2]["macs"]) == 576 * 25 * c1 + 64 * 25 * c1 * c2 + 16 * c2 * f1 + f1 * 10
    assert int(table[2]["params"]) == sum(p.numel() for p in rebuilt(state).parameters())
    assert all(float(row["latency_ms"]) > 0 and 0.01 < float(row["size_mb"]) < 0.1 for row in table)
    assert "so far" not in (run / "prune" / "report.html").read_text(encoding="utf-8")
    assert [p.name for p in sorted((run / "prune").glob("*.pth"))] == [
        "step0.pth",
        "step1.pth",
        "step2.pth",
    ]
    first = checkpoint.load(run / "prune" / "step0.pth")["state_dict"]
    assert_same(dict(first), dict(checkpoint.load(digits_run / "model_best.pth")["state_dict"]))


def test_accuracies_are_those_of_the_checkpoints(prune, pruning):
    run = prune(pruning())
    from parse_config import ConfigParser

    state = checkpoint.load(run / "prune" / "step2.pth")
    samples = ConfigParser(state["config"]).init_obj("data_loader").split_validation()
    for row in rows(run):
        network = rebuilt(checkpoint.load(run / row["checkpoint"]))
        with torch.no_grad():
            right = [network(data).argmax(1) == target for data, target in samples]
        assert float(row["accuracy"]) == pytest.approx(torch.cat(right).double().mean().item())


def test_pruned_checkpoint_works_in_every_script(prune, pruning, digits, tmp_path):
    run = prune(pruning())
    state = torch.load(run / "model_best.pth", weights_only=True)
    network = rebuilt(state)
    assert test_script.main(["-r", str(run)]) == 0
    with open(run / "test" / "predictions.csv", encoding="utf-8-sig", newline="") as file:
        probability = torch.tensor(
            [[float(row[f"p({n})"]) for n in range(10)] for row in csv.DictReader(file)]
        )
    from parse_config import ConfigParser

    samples = ConfigParser(state["config"]).init_obj("data_loader").for_subset("test")
    with torch.no_grad():
        expected = torch.cat([network(data).softmax(1) for data, _ in samples])
    torch.testing.assert_close(probability, expected, rtol=1e-5, atol=1e-6)

    (tmp_path / "tune.json").write_text(json.dumps(digits({"trainer.epochs": 1})))
    assert train_script.main(["-c", str(tmp_path / "tune.json"), "-r", str(run)]) == 0
    trained = [r for r in runs(tmp_path) if not (r / "prune").exists()]
    tuned = next(r for r in trained if checkpoint.find(r)[1]["structure"])
    assert checkpoint.load(tuned / "checkpoint-epoch1.pth")["structure"] == state["structure"]

    steps = [run / "prune" / f"step{step}.pth" for step in (1, 2)]
    for step in steps:
        assert (
            test_script.main(["-r", str(step)])
            == export_script.main(["-r", str(step), "-s", "exporter.args.opset=13"])
            == 0
        )
        assert (
            json.loads((step.with_suffix("") / "export.json").read_text())["checkpoint"]
            == step.name
        )
        assert (
            json.loads((step.with_suffix("") / "test" / "result.json").read_text())["checkpoint"]
            == step.name
        )
        assert (step.with_suffix("") / "model.onnx").exists()

    further = prune(pruning({"pruner.args.target": {"params": 0.6}}), path=run)
    assert rows(further)[0]["params"] == rows(run)[2]["params"]
    share = int(rows(further)[2]["params"]) / int(rows(run)[2]["params"])
    assert 0.5 < share <= 0.6
    built = checkpoint.load(further / "model_best.pth")["structure"]["shapes"]["conv2.weight"][0]
    assert built == [20, 10, 5, 5]  # what the constructor makes, not what the first run left


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"trainer.ema_decay": 0.9, "trainer.early_stop": 1,
         "pruner.args.importance": "TaylorImportance"},
        pytest.param(
            {"pruner": {"type": "GrowingRegPruner",
                        "args": {"channel_sparsity": 0.4, "iterative_steps": 2, "round_to": 2}},
             "trainer.sparse_epochs": 2}, marks=pytest.mark.slow),
        pytest.param(
            {"trainer.monitor": "off", "pruner.args.importance": "RandomImportance",
             "pruner.args.global_pruning": True}, marks=pytest.mark.slow),
    ],
    ids=["magnitude", "taylor-ema-early", "growing", "off-random-global"],
)  # fmt: skip
def test_run_resumed_from_any_epoch_equals_unbroken_run(prune, pruning, tmp_path, changes):
    run = prune(pruning(changes))
    numbered = list(checkpoint.numbered_checkpoints(run))
    whole = comparable(checkpoint.load(numbered[0]))
    best = dict(checkpoint.load(run / "model_best.pth")["state_dict"])
    assert len(numbered) >= 4
    for file in numbered[1:]:
        again = resumed(run, file)
        assert_same(comparable(checkpoint.load(again / numbered[0].name)), whole)
        assert_same(dict(checkpoint.load(again / "model_best.pth")["state_dict"]), best)


def test_run_stopped_by_a_signal_equals_unbroken_run(prune, pruning, own_code):
    own_code(
        "stopping",
        "import os\nfrom pruner.prune_trainer import PruneTrainer\n\n\n"
        "class Stopped(PruneTrainer):\n"
        "    def after_backward(self):\n        super().after_backward()\n"
        "        if self.stage == 2 and self.step == 5 and not self.config.continued:\n"
        "            os.kill(os.getpid(), 15)\n",
    )
    whole = prune(pruning())
    broken = prune(pruning({"trainer.type": "stopping.Stopped"}), code=143)
    assert script.main(["-r", str(broken)]) == 0
    name = next(checkpoint.numbered_checkpoints(whole)).name
    assert_same(
        comparable(checkpoint.load(broken / name)), comparable(checkpoint.load(whole / name))
    )


def test_last_good_step_is_kept(prune, pruning, capsys):
    args = {"iterative_steps": 6, "target": {"max_accuracy_drop": 0.05}, "round_to": 1}
    changes = {"pruner.args": args, "trainer.epochs": 1, "trainer.last_epochs": 1}
    run = prune(pruning(changes))
    table = rows(run)
    accuracies = [float(row["accuracy"]) for row in table]
    assert len(table) < 8
    assert all(a >= accuracies[0] - 0.05 for a in accuracies[1:-1])
    good = len(table) - 1 - (accuracies[-1] < accuracies[0] - 0.05)
    kept = checkpoint.load(run / "model_best.pth")["state_dict"]
    assert_same(dict(kept), dict(checkpoint.load(run / "prune" / f"step{good}.pth")["state_dict"]))
    assert good < len(table) - 1  # else nothing was tried
    assert "it is not kept" in capsys.readouterr().out


def test_no_more_of_the_target_is_missed(prune, pruning, capsys):
    """By the originals' false alarms; compared with every threshold that there is."""
    args = {"iterative_steps": 6, "target": {"max_escape_drop": 0.05}, "round_to": 1}
    changes = {"pruner.args": args, "trainer.epochs": 1, "trainer.last_epochs": 1}
    run = prune(pruning(changes | {"inspection": {"target": "8"}}))
    table = rows(run)
    escapes = [float(row["escape"]) for row in table]
    assert all(escape <= escapes[0] + 0.05 for escape in escapes[1:-1])
    bad = escapes[-1] > escapes[0] + 0.05
    assert bad == ("escape" in capsys.readouterr().out.partition("it is not kept")[0][-200:])
    made = {}
    for step in (0, len(table) - 2):
        file = run / "prune" / f"step{step}.pth"
        assert test_script.main(["-r", str(file), "--split", "val", "-s", "inspection=null"]) == 0
        table_file = run / "prune" / f"step{step}" / "test" / "predictions_val.csv"
        with open(table_file, encoding="utf-8-sig", newline="") as opened:
            samples = list(csv.DictReader(opened))
        made[step] = [(float(row["p(8)"]), row["true"] == "8", row["predicted"]) for row in samples]
    false = sum(predicted == "8" and not is_target for _, is_target, predicted in made[0])
    for step, samples in made.items():
        fewest = min(
            sum(is_target and p < threshold for p, is_target, _ in samples)
            for threshold in [0, *(p for p, *_ in samples), 2]
            if sum(not is_target and p >= threshold for p, is_target, _ in samples) <= false
        )
        count = sum(is_target for _, is_target, _ in samples)
        assert escapes[step] == pytest.approx(fewest / count)


def test_escapes_need_a_target(prune, pruning, capsys):
    args = {"iterative_steps": 2, "target": {"max_escape_drop": 0.0}}
    prune(pruning({"pruner.args": args}), code=2)
    assert 'max_escape_drop needs a section "inspection"' in capsys.readouterr().err


@pytest.mark.parametrize(
    "when", [*(pytest.param(when, marks=pytest.mark.slow) for when in ("step", "epoch")), "end"]
)
def test_onnx_files_compute_what_their_checkpoints_do(prune, pruning, when):
    import onnxruntime

    run = prune(pruning({"trainer.save_onnx": when, "trainer.epochs": 1, "trainer.last_epochs": 1}))
    expected = {
        "step": {"step1": "prune/step1.pth", "step2": "prune/step2.pth"},
        "epoch": {"epoch1": "checkpoint-epoch1.pth", "epoch2": "checkpoint-epoch2.pth"},
        "end": {"model": "model_best.pth"},
    }[when]
    folder = run if when == "end" else run / "prune"
    assert {p.stem for p in folder.glob("*.onnx")} - {"original"} == set(expected)
    x = torch.randn(3, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    for name, file in expected.items():
        [output] = onnxruntime.InferenceSession(folder / f"{name}.onnx").run(
            None, {"input": x.numpy()}
        )
        with torch.no_grad():
            torch.testing.assert_close(
                torch.from_numpy(output),
                rebuilt(checkpoint.load(run / file))(x),
                rtol=1e-4,
                atol=1e-4,
            )


@pytest.mark.parametrize(("when", "error"), [
    ("step", UserError("no provider")),
    ("epoch", ValueError("a library's own")),
    ("end", ValueError("a library's own")),
])  # fmt: skip
def test_export_that_fails_ends_no_run(prune, pruning, capsys, monkeypatch, when, error):
    def fail(*arguments):
        raise error

    monkeypatch.setattr("exporter.export.export_checkpoint", fail)
    run = prune(pruning(SHORT | {"trainer.save_onnx": when}))
    assert str(error) in capsys.readouterr().out
    assert (run / "model_best.pth").exists()
    assert not list(run.glob("*.onnx"))


def test_time_in_torch_includes_the_work_of_the_gpu(prune, pruning, monkeypatch):
    """A GPU goes on working when the call has returned."""
    waited, called = [], []

    def side_by_side(files, batch, threads, torch):
        called.append(torch())
        return {name: [1.0] for name in (*files, "torch")}

    monkeypatch.setattr("pruner.prune_trainer.side_by_side", side_by_side)
    monkeypatch.setattr("utils.engine.engine.Engine.synchronize", lambda engine: waited.append(1))
    prune(pruning(SHORT))
    assert len(waited) >= len(called) > 1


def test_gradients_for_taylor_are_not_lost_in_16_bits(digits, own_code, monkeypatch):
    """Those of fp16 below 6e-8 are zero; training scales the loss, pruning must not need to."""
    own_code(
        "tiny", "import torch.nn.functional as F\n"
        "def loss(output, target):\n    return F.cross_entropy(output, target) * 1e-8\n",
    )  # fmt: skip
    changes = {"pruner.args.importance": "TaylorImportance", "loss": "tiny.loss",
               "engine": {"precision": "fp16", "channels_last": False}}  # fmt: skip
    config = digits(changes, **json.loads(json.dumps(PRUNE)))
    config["trainer"]["type"] = "PruneTrainer"
    parser = ConfigParser(config)
    pruner = parser.init_obj("pruner")
    trainer = train_script.build_trainer(parser, None, new_head=False, pruner=pruner)
    trainer.rehearse()
    seen = []
    trainer.rows = [{}]
    trainer._ask_pruner(trainer.model, lambda network, *_: seen.extend(
        parameter.grad.clone() for parameter in network.parameters()))  # fmt: skip
    assert trainer.engine.precision == "fp16"
    assert all((gradient != 0).any() for gradient in seen)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pruner.args.channel_sparsity": 0.5}, "channel_sparsity and macs together"),
        ({"pruner.args": {}}, "one aim is needed"),
        ({"pruner.args.ratios": {"conv1": 1.5}}, "pruner.args.ratios"),
        ({"pruner.args.ratios": {"fc2": 0.5}}, "fc2 keeps all: it gives the network's output"),
        ({"pruner.args.ratios": {"conv9": 0.5}}, 'there is no layer "conv9"; did you mean "conv'),
        ({"pruner.args.ignored_layers": ["conv1", "conv2", "fc1"]},
         "Nothing in LeNet can be removed"),
        ({"pruner.args.target": {"macs": 0.001}}, "macs cannot be reduced to"),
        ({"pruner.args.round_to": 64}, "cannot be reduced"),
        ({"pruner.args": {"channel_sparsity": 0.5, "round_to": 64}}, "would remove nothing"),
        ({"pruner.args.importance": "HessianImportance"}, "only the last sample counts"),
        ({"pruner.args.importance": "BNScaleImportance"},
         "BNScaleImportance finds nothing that it can rate in LeNet"),
        ({"pruner.args.target": {"latency_ms": 1000.0}},
         "latency_ms 1000.0: the network already takes only"),
        ({"pruner.args.importance": "Magnitude"}, 'did you mean "MagnitudeImportance"?'),
        ({"pruner.args.importance": "xyz"}, "FPGMImportance"),
        ({"pruner.args.importance": {"type": "MagnitudeImportance", "args": {"q": 1}}},
         'takes no "q"'),
        ({"pruner.args.target": {"max_accuracy_drop": 0.1}, "trainer.monitor": "off",
          "data_loader.args.validation_split": 0.0}, "needs a classifier, and validation data"),
        ({"inspection.target": "dog"}, 'inspection.target: "dog" is not one of the classes 0, 1'),
        ({"inspection.target": "dog", "trainer.monitor": "off",
          "data_loader.args.validation_split": 0.0}, '"dog" is not one of the classes 0, 1, 2'),
        ({"trainer.sparse_epochs": 1}, "MagnitudePruner does not support it"),
        ({"arch": {"type": "LeNet", "args": {"num_classes": 12}}}, "does not fit LeNet"),
        ({"arch": {"type": "resnet18"}}, "another network"),
        ({"pruner": None}, 'no section "pruner"'),
    ],
)  # fmt: skip
def test_mistakes_are_clear_errors(prune, pruning, capsys, changes, message):
    prune(pruning(changes), code=2)
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


SPARSE = {"type": "GroupNormPruner", "args": {"channel_sparsity": 0.5, "round_to": 64}}


@pytest.mark.parametrize(
    "changes",
    [
        {"pruner.args.target": {"macs": 0.001}},
        {"pruner": SPARSE, "trainer.sparse_epochs": 2},
        {"inspection.target": "dog"},
    ],
    ids=["aim", "after sparse epochs", "target class"],
)
def test_run_that_cannot_prune_trains_nothing(prune, pruning, digits_run, tmp_path, changes):
    run = prune(pruning(changes), code=2)
    assert run is None or not list(run.rglob("*.pth"))  # None if nothing was written at all
    assert checkpoint.newest_run(tmp_path / "saved") == digits_run


def test_frozen_network_is_refused(prune, pruning, own_code, capsys):
    own_code(
        "frozen",
        "from model.model import LeNet\n\n\ndef make(num_classes: int = 10) -> LeNet:\n"
        "    return LeNet(num_classes=num_classes).requires_grad_(False)\n",
    )
    prune(pruning({"arch": {"type": "frozen.make"}}), code=2)
    assert "all parameters of LeNet are frozen" in capsys.readouterr().err


def test_missing_run_or_pruner_section_is_a_clear_error(digits_run, pruning, capsys):
    assert script.main(["-c", pruning()]) == 2
    assert "which network?" in capsys.readouterr().err
    assert script.main(["-r", str(digits_run)]) == 2
    assert 'no section "pruner"' in capsys.readouterr().err
    assert (
        script.main(
            [
                "-r",
                str(digits_run),
                "-s",
                'pruner={"type": "MagnitudePruner", "args": {"channel_sparsity": 0.5}}',
            ]
        )
        == 2
    )
    assert capsys.readouterr().err


def test_step_cannot_be_resumed_but_starts_a_new_run(prune, pruning, tmp_path, capsys):
    run = prune(pruning())
    before = sorted((run / "prune").iterdir())
    assert script.main(["-r", str(run / "prune" / "step1.pth")]) == 2
    assert f"is a part of the run {run}: resume that with -r {run}" in capsys.readouterr().err
    assert sorted((run / "prune").iterdir()) == before
    assert train_script.main(["-r", str(run)]) == 2
    assert "prune.py -r RUN resumes it" in capsys.readouterr().err
    assert prune(
        pruning({"trainer.epochs": 1, "trainer.last_epochs": 1}), path=run / "prune" / "step1.pth"
    )


def test_batch_norm_statistics_are_computed_after_a_cut(digits, train, prune, pruning, own_code):
    own_code(
        "normed",
        "import torch\nfrom itertools import islice\nfrom torch import nn\n"
        "from pruner.prune_trainer import PruneTrainer\n"
        "from utils.engine.engine import unwrap\n\n\n"
        "def net() -> nn.Sequential:\n"
        "    layers = [nn.Conv2d(1, 8, 5, 4), nn.BatchNorm2d(8), nn.ReLU()]\n"
        "    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(288, 10))\n\n\n"
        "class Watched(PruneTrainer):\n"
        "    def before_epoch(self, epoch):\n        super().before_epoch(epoch)\n"
        "        network = unwrap(self.model)\n"
        "        with torch.no_grad():\n"
        "            batches = islice(self.data_loader.batches(0), 13)\n"
        "            means = [network[0](data).mean((0, 2, 3)) for data, _ in batches]\n"
        "        expected = torch.stack(means).mean(0)\n"
        "        mean = network[1].running_mean\n"
        "        torch.testing.assert_close(mean, expected, rtol=1e-3, atol=1e-4)\n"
        "        assert network[1].num_features == 4\n",
    )
    path = train(digits({"trainer.epochs": 1}, arch={"type": "normed.net"}))
    changes = {"arch": {"type": "normed.net"}, "trainer.type": "normed.Watched"}
    changes["pruner.args"] = {"channel_sparsity": 0.5, "round_to": 4}
    changes["trainer.last_epochs"] = 1
    assert prune(pruning(changes), path=path)


def test_new_project_from_a_pruned_run_trains(prune, pruning, tmp_path):
    import new_project
    from utils.config import config_file

    run = prune(pruning())
    assert new_project.main([str(tmp_path / "Next"), "--from", str(run)]) == 0
    config = config_file.read_layers(tmp_path / "Next" / "config.json")[0]
    assert "pruner" not in config
    [weights] = (tmp_path / "Next" / "saved").rglob("model_best.pth")
    assert (
        train_script.main(
            ["-c", str(tmp_path / "Next" / "config.json"), "-r", str(weights), "--epochs", "1"]
        )
        == 0
    )


def test_check_plans_and_prunes_and_leaves_nothing(prune, pruning, tmp_path, capsys):
    prune(pruning({"pruner.args": GUIDE}), "--check")
    output = capsys.readouterr().out
    assert output.index("8 steps become 5") < output.index("step 1:") < output.index("check passed")
    prune(pruning({"pruner.args.target": {"macs": 0.001}}), "--check", code=2)
    assert "macs cannot be reduced to 0.001" in capsys.readouterr().err
    assert len(runs(tmp_path)) == 1


def test_interrupted_run_can_be_checked(prune, pruning, capsys):
    """Its network is the goal already: a plan from there would find the aim out of reach."""
    run = prune(pruning(SHORT | {"pruner.args.target": {"macs": 0.3}}))
    assert script.main(["-r", str(run), "--check"]) == 0
    assert "check passed" in capsys.readouterr().out


def test_steps_of_the_guide_run_to_their_end(prune, pruning, capsys):
    run = prune(pruning({"pruner.args": GUIDE, **SHORT}))
    output, table = capsys.readouterr().out, rows(run)
    note = "steps 2, 5 and 8 remove nothing, as widths are multiples of 8: 8 steps become 5"
    assert output.index(f"\n{note}\n") < output.index("step 1:")
    # each layer keeps the largest multiple of 8 that the step's share allows, at least 8
    assert [int(row["channels"]) - 10 for row in table] == [80, 64, 48, 40, 32, 24]
    state = checkpoint.load(run / "model_best.pth")["state_dict"]
    assert [len(state[f"{name}.weight"]) for name in ("conv1", "conv2", "fc1")] == [8, 8, 8]
    for step, row in enumerate(table):
        shares = (int(row[key]) / int(table[0][key]) for key in ("macs", "params"))
        words = [str(step), row["channels"], *(f"{share:.1%}" for share in shares)]
        assert words in [line.split() for line in output.splitlines()]
    assert max(map(len, output[output.index("plan for") : output.index(note)].splitlines())) <= 80
    # resumed after a step that took two parts of the way
    again = resumed(run, run / "checkpoint-epoch3.pth")
    name = "checkpoint-epoch5.pth"
    states = (comparable(checkpoint.load(folder / name)) for folder in (run, again))
    assert_same(*states)


def test_own_pruner_needs_only_prune(prune, pruning, own_code):
    own_code(
        "own_pruner",
        "from pruner.base_pruner import BasePruner\n"
        "from pruner.pruners import MagnitudePruner\n\n\n"
        "class Own(BasePruner):\n"
        "    aim = {'channel_sparsity': 0.2}\n\n"
        "    def prune(self, network, example, step, original):\n"
        "        MagnitudePruner(channel_sparsity=0.1).prune(network, example, 1, original)\n"
        "        return step == 1\n",
    )
    run = prune(pruning({"pruner": {"type": "own_pruner.Own", "args": {}}, **SHORT}))
    assert [int(row["channels"]) for row in rows(run)] == [90, 74]


def test_run_ends_well_if_nothing_more_can_be_removed(prune, pruning, own_code, capsys):
    """The importance rates layers only as long as they have their original width."""
    own_code(
        "once",
        "from torch_pruning.pruner.importance import MagnitudeImportance\n\n\n"
        "class OnceImportance(MagnitudeImportance):\n"
        "    def __call__(self, group):\n"
        "        return super().__call__(group) if len(group[0].idxs) in (10, 20, 50) else None\n",
    )
    args = {"channel_sparsity": 0.6, "iterative_steps": 4, "importance": "once.OnceImportance"}
    run = prune(pruning({"pruner.args": args, "trainer.epochs": 1}))
    assert [int(row["channels"]) for row in rows(run)] == [90, 74, 74]
    assert [int(row["epochs"]) for row in rows(run)] == [0, 1, 2]  # last_epochs too
    output = capsys.readouterr().out
    assert "step 2 removes nothing more: " in output
    assert "Channels left: conv1 8 of 10" in output


@pytest.mark.slow
def test_run_killed_at_any_moment_equals_unbroken_run(prune, pruning, tmp_path):
    changes = {"pruner.args.iterative_steps": 4, "trainer.epochs": 3, "trainer.last_epochs": 4}
    whole = prune(pruning(changes))
    name = next(checkpoint.numbered_checkpoints(whole)).name
    expected = comparable(checkpoint.load(whole / name))
    generator = torch.Generator().manual_seed(0)
    trained = next(run for run in runs(tmp_path) if not (run / "prune").exists())
    for _ in range(10):
        before = set(runs(tmp_path))
        command = [
            sys.executable,
            str(ROOT / "prune.py"),
            "-c",
            pruning(changes),
            "-r",
            str(trained),
        ]
        process = subprocess.Popen(
            command, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL
        )
        while not (made := set(runs(tmp_path)) - before) or not list(made.pop().glob("*.pth")):
            time.sleep(0.05)
            assert process.poll() is None
        time.sleep(4 * torch.rand((), generator=generator).item())
        process.send_signal(signal.SIGKILL)
        process.wait()
        [broken] = set(runs(tmp_path)) - before
        assert script.main(["-r", str(broken)]) == 0
        assert_same(comparable(checkpoint.load(broken / name)), expected)
