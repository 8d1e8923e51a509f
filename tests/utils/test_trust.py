"""What the config of a checkpoint names is looked up only if the user has named it himself."""

import copy
import importlib
import json
import pickle
import pkgutil
import sys

import pytest
import torch

from tests.conftest import DIGITS, ROOT
from utils.config.config import ConfigParser
from utils.config.sections import ROLES, SOURCES
from utils.config.trust import Trust
from utils.errors import ConfigError

SCRIPTS = [
    path.stem
    for path in sorted(ROOT.glob("*.py"))
    if "\n@command(" in path.read_text(encoding="utf-8")
]
HUB = "import pathlib\npathlib.Path({marker!r}).touch()\n"
# Each would run a command, import a file or open one; {marker} is the file that it would write.
GADGETS = {
    "torch.utils.collect_env.run": {"command": "touch {marker}"},
    "torch.utils.collect_env.run_and_read_all": {"command": "touch {marker}"},
    "torch.hub.load": {"repo_or_dir": "{folder}", "model": "x", "source": "local"},
    "torch.hub.load_state_dict_from_url": {"url": "file://{pickle}", "weights_only": False},
    "torch.hub.download_url_to_file": {"url": "file://{pickle}", "dst": "{marker}"},
    "torch.load": {"f": "{pickle}", "weights_only": False},
    "torch.save": {"obj": 1, "f": "{marker}"},
    "torch.jit.load": {"f": "{pickle}"},
    "torch.package.PackageImporter": {"file_or_buffer": "{pickle}"},
    "torch.ops.load_library": {"path": "{pickle}"},
    "torch.classes.load_library": {"path": "{pickle}"},
    "torch.utils.cpp_extension.load": {"name": "x", "sources": ["{folder}/x.cpp"]},
    "torch.utils.cpp_extension.load_inline": {"name": "x", "cpp_sources": ""},
    "torch.utils.bottleneck.__main__.main": {},
    "torch.distributed.run.main": {"args": ["{folder}/hubconf.py"]},
    "torch.distributed.launch.main": {"args": ["{folder}/hubconf.py"]},
    "torch.utils.model_zoo.load_url": {"url": "file://{pickle}"},
    "torch.export.load": {"f": "{pickle}"},
    "torch.serialization.load": {"f": "{pickle}", "weights_only": False},
    "torchvision.models.get_model": {"name": "resnet18", "weights": "DEFAULT"},
    "torchvision.datasets.utils.download_url": {"url": "file://{pickle}", "root": "{folder}"},
    "torchvision.io.read_file": {"path": "{pickle}"},
    "torchvision.io.write_file": {"filename": "{marker}", "data": [1]},
    "torchvision.transforms.Lambda": {"lambd": "x"},
    "torch.from_file": {"filename": "{pickle}"},
    "numpy.load": {"file": "{pickle}", "allow_pickle": True},
    "numpy.fromfile": {"file": "{pickle}"},
    "numpy.memmap": {"filename": "{marker}", "mode": "w+", "shape": 1},
    "numpy.savetxt": {"fname": "{marker}", "X": [1]},
    "numpy.f2py.compile": {"source": ""},
    "numpy.testing.rundocs": {"filename": "{folder}/hubconf.py"},
    "pytest.main": {"args": ["{folder}/hubconf.py"]},
    "pytest.console_main": {},
    "sympy.sympify": {"a": "__import__('pathlib').Path('{marker}').touch()"},
    "sympy.parsing.sympy_parser.parse_expr": {"s": "__import__('os')"},
    "setuptools._distutils.spawn.spawn": {"cmd": ["touch", "{marker}"]},
    "setuptools._distutils.core.run_setup": {"script_name": "{folder}/hubconf.py"},
    "pip._internal.cli.main.main": {"args": ["download", "{folder}"]},
    "pkg_resources.run_script": {"dist_spec": "x", "script_name": "x"},
    "PIL.Image.open": {"fp": "{pickle}"},
    "PIL.ImageShow.show": {"image": "{pickle}"},
    "matplotlib.rc_file": {"fname": "{pickle}"},
    "matplotlib.pyplot.savefig": {"fname": "{marker}"},
    "joblib.load": {"filename": "{pickle}"},
    "sklearn.datasets.fetch_openml": {"name": "x"},
    "scipy.io.loadmat": {"file_name": "{pickle}"},
    "jinja2.Template": {"source": "{{}}"},
    "tensorboard.main.run_main": {},
    "cloudpickle.load": {"file": "{pickle}"},
    "hypothesis.extra.cli.main": {},
    "isympy.main": {},
    "os.system": {"command": "touch {marker}"},
    "builtins.eval": {"source": "1"},
    "builtins.exec": {"source": "1"},
    "importlib.import_module": {"name": "hubconf"},
    "runpy.run_path": {"path_name": "{folder}/hubconf.py"},
    "subprocess.run": {"args": ["touch", "{marker}"]},
    "logging.config.dictConfig": {"config": {}},
    "pickle.load": {"file": "{pickle}"},
    "hubconf.x": {},
    "hubconf:x": {},
    "train.main": {"argv": ["-c", "config.json"]},
    "new_project.main": {"argv": ["{marker}"]},
    "parse_config.command": {"description": ""},
    "utils.engine.launch.start": {"count": 1, "script": "{folder}/hubconf.py", "argv": []},
    "utils.checkpoint.save": {"state": {}, "path": "{marker}"},
    "utils.util.write_json": {"content": 1, "path": "{marker}"},
    "utils.util.ensure_dir": {"path": "{marker}"},
    "model.weights.torchvision_weights": {"builder": "resnet18", "name": "DEFAULT"},
    "tests.benchmarks.__main__.main": {},
}
WHERE = [section for section, source in SOURCES.items() if not source.inner]
WHERE += [f"{role} of one's own" for role in ROLES]
WHERE += ["transforms", "batch_transforms", "schedulers"]


@pytest.fixture
def trap(tmp_path, monkeypatch, own_modules):
    """Gadgets with arguments that would write a file; a function that says whether any ran."""
    own_modules.clear()
    folder, marker = tmp_path / "evil", tmp_path / "marker"
    folder.mkdir()
    (folder / "hubconf.py").write_text(HUB.format(marker=str(marker)) + "def x(): ...\n")
    (folder / "evil.pkl").write_bytes(pickle.dumps(Touch(str(marker))))
    monkeypatch.syspath_prepend(str(folder))
    words = {"{marker}": marker, "{folder}": folder, "{pickle}": folder / "evil.pkl"}
    text = json.dumps(GADGETS)
    for word, path in words.items():
        text = text.replace(word, str(path))
    looked_up, resolve = [], pkgutil.resolve_name

    def watched(name):
        looked_up.append(name)
        return resolve(name)

    monkeypatch.setattr(pkgutil, "resolve_name", watched)

    def assert_nothing_ran():
        assert not set(looked_up) & set(GADGETS)
        assert "hubconf" not in sys.modules
        assert not marker.exists()

    return json.loads(text), assert_nothing_ran


class Touch:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


def place(config, where, name, args):
    """The config with a gadget in one of the places that name something."""
    config, spec = copy.deepcopy(config), {"type": name, "args": args}
    if where == "transforms":
        config["data_loader"]["args"]["transforms"] = {"train": [spec], "eval": []}
        config["data_loader"]["type"] = "ImageFolderDataLoader"
    elif where == "batch_transforms":
        config["trainer"]["batch_transforms"] = [spec]
    elif where == "schedulers":
        config["lr_scheduler"] = {"type": "SequentialLR", "args": {"schedulers": [spec]}}
        config["lr_scheduler"]["args"]["milestones"] = [1]
    elif where in ("metrics", "trackers"):
        config[where] = [spec]
    elif where.endswith("own"):
        config["mine"] = spec | {"role": where.partition(" ")[0]}
    else:
        config[where] = {"type": name} | args if SOURCES[where].default else spec
    return config


def write_checkpoint(path, config):
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {"arch": "LeNet", "epoch": 1, "state_dict": {"w": torch.ones(1)}, "config": config}
    torch.save(state, path)
    return path


def test_there_are_enough_gadgets_and_places():
    assert len(GADGETS) >= 46
    assert len(WHERE) >= 14
    assert "train" in SCRIPTS


@pytest.mark.parametrize("where", WHERE)
def test_no_gadget_is_looked_up_in_any_section(trap, where):
    gadgets, assert_nothing_ran = trap
    for name, args in gadgets.items():
        with pytest.raises(ConfigError) as error:
            ConfigParser(place(DIGITS, where, name, args), trust=Trust(()))
        if "." in name and "alone" not in str(error.value):
            own = name.rpartition(".")[0] in SOURCES.get(where, SOURCES["arch"]).libraries
            assert own, error.value
    assert_nothing_ran()


@pytest.mark.parametrize("script", SCRIPTS)
def test_no_gadget_of_a_checkpoint_runs_in_any_script(trap, script, tmp_path, capsys):
    gadgets, assert_nothing_ran = trap
    main = importlib.import_module(script).main
    for number, (name, args) in enumerate(gadgets.items()):
        config = place(DIGITS, WHERE[number % len(WHERE)], name, args)
        path = write_checkpoint(tmp_path / "run" / "model_best.pth", config)
        assert main(["-r", str(path), "-d", "cpu"]) == 2
        assert "Traceback" not in capsys.readouterr().err
    assert_nothing_ran()


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("where", WHERE)
def test_no_gadget_runs_in_any_section_of_any_script(trap, script, where, digits, tmp_path):
    gadgets, assert_nothing_ran = trap
    main = importlib.import_module(script).main
    (tmp_path / "own.json").write_text(json.dumps(digits()))
    for name, args in gadgets.items():
        path = write_checkpoint(
            tmp_path / "run" / "model_best.pth", place(DIGITS, where, name, args)
        )
        assert main(["-r", str(path), "-d", "cpu"]) == 2
        if where == "arch":  # what tests another configuration takes the network along
            main(["-r", str(path), "-d", "cpu", "-c", str(tmp_path / "own.json"), "--check"])
    assert_nothing_ran()


def test_teacher_arch_and_new_project_ask_the_same(trap, digits, tmp_path, capsys):
    """A checkpoint that another config names, or whose network is used with another config."""
    import new_project
    import train

    _, assert_nothing_ran = trap
    evil = place(DIGITS, "arch", "hubconf.x", {})
    path = write_checkpoint(tmp_path / "run" / "model_best.pth", evil)
    task = {"type": "DistillationTask", "args": {"teacher": str(path)}}
    (tmp_path / "student.json").write_text(json.dumps(digits({"task": task})))
    assert train.main(["-c", str(tmp_path / "student.json"), "-d", "cpu"]) == 2
    assert '"hubconf.x" is named by a checkpoint' in capsys.readouterr().err
    assert new_project.main([str(tmp_path / "Next"), "--from", str(path)]) == 2
    assert '"hubconf.x" is named by a checkpoint' in capsys.readouterr().err
    assert not (tmp_path / "Next").exists()
    assert_nothing_ran()


NETWORK = "from torch import nn\nclass Net(nn.Sequential):\n    def __init__(self):\n"
NETWORK += "        super().__init__(nn.Flatten(), nn.Linear(784, 10))\n"


@pytest.mark.parametrize(
    "way", ["config.json", "configs/x.json", "-c FILE", "--trust", "-s", "none"]
)
def test_ways_to_allow_a_name(digits, train, tmp_path, monkeypatch, own_modules, capsys, way):
    """A run of one's own whose network comes from an installed package."""
    import train as script
    from utils.config import trust

    own_modules.clear()
    (tmp_path / "package_net.py").write_text(NETWORK)
    monkeypatch.syspath_prepend(str(tmp_path))
    sys.modules.pop("package_net", None)
    config = digits({"arch": {"type": "package_net.Net"}, "trainer.epochs": 1})
    run = train(config)
    project, more = tmp_path / "project", []
    (project / "configs").mkdir(parents=True)
    (project / "configs" / "broken.json").write_text("{")
    (tmp_path / "base.json").write_text(json.dumps(config))
    (tmp_path / "file.json").write_text('{"extends": "base.json"}')
    if way in ("config.json", "configs/x.json"):
        (project / way).write_text(json.dumps(config))
    elif way == "-c FILE":
        more = ["-c", str(tmp_path / "file.json"), "--epochs", "1"]
    elif way == "-s":
        more = ["-s", "arch=package_net.Net"]
    elif way == "--trust":
        more = ["--trust"]
    monkeypatch.setattr(trust, "ROOT", project)
    code = script.main(["-r", str(run), "-d", "cpu", "--check", *more])
    assert code == (2 if way == "none" else 0)
    error = capsys.readouterr().err
    if way == "none":
        assert 'arch.type: "package_net.Net" is named by a checkpoint' in error
        assert str(run) in error
        for word in ("config.json", "configs/", "-c FILE", "--trust"):
            assert word in error


def test_a_dotted_path_into_the_sections_own_places_is_no_foreign_name():
    names = {"arch": "model.model.LeNet", "loss": "torch.nn.functional.cross_entropy"}
    config = DIGITS | names | {"optimizer": {"type": "torch.optim.Adam", "args": {"lr": 0.1}}}
    assert ConfigParser(config, trust=Trust(())).init_obj("arch")


def test_a_function_that_says_it_returns_something_else_is_not_called(own_code):
    own_code("maker", "def make(x: int = 0) -> dict:\n    raise AssertionError\n")
    with pytest.raises(ConfigError, match=r'"maker\.make" returns a dict, not a Module'):
        ConfigParser(DIGITS | {"arch": "maker.make"})
