"""Files that want to run something: pickles in checkpoints, gadgets in the configs that checkpoints
and exported files carry. Nothing of them may run.

Whatever starts a program, opens a connection or creates the file "marker" counts as run; the one
program that the scripts start themselves is git.
"""

import json
import os
import shutil
import sys
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

from tests.faults.gallery import gallery
from tests.faults.lab import Fault, Lab, check
from tests.faults.server import isolated, run

RUN = "saved/models/Digits/run"
FILE = f"{RUN}/checkpoint-epoch2.pth"
COMMANDS = [
    ["train.py", "-r", "FILE"],
    ["train.py", "-r", "RUN", "--epochs", "3"],
    ["train.py", "-r", "FILE", "--check"],
    ["train.py", "-c", "digits.json", "-r", "FILE"],
    ["train.py", "-c", "digits.json", "-s", "arch.weights=FILE"],
    ["test.py", "-r", "FILE"],
    ["test.py", "-r", "RUN"],
    ["test.py", "-r", "FILE", "--images", "parts/test"],
    ["test.py", "-r", "FILE", "-c", "digits.json"],
    ["prune.py", "-r", "FILE"],
    ["prune.py", "-c", "prune.json", "-r", "FILE", "--check"],
    ["export.py", "-r", "FILE"],
    ["export.py", "--compare", "FILE", FILE],
    ["new_project.py", "../new", "--from", "FILE"],
]
STARTING = (
    "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.startfile", "subprocess.Popen",
    "pty.spawn", "socket.connect", "urllib.Request", "ftplib.connect", "smtplib.connect",
)  # fmt: skip
TOUCH = "touch marker"
PYTHON = f"__import__('os').system('{TOUCH}')"
CALLS: dict[str, tuple] = {  # a function, and arguments with which it runs something
    "os.system": (TOUCH,),
    "posix.system": (TOUCH,),
    "os.popen": (TOUCH,),
    "os.execvp": ("touch", ["touch", "marker"]),
    "os.posix_spawnp": ("touch", ["touch", "marker"], {}),
    "subprocess.Popen": (["touch", "marker"],),
    "subprocess.check_output": (["touch", "marker"],),
    "subprocess.getoutput": (TOUCH,),
    "builtins.eval": (PYTHON,),
    "builtins.exec": (PYTHON,),
    "builtins.open": ("marker", "w"),
    "builtins.__import__": ("payload",),
    "importlib.import_module": ("payload",),
    "runpy.run_path": ("payload.py",),
    "pty.spawn": (["touch", "marker"],),
    "timeit.timeit": (PYTHON,),
    "cProfile.run": (PYTHON,),
    "code.interact": (None, None, None),
    "pickle.loads": (),
    "torch.load": (),
    "shutil.rmtree": ("saved",),
    "pathlib.Path.touch": ("marker",),
    "torch.utils.collect_env.run": (TOUCH,),
    "torch.hub.load": (".", "payload"),
    "numpy.load": ("evil.pkl",),
    "sympy.sympify": (PYTHON,),
}
GADGETS: dict[str, dict[str, Any]] = {  # a name for "type", and args
    "os.system": {"command": TOUCH},
    "posix.system": {"command": TOUCH},
    "os.popen": {"cmd": TOUCH},
    "os.execvp": {"file": "touch", "args": ["touch", "marker"]},
    "os.posix_spawnp": {"path": "touch", "argv": ["touch", "marker"], "env": {}},
    "os.mkdir": {"path": "marker"},
    "os.symlink": {"src": "x", "dst": "marker"},
    "subprocess.Popen": {"args": ["touch", "marker"]},
    "subprocess.run": {"args": ["touch", "marker"]},
    "subprocess.call": {"args": ["touch", "marker"]},
    "subprocess.check_call": {"args": ["touch", "marker"]},
    "subprocess.check_output": {"args": ["touch", "marker"]},
    "subprocess.getoutput": {"cmd": TOUCH},
    "subprocess.getstatusoutput": {"cmd": TOUCH},
    "pty.spawn": {"argv": ["touch", "marker"]},
    "builtins.eval": {"source": PYTHON},
    "builtins.exec": {"source": PYTHON},
    "builtins.open": {"file": "marker", "mode": "w"},
    "io.open": {"file": "marker", "mode": "w"},
    "builtins.__import__": {"name": "payload"},
    "importlib.import_module": {"name": "payload"},
    "runpy.run_path": {"path_name": "payload.py"},
    "runpy.run_module": {"mod_name": "payload"},
    "timeit.timeit": {"stmt": PYTHON},
    "timeit.Timer": {"stmt": PYTHON},
    "cProfile.run": {"statement": PYTHON},
    "pickle.load": {"file": "evil.pkl"},
    "shutil.copyfile": {"src": "payload.py", "dst": "marker"},
    "shutil.rmtree": {"path": "parts"},
    "shutil.unpack_archive": {"filename": "evil.zip"},
    "pathlib.Path.touch": {"self": "marker"},
    "zipapp.create_archive": {"source": "parts", "target": "marker"},
    "webbrowser.open": {"url": "http://127.0.0.1:9/"},
    "urllib.request.urlopen": {"url": "http://127.0.0.1:9/"},
    "payload.run": {},
    "payload": {},
    "evil_package.submodule.f": {},
    "torch.utils.collect_env.run": {"command": TOUCH},
    "torch.utils.collect_env.run_and_read_all": {"run_lambda": "run", "command": TOUCH},
    "torch.hub.load": {"repo_or_dir": ".", "model": "payload", "source": "local"},
    "torch.hub.load_state_dict_from_url": {"url": "http://127.0.0.1:9/x.pth"},
    "torch.hub.download_url_to_file": {"url": "http://127.0.0.1:9/x", "dst": "marker"},
    "torch.load": {"f": "evil.pkl", "weights_only": False},
    "torch.save": {"obj": 1, "f": "marker"},
    "torch.jit.load": {"f": "evil.pkl"},
    "torch.utils.cpp_extension.load_inline": {"name": "x", "cpp_sources": "int f() { return 1; }"},
    "torch.distributed.run.main": {"args": ["payload.py"]},
    "torch.ops.load_library": {"path": "evil.so"},
    "torchvision.datasets.utils.download_url": {"url": "http://127.0.0.1:9/x", "root": "."},
    "numpy.load": {"file": "evil.pkl", "allow_pickle": True},
    "numpy.save": {"file": "marker", "arr": 1},
    "numpy.memmap": {"filename": "marker", "mode": "w+", "shape": 1},
    "numpy.loadtxt": {"fname": "http://127.0.0.1:9/x"},
    "numpy.distutils.exec_command.exec_command": {"command": TOUCH},
    "pytest.main": {"args": ["payload.py"]},
    "sympy.sympify": {"a": PYTHON},
    "sympy.parsing.sympy_parser.parse_expr": {"s": PYTHON},
    "sympy.preview": {"expr": "x", "viewer": "file", "filename": "marker"},
    "PIL.ImageShow.show": {"image": "x"},
    "matplotlib.pyplot.savefig": {"fname": "marker"},
    "onnx.hub.load": {"model": "x"},
    "utils.engine.launch.start": {
        "count": 1, "script": "payload.py", "argv": [], "max_restarts": 0,
    },
    "utils.files.write_text": {"path": "marker", "text": "x"},
    "train.main": {"argv": ["-c", "digits.json"]},
    "new_project.main": {"argv": ["marker"]},
    "unittest.main": {"module": "payload"},
    "doctest.testfile": {"filename": "payload.py"},
    "distutils.spawn.spawn": {"cmd": ["touch", "marker"]},
    "logging.config.dictConfig": {
        "config": {"version": 1, "handlers": {"x": {"()": "os.system", "command": TOUCH}}},
    },
    "logging.FileHandler": {"filename": "marker"},
    "multiprocessing.Process": {"target": PYTHON},
}  # fmt: skip
SECTIONS = (
    "arch", "loss", "metrics.0", "data_loader", "valid_data_loader", "test_data_loader",
    "optimizer", "lr_scheduler", "task", "trainer", "trackers.0", "pruner", "exporter", "own",
    "data_loader.args.transforms", "trainer.batch_transforms.0",
)  # fmt: skip


class Call:
    """Unpickled, it is the result of a call."""

    def __init__(self, function: Callable, arguments: tuple):
        self.pair = function, arguments

    def __reduce__(self) -> tuple:
        return self.pair


def pickles(lab: Lab, random: Random) -> Counter:
    """A pickle that calls something, in place of a checkpoint or within one."""
    name = random.choice(list(CALLS))
    place = random.choice(["raw", "zip", "state", "config", "state_dict", "jit", "npz"])
    work, command = _scene(lab), random.choice(COMMANDS)
    file = "data/digits.npz" if place == "npz" else FILE
    if place == "npz":
        command = ["train.py", "-c", "digits.json"]
    isolated(_write_pickle, work / file, name, place)
    return _try(work, file, command, f"{name} in a pickle ({place})")


def gadgets(lab: Lab, random: Random) -> Counter:
    """A config in a checkpoint or an exported file that names something else than a network."""
    name = random.choice(list(GADGETS))
    section = "arch" if random.random() < 0.4 else random.choice(SECTIONS)
    work, command = _scene(lab), random.choice(COMMANDS)
    spec: Any = {"type": name, "args": GADGETS[name]}
    flat = random.random() < 0.2 or section == "trainer"
    if flat:  # the trainer's arguments are beside its type
        spec = {"type": name, **GADGETS[name]}
    if random.random() < 0.2:  # as an argument of something harmless
        spec = {"type": "LeNet", "args": {"num_classes": spec}}
    file = random.choice([FILE, FILE, f"{RUN}/model.onnx"])
    isolated(_write_config, work / file, section, spec)
    if file.endswith(".onnx"):
        command = [word for word in command if word != "RUN"]
        command = ["test.py", "-r", "FILE"] if "FILE" not in command else command
    return _try(work, file, command, f"{name} as {section}")


def _scene(lab: Lab) -> Path:
    work = lab.copy(gallery(lab))
    text = f"import os\nos.system({TOUCH!r})\ndef run(**kwargs): pass\n"
    (work / "payload.py").write_text(text)
    (work / "hubconf.py").write_text(text + "payload = run\n")
    (work / "evil_package").mkdir()
    (work / "evil_package" / "__init__.py").write_text(text)
    shutil.copyfile(lab.once("evil.pkl", lambda: _evil(lab)), work / "evil.pkl")
    with zipfile.ZipFile(work / "evil.zip", "w") as archive:
        archive.writestr("marker", "")
    return work


def _evil(lab: Lab) -> Path:
    isolated(_write_pickle, lab.folder / "evil.pkl", "os.system", "raw")
    return lab.folder / "evil.pkl"


def _write_pickle(path: Path, name: str, place: str) -> None:
    import importlib
    import pickle

    import torch

    module, _, attribute = name.rpartition(".")
    if name == "pathlib.Path.touch":
        call = Call(Path.touch, (Path("marker"),))
    else:
        arguments = CALLS[name] or (pickle.dumps(Call(os.system, (TOUCH,))),)
        call = Call(getattr(importlib.import_module(module), attribute), arguments)
    if place == "raw":
        path.write_bytes(pickle.dumps(call))
        return
    if place == "npz":
        import numpy as np

        np.savez(path, images=np.array([call], dtype=object), target=np.array([call], dtype=object))
        return
    state = torch.load(path, weights_only=True)
    if place == "state":
        state["epoch"] = call
    elif place == "config":
        state["config"]["name"] = call
    elif place == "state_dict":
        state["state_dict"]["conv1.weight"] = call
    else:
        state = call
    torch.save(state, path, _use_new_zipfile_serialization=place != "jit")


def _write_config(path: Path, section: str, spec: object) -> None:
    from utils.config.config_file import assign

    def change(config: dict) -> dict:
        key, keys = section.split(".")[0], section.split(".")
        config.setdefault(key, [None] if keys[-1] == "0" and len(keys) == 2 else {})
        if keys[-1] == "0" and len(keys) == 3:
            config[keys[0]][keys[1]] = [spec]
        else:
            assign(config, keys, spec)
        if section == "own":
            config["own"] = {"role": "arch", **spec} if isinstance(spec, dict) else spec
        return config

    if path.suffix == ".onnx":
        import onnx

        from exporter import onnx_file

        model = onnx.load(path)
        for entry in model.metadata_props:
            if entry.key == "config":
                entry.value = json.dumps(change(json.loads(entry.value)))
        onnx_file.save(model, path, onnx_file.entries(model), {})
        return
    import torch

    state = torch.load(path, weights_only=True)
    state["config"] = change(state["config"])
    torch.save(state, path)


def _try(work: Path, file: str, command: list[str], label: str) -> Counter:
    command = [{"FILE": file, "RUN": RUN}.get(word, word.replace("=FILE", f"={file}"))
               for word in command]  # fmt: skip
    # what a whole run needs stays, but every way into it is the hostile file
    if "-r" in command and command[command.index("-r") + 1] == RUN:
        for other in ("model_best.pth", "checkpoint-epoch1.pth"):
            shutil.copyfile(work / file, work / RUN / other)
    note, before = work.with_name("started"), sorted(work.glob("*"))
    ended = run(work, command, [lambda: _watch(note)])
    label = f"{label}, {' '.join(command)}"
    if note.exists():
        raise Fault(f"{label}: started {note.read_text().splitlines()[0]}")
    created = [path.name for path in sorted(work.glob("*")) if path not in before]
    lost = [path.name for path in before if not path.exists()]
    if "marker" in created or lost:
        raise Fault(f"{label}: ran, it created {created} and removed {lost}")
    try:
        check(ended)
    except Fault as fault:
        raise Fault(f"{label}: {fault}") from None
    return Counter({"files": 1, f"exit {ended.code}": 1})


def _watch(note: Path) -> None:
    def observe(event: str, arguments: tuple) -> None:
        if event in STARTING and "git" not in str(arguments[:1]):
            descriptor = os.open(note, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.write(descriptor, f"{event} {arguments!r}\n".encode())
            os.close(descriptor)

    sys.addaudithook(observe)
