"""Reading, checking and building configurations, compared with the file and torch's own objects."""

import json
import os
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

import train as train_script
from parse_config import ConfigParser
from tests.conftest import DIGITS, ROOT
from utils.config import config_file
from utils.errors import ConfigError, UserError


def errors_of(config):
    with pytest.raises(ConfigError) as caught:
        ConfigParser(config)
    return caught.value.errors


def test_comments_trailing_commas_and_byte_order_mark_are_read(tmp_path):
    file = tmp_path / "c.json"
    file.write_text(
        '\ufeff{\n // a note\n "a": [1, 2,], /* more */ "b": {"c": 1e-3,},\n}', encoding="utf-8"
    )
    assert config_file.read_layers(file)[0] == {"a": [1, 2], "b": {"c": 1e-3}}


def test_escaped_surrogate_pairs_become_one_character(tmp_path):
    (tmp_path / "c.json").write_text(json.dumps({"name": "犬🐶"}))  # escapes to surrogate pairs
    assert config_file.read_layers(tmp_path / "c.json")[0] == {"name": "犬🐶"}


def test_extends_merges_deeply_and_null_removes(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "one.json").write_text('{"a": {"x": 1, "y": 2}, "b": [1], "c": 3}')
    (tmp_path / "two.json").write_text('{"a": {"y": 20}, "d": 4}')
    (tmp_path / "sub" / "top.json").write_text(
        '{"extends": ["../one.json", "../two.json"], "b": [2], "c": null, "a": {"z": 5}}'
    )
    assert config_file.read_layers(tmp_path / "sub" / "top.json")[0] == {
        "a": {"x": 1, "y": 20, "z": 5},
        "b": [2],
        "d": 4,
    }


@pytest.mark.parametrize(
    ("base", "over", "arguments", "note"),
    [
        (  # the named case
            {"arch": {"type": "LeNet", "args": {"in_channels": 1, "num_classes": 10}}},
            {"arch": {"type": "mobilenet_v3_small"}},
            {"num_classes": 10},
            "arch.args: mobilenet_v3_small does not take in_channels; dropped",
        ),
        (
            {"optimizer": {"type": "Adam", "args": {"lr": 0.1, "amsgrad": True, "foreach": None}}},
            {"optimizer": {"type": "SGD", "args": {"momentum": 0.9}}},
            {"lr": 0.1, "foreach": None, "momentum": 0.9},
            "optimizer.args: SGD does not take amsgrad; dropped",
        ),
        (
            {"lr_scheduler": {"type": "StepLR", "args": {"step_size": 5, "gamma": 0.1}}},
            {"lr_scheduler": {"type": "OneCycleLR", "args": {"max_lr": 0.1}}},
            {"max_lr": 0.1},
            "lr_scheduler.args: OneCycleLR does not take step_size, gamma; dropped",
        ),
        (
            {"data_loader": {"type": "Cifar10DataLoader", "args": {"shift": 2, "batch_size": 8}}},
            {"data_loader": {"type": "DigitsDataLoader"}},
            {"batch_size": 8},
            "data_loader.args: DigitsDataLoader does not take shift; dropped",
        ),
        (  # null removes without a word
            {"optimizer": {"type": "Adam", "args": {"lr": 0.1, "amsgrad": True}}},
            {"optimizer": {"type": "SGD", "args": {"amsgrad": None}}},
            {"lr": 0.1},
            None,
        ),
        (  # the same type: a mistake stays one
            {"optimizer": {"type": "Adam", "args": {"momentum": 0.9}}},
            {"optimizer": {"type": "Adam", "args": {"lr": 0.1}}},
            {"momentum": 0.9, "lr": 0.1},
            None,
        ),
        (  # what stands beside the new type is meant for it
            {"optimizer": {"type": "Adam", "args": {"amsgrad": True}}},
            {"optimizer": {"type": "SGD", "args": {"amsgrad": False}}},
            {"amsgrad": False},
            None,
        ),
        (
            {"optimizer": {"type": "Adam", "args": {"amsgrad": True}}},
            {"optimizer": {"type": "NoSuch"}},
            {"amsgrad": True},
            None,
        ),
        (  # a bare name replaces the section
            {"optimizer": {"type": "Adam", "args": {"lr": 0.1}}},
            {"optimizer": "SGD"},
            None,
            None,
        ),
    ],
)
def test_arguments_of_another_type_are_dropped(tmp_path, base, over, arguments, note):
    (tmp_path / "base.json").write_text(json.dumps(base))
    (tmp_path / "over.json").write_text(json.dumps({"extends": "base.json"} | over))
    config, layers = config_file.read_layers(tmp_path / "over.json")
    assert config_file.drop_foreign_arguments(config, layers) == ([note] if note else [])
    [section] = over
    if arguments is None:
        assert config == over
    else:
        assert config[section] == {"type": over[section]["type"], "args": arguments}


def test_keys_of_another_trainer_are_dropped(own_code, tmp_path):
    own_code(
        "own_trainer",
        "from base import BaseTrainer\n"
        "class Small(BaseTrainer):\n"
        "    def _train_epoch(self, epoch): ...\n",
    )
    base = {"trainer": {"epochs": 2, "save_period": 3, "clip_grad_norm": 1.0}}
    (tmp_path / "base.json").write_text(json.dumps(base))
    over = {"extends": "base.json", "trainer": {"type": "own_trainer.Small", "tensorboard": False}}
    (tmp_path / "over.json").write_text(json.dumps(over))
    config, layers = config_file.read_layers(tmp_path / "over.json")
    assert config_file.drop_foreign_arguments(config, layers, {"own_trainer.Small"}) == [
        "trainer: own_trainer.Small does not take clip_grad_norm; dropped"
    ]
    kept = {"epochs": 2, "save_period": 3, "type": "own_trainer.Small", "tensorboard": False}
    assert config["trainer"] == kept


def test_dropped_arguments_may_still_be_removed_or_taken_up_again(tmp_path):
    """A file further up names the type, or says null as was necessary before."""
    first = {"optimizer": {"type": "Adam", "args": {"lr": 0.1, "amsgrad": True}}}
    second = {"extends": "first.json", "optimizer": {"type": "SGD", "args": {"momentum": 0.9}}}
    (tmp_path / "first.json").write_text(json.dumps(first))
    (tmp_path / "second.json").write_text(json.dumps(second))
    for third, arguments in (
        ({"type": "AdamW"}, {"lr": 0.1, "amsgrad": True}),
        ({"args": {"amsgrad": None}}, {"lr": 0.1, "momentum": 0.9}),
    ):
        config = {"extends": "second.json", "optimizer": third}
        (tmp_path / "third.json").write_text(json.dumps(config))
        merged, layers = config_file.read_layers(tmp_path / "third.json")
        config_file.drop_foreign_arguments(merged, layers)
        assert merged["optimizer"]["args"] == arguments


def test_dropped_arguments_are_reported_once(digits, train, capsys):
    config = digits({"arch.args.image_size": 28, "loss": {"type": "nll_loss"}})
    settings = ["arch.type=MnistModel", "optimizer=SGD", "loss=mse_loss", "loss=nll_loss"]
    config["optimizer"]["args"]["amsgrad"] = True
    run = train(config, "--epochs", 1, "-s", *settings)
    saved = json.loads((run / "config.json").read_text())
    assert saved["optimizer"] == {"type": "SGD", "args": {"lr": 0.002}}
    assert saved["arch"] == {"type": "MnistModel", "args": {"num_classes": 10, "image_size": 28}}
    line = "warning: optimizer.args: SGD does not take amsgrad; dropped"
    assert capsys.readouterr().out.count(line) == 1
    train(config, "-s", *settings, "trainer.epochs=0", code=2)
    error = capsys.readouterr().err
    assert "trainer.epochs: 0 should be" in error
    assert error.count(line) == 1
    # an argument on the command line is meant for the type on the command line
    train(config, "-s", "optimizer=SGD", "optimizer.args.amsgrad=true", code=2)
    assert 'SGD takes no "amsgrad"' in capsys.readouterr().err


def test_null_leaves_an_argument_to_the_scripts(digits):
    """As files said that extended a config.json with num_classes."""
    config = digits({"arch": {"type": "LeNet", "args": {"num_classes": None}}})
    assert ConfigParser(config).init_obj("arch", num_classes=4).fc2.out_features == 4
    loss = {"type": "cross_entropy", "args": {"weight": None}}  # here null is a value
    weight = ConfigParser(digits({"loss": loss})).init_obj("loss", weight=torch.ones(10))
    assert weight.keywords == {"weight": None}
    [error] = errors_of(digits({"data_loader.args": {"batch_size": None}}))
    assert error.startswith("data_loader.args.batch_size: null should be a whole number")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 1,\n "b": }', 'line 2, column 7: Unexpected "}"'),
        ("# A title\n", 'line 1, column 1: Unexpected "#"'),
        ('{"a": [1, 2', "line 1, column 12: Unexpected end of input"),
        ('{"a": "x\n"}', 'line 1, column 9: Unexpected "\n"'),
        ('{"a": 1, "a": 2}', 'Duplicate key "a"'),
        ("[1]", "one JSON object"),
        ("", "not JSON"),
        ('{"extends": 3}', '"extends" should be'),
        ('{"extends": "c.json"}', "extends itself"),
        ('{"extends": "\\u0000"}', "not a file name"),
        ('{"name": "\\ud83d"}', "not JSON"),
        ('{"extends": "other.json"}', "there is no file"),
        ('{"a":' + "[" * 3000 + "]" * 3000 + "}", "nested too deeply"),
    ],
)
def test_unreadable_files_are_refused_in_a_sentence(tmp_path, capsys, text, message):
    (tmp_path / "c.json").write_text(text)
    assert train_script.main(["-c", str(tmp_path / "c.json")]) == 2
    assert message in capsys.readouterr().err


def test_a_folder_is_not_a_configuration(tmp_path, capsys):
    (tmp_path / "parts.json").write_text("{}")
    assert train_script.main(["-c", str(tmp_path)]) == 2
    assert f"{tmp_path} is a folder; in it: parts.json" in capsys.readouterr().err


def test_missing_file_lists_the_files_beside_it(tmp_path, capsys):
    (tmp_path / "config.json").write_text("{}")
    assert train_script.main(["-c", str(tmp_path / "confg.json")]) == 2
    assert "config.json" in capsys.readouterr().err.split("beside it:")[1]


def test_overrides_set_any_key():
    config = {"a": {"b": 1}, "metrics": ["x", "y"], "loss": "cross_entropy"}
    for assignment in (
        "a.b=2.5",
        "a.c.d=[1, 2]",
        "metrics.1=accuracy",
        "loss.args.label_smoothing=0.1",
        "name=NG/OK 1",
        "e=true",
    ):
        config_file.override(config, assignment)
    assert config == {
        "a": {"b": 2.5, "c": {"d": [1, 2]}},
        "metrics": ["x", "accuracy"],
        "loss": {"type": "cross_entropy", "args": {"label_smoothing": 0.1}},
        "name": "NG/OK 1",
        "e": True,
    }
    for wrong in ("a.b", "=3", "metrics.2=x", "metrics.one=x"):
        with pytest.raises(UserError):
            config_file.override(config, wrong)


def test_flags_set_their_keys(digits, train):
    run = train(
        digits(),
        "--lr",
        0.01,
        "--bs",
        200,
        "--epochs",
        1,
        "-s",
        "optimizer.args.eps=1e-6",
        "trainer.save_freq=3",
    )
    saved = json.loads((run / "config.json").read_text())
    assert saved["optimizer"]["args"] == {"lr": 0.01, "eps": 1e-6}
    assert saved["data_loader"]["args"]["batch_size"] == 200
    assert (saved["trainer"]["epochs"], saved["trainer"]["save_freq"]) == (1, 3)
    assert train(saved, "--epochs", 1) is not None  # what a run saved is a configuration


def test_all_errors_are_reported_at_once_before_data_is_read(digits, train, tmp_path, capsys):
    config = digits(
        {
            "arch.type": "LeNett",
            "data_loader.args.batch_sise": 3,
            "data_loader.args.data_dir": str(tmp_path / "nowhere"),
            "optimizer.args.learning_rate": 0.1,
            "optimizer.args.betas": [0.9],
            "loss": "cross_entropi",
            "metrics.0": "acuracy",
            "trainer.epochs": "ten",
            "trainer.savefreq": 1,
        }
    )
    assert train(config, code=2) is None
    error = capsys.readouterr().err
    assert "has 8 errors" in error
    assert "Traceback" not in error
    for message in (
        'arch.type: there is no "LeNett"; did you mean "LeNet"?',
        'args.batch_sise: DigitsDataLoader takes no "batch_sise"; did you mean "batch_size"?',
        'optimizer.args.learning_rate: Adam takes no "learning_rate"; did you mean "lr"?',
        "optimizer.args.betas.1: missing",
        'loss: there is no "cross_entropi"; did you mean "cross_entropy"?',
        'metrics.0: there is no "acuracy"; did you mean "accuracy"?',
        'trainer.epochs: "ten" should be a whole number above 0',
        'trainer.savefreq: Trainer takes no "savefreq"; did you mean "save_freq"?',
    ):
        assert message in error
    assert not (tmp_path / "nowhere").exists()
    assert not (tmp_path / "saved").exists()


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("name", "a/b", "name: "),
        ("name", 3, "name: 3 should be a text"),
        ("seed", 1.5, "seed: 1.5 should be a whole number"),
        ("seed", True, "seed: true should be a whole number"),
        ("optimzer", {}, 'optimzer: unknown section; did you mean "optimizer"?'),
        ("arch", None, "arch: missing"),
        ("arch", 3, "arch: should be a name or"),
        ("arch", {"args": {}}, "arch: should be a name or"),
        ("arch", {"type": "LeNet", "arg": {}}, 'arch.arg: unknown key; did you mean "args"?'),
        ("arch", {"type": "LeNet", "args": []}, "arch.args: [] should be an object"),
        ("arch", "accuracy", 'arch: there is no "accuracy"'),
        ("arch", "base.BaseModel", "is not finished: it must still define forward"),
        ("arch", "torch.optim.Adam", '"torch.optim.Adam" is not a Module'),
        ("arch", "os.system", "Python's own library"),
        ("arch", "torch.os.system", "Python's own library"),
        ("arch", "utils.config.config_file.json.loads", "Python's own library"),
        ("arch", ".x", "is not a dotted path"),
        ("n_gpu", -1, "n_gpu: -1 should be a whole number of at least 0"),
        (
            "metrics",
            [{"type": "accuracy", "name": "loss"}],
            'metrics: "loss" is a reserved name',
        ),
        ("arch", "no_such_package.Net", 'no module named "no_such_package"'),
        ("arch", "torch.nn.Linaer", 'torch.nn has no "Linaer"; did you mean "Linear"?'),
        (
            "arch",
            {"type": "torch.nn.Linear", "args": {"in_features": 3}},
            'arch.args: Linear needs "out_features"',
        ),
        ("arch.args.image_size", 0, "arch.args.image_size: 0 should be a whole number above 0"),
        ("optimizer.args.params", [], "optimizer.args.params: is supplied by the scripts"),
        ("optimizer.args.lr", "0.1", 'optimizer.args.lr: "0.1" should be a number'),
        ("optimizer.args.amsgrad", 1, "optimizer.args.amsgrad: 1 should be true or false"),
        ("optimizer.args.lr", float("inf"), "optimizer.args.lr: inf is not a finite number"),
        (
            "data_loader.args.validation_split",
            1.0,
            "data_loader.args.validation_split: 1.0 should be",
        ),
        ("data_loader.args.subset", "dev", 'should be one of "train", "val", "test"'),
        ("data_loader", "read_digits", 'data_loader: there is no "read_digits"'),
        ("metrics", "accuracy", "metrics: should be a list"),
        ("metrics", ["top_k_acc", "top_k_acc"], 'several are called "top_k_acc"'),
        ("metrics", [{"type": "top_k_acc", "args": {"target": 1}}], 'top_k_acc takes no "target"'),
        (
            "lr_scheduler",
            {"type": "StepLR", "args": {}},
            'lr_scheduler.args: StepLR needs "step_size"',
        ),
        (
            "lr_scheduler.interval",
            "batch",
            'lr_scheduler.interval: "batch" should be one of "step", "epoch"',
        ),
        (
            "lr_scheduler",
            {
                "type": "SequentialLR",
                "args": {
                    "schedulers": [{"type": "LinearLR", "args": {"star": 1}}],
                    "milestones": [1],
                },
            },
            'lr_scheduler.args.schedulers.0.args.star: LinearLR takes no "star"',
        ),
        (
            "lr_scheduler",
            {
                "type": "ChainedScheduler",
                "args": {"schedulers": [{"type": "StepLR", "interval": "epoch", "args": {}}]},
            },
            "schedulers.0.interval: only the outermost may say lr_scheduler.interval",
        ),
        ("trainer.monitor", "val_accuracy", "trainer.monitor: "),
        ("trainer.config", {}, "trainer.config: is supplied by the scripts"),
        ("trainer.verbosity", 3, "trainer.verbosity: 3 should be one of 0, 1, 2"),
        ("optimizer", "LeNett", 'there is no "LeNett" (model: nothing; torch.optim: Ada'),
        ("arch", "Xyzzy", "LeNet, MnistModel, "),
        (
            "trainer.type",
            "Judgr",
            'trainer.type: there is no "Judgr" (trainer',
        ),
        ("trainer.type", "Trainr", 'trainer.type: there is no "Trainr"; did you mean "Trainer"?'),
        ("trainer.monitor", "max anything a task logs", None),
    ],
)
def test_each_kind_of_config_error(digits, key, value, message):
    if message is None:
        assert ConfigParser(digits({key: value}))
        return
    errors = errors_of(digits({key: value}))
    assert any(message in error for error in errors), errors


def test_shipped_config_is_valid():
    ConfigParser(config_file.read_layers(ROOT / "config.json")[0])


def test_own_sections_are_allowed(digits):
    assert ConfigParser(digits({"line": {"camera": 3}}))["line"] == {"camera": 3}


def test_config_of_pytorch_template_is_understood():
    config = {
        "name": "Mnist_LeNet",
        "n_gpu": 1,
        "arch": {"type": "MnistModel", "args": {}},
        "data_loader": {
            "type": "MnistDataLoader",
            "args": {
                "data_dir": "data/",
                "batch_size": 128,
                "shuffle": True,
                "validation_split": 0.1,
                "num_workers": 2,
            },
        },
        "optimizer": {"type": "Adam", "args": {"lr": 0.001, "weight_decay": 0, "amsgrad": True}},
        "loss": "nll_loss",
        "metrics": ["accuracy", "top_k_acc"],
        "lr_scheduler": {"type": "StepLR", "args": {"step_size": 50, "gamma": 0.1}},
        "trainer": {
            "epochs": 100,
            "save_dir": "saved/",
            "save_period": 1,
            "verbosity": 2,
            "monitor": "min val_loss",
            "early_stop": 10,
            "tensorboard": True,
        },
    }
    parser = ConfigParser(config)
    assert parser["trainer"]["save_freq"] == 1
    model = parser.init_obj("arch")
    assert sum(p.numel() for p in model.parameters()) == 21_840  # as its own __str__ says
    assert parser.init_obj("loss").func is nn.functional.nll_loss


def test_init_obj_builds_what_torch_builds(digits):
    parser = ConfigParser(
        digits(
            {
                "optimizer": {"type": "SGD", "args": {"lr": 0.1, "momentum": 0.9}},
                "loss": {
                    "type": "CrossEntropyLoss",
                    "args": {"weight": [1.0, 2.0], "label_smoothing": 0.1},
                },
            }
        )
    )
    model = nn.Linear(3, 2)
    optimizer = parser.init_obj("optimizer", params=model.parameters())
    reference = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    assert type(optimizer) is type(reference)
    assert optimizer.defaults == reference.defaults
    output, target = torch.randn(4, 2), torch.tensor([0, 1, 1, 0])
    reference = nn.CrossEntropyLoss(torch.tensor([1.0, 2.0]), label_smoothing=0.1)
    assert torch.equal(parser.init_obj("loss")(output, target), reference(output, target))
    function = ConfigParser(
        digits(
            {"loss": {"type": "cross_entropy", "args": {"weight": [1, 2], "label_smoothing": 0.1}}}
        )
    )
    assert torch.equal(function.init_obj("loss")(output, target), reference(output, target))
    assert parser.init_obj("valid_data_loader") is None
    assert parser.init_ftn("optimizer")(params=model.parameters()).defaults == optimizer.defaults


def test_lists_become_tuples_where_the_hint_wants_them():
    parser = ConfigParser(DIGITS | {"optimizer": {"type": "Adam", "args": {"betas": [0.8, 0.9]}}})
    assert parser.init_ftn("optimizer").keywords == {"betas": (0.8, 0.9)}


def test_offered_arguments_only_fill_what_the_config_leaves_out(digits):
    assert (
        ConfigParser(digits({"arch": "LeNet"})).init_obj("arch", num_classes=4).fc2.out_features
        == 4
    )
    assert ConfigParser(digits()).init_obj("arch", num_classes=4).fc2.out_features == 10
    assert (
        ConfigParser(digits({"arch": {"type": "torch.nn.Flatten"}})).init_obj("arch", num_classes=4)
        is not None
    )


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("optimizer.args.lr", -1.0, "Invalid learning rate"),
        ("arch.args.image_size", 8, "at least 16"),
        ("data_loader.args.validation_split", 5000, "leaves a part empty"),
        ("data_loader.args", {"batch_size": 2000, "drop_last": True}, "not one full batch"),
        ("data_loader.args.validation_split", 0, "needs validation data"),
        ("loss", {"type": "cross_entropy", "args": {"reduction": "none"}}, "one number"),
        ("optimizer", {"type": "LBFGS"}, "trainer of its own"),
        ("arch", {"type": "torch.nn.Flatten"}, "no parameters to train"),
        ("trainer.monitor", "min sensitivity", 'nothing is called "sensitivity"; logged are loss'),
        (
            "trainer.monitor",
            "max val_acuracy",
            'nothing is called "val_acuracy"; did you mean "val_accuracy"?',
        ),
        (
            "lr_scheduler",
            {"type": "ReduceLROnPlateau", "args": {"mode": "max"}},
            'needs "max NAME"',
        ),
    ],
)
def test_errors_found_while_building_are_plain_sentences(
    digits, train, data_dir, capsys, key, value, message
):
    config = digits({key: value})
    config["data_loader"]["args"]["data_dir"] = str(data_dir)
    train(config, code=2)
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_broken_user_file_is_named(digits, own_code, capsys):
    own_code("own_net", "import no_such_package\n")
    assert any("own_net" in error for error in errors_of(digits({"arch": "own_net.Net"})))


def test_kwargs_of_a_constructor_are_those_of_its_base_class(digits, own_code):
    own_code(
        "own_loader",
        "from data_loader.data_loaders import DigitsDataLoader\n"
        "class Own(DigitsDataLoader):\n"
        "    def __init__(self, zoom: float = 1.0, **kwargs):\n"
        "        self.zoom = zoom\n"
        "        super().__init__(**kwargs)\n",
    )
    config = digits({"data_loader.type": "own_loader.Own", "data_loader.args.zoom": 2})
    assert ConfigParser(config).init_obj("data_loader").zoom == 2.0
    config["data_loader"]["args"]["batchsize"] = 1
    assert 'did you mean "batch_size"?' in errors_of(config)[0]


def test_seed_determines_order_and_split(digits):
    one, two, again = (
        ConfigParser(digits({"seed": seed})).init_obj("data_loader") for seed in (1, 2, 1)
    )
    targets = [[t.tolist() for _, t in loader] for loader in (one, two, again)]
    assert targets[0] == targets[2] != targets[1]
    held_out = [loader.split_validation().dataset.indices.tolist() for loader in (one, two, again)]
    assert held_out[0] == held_out[2] != held_out[1]


def test_null_is_kept_where_nothing_is_inherited(tmp_path, digits):
    (tmp_path / "c.json").write_text('{"arch": {"type": "X", "args": {"p": null}}}')
    assert config_file.read_layers(tmp_path / "c.json")[0]["arch"]["args"] == {"p": None}
    assert ConfigParser(digits() | {"lr_scheduler": None}).init_obj("lr_scheduler") is None
    absent = ConfigParser(digits({"arch": {"type": "LeNet", "weights": None, "freeze": None}}))
    assert absent.option("arch", "freeze") is None


def test_result_of_a_builder_function_must_fit_the_section(digits, train, own_code, capsys):
    own_code("own_function", "def three():\n    return 3\n")
    train(digits({"arch": "own_function.three"}), code=2)
    assert "three returns a int, not a Module" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["device", "pipe", "chain", "diamond", "long"])
def test_extends_is_bounded(tmp_path, kind):
    file = tmp_path / "0.json"
    file.write_text('{"extends": "x"}')
    (tmp_path / "x").write_text("{}")
    if kind == "device":
        file.write_text('{"extends": "/dev/zero"}')
    elif kind == "pipe":
        os.mkfifo(tmp_path / "pipe")
        file.write_text('{"extends": "pipe"}')
    elif kind == "long":
        (tmp_path / "x").write_text(" " * 600_000 + "{}")
    else:
        for number in range(400 if kind == "chain" else 30):
            names = [f"{number + 1}.json"] * (1 if kind == "chain" else 2)
            (tmp_path / f"{number}.json").write_text(json.dumps({"extends": names}))
        (tmp_path / f"{number + 1}.json").write_text("{}")
    words = {"device": "device or a pipe", "pipe": "device or a pipe", "long": "characters"}
    with pytest.raises(UserError, match=words.get(kind, "more than 100 files")):
        config_file.read_layers(file)


def test_configuration_may_come_from_a_pipe(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with ThreadPoolExecutor() as threads:
        threads.submit((tmp_path / "pipe").write_text, '{"name": "a"}')
        assert config_file.read_layers(tmp_path / "pipe")[0] == {"name": "a"}


def test_names_that_windows_reserves_are_refused(digits):
    with pytest.raises(ConfigError, match="a folder, and Windows reserves"):
        ConfigParser(digits(name="aux.v2"))
