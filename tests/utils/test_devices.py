"""Devices: which one an engine uses and what it says of it; GPUs are made believe."""

import contextlib
import os
from types import SimpleNamespace

import pytest
import torch
from torch.nn.utils.rnn import pack_sequence, pad_packed_sequence

from model.model import LeNet
from utils.engine import randomness
from utils.engine.engine import AHEAD, Engine, Transfer, map_tensors, unwrap
from utils.errors import UserError


@pytest.fixture
def gpus(monkeypatch):
    """A function that makes torch believe in so many GPUs; its `selected` are those selected."""
    calls = []

    def have(count, capability=(9, 0), bf16=True):
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(torch.cuda, "set_device", calls.append)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla K80")
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: bf16)

    have.selected = calls
    yield have
    Engine("cpu")  # torch gets its usual settings back
    assert torchs_settings()[0] == "highest"


@pytest.mark.parametrize(
    ("device", "n_gpu", "count", "expected", "note"),
    [
        (None, 1, 0, "cpu", None),
        (None, 1, 2, "cuda:0", None),
        (None, 0, 2, "cpu", None),
        ("cpu", 1, 2, "cpu", None),
        ("1", 1, 2, "cuda:1", None),
        ("cuda:1", 1, 2, "cuda:1", None),
        ("1", 1, 1, "cpu", "GPU 1 asked for, but this machine has only GPU 0; using the CPU"),
        ("0,1", 1, 0, "cpu", "has none; using the CPU"),
        ("2,3", 1, 3, "cuda:2", "has only GPU 0, 1, 2; using GPU 2"),
        (None, 4, 2, "cuda:0", "has only GPU 0, 1; using GPU 0"),
        ("0,1", 1, 2, "cuda:0", "this is done on one GPU"),
    ],
)
def test_device_that_is_used(gpus, device, n_gpu, count, expected, note):
    gpus(count)
    engine = Engine(device, n_gpu)
    assert str(engine.device) == expected
    assert (note in engine.notes[0]) if note else not engine.notes
    # libraries that ask for no device use this one, too
    assert gpus.selected == ([engine.device.index] if engine.device.type == "cuda" else [])


TORCHRUN = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2"}
SLURM = {"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1", "SLURM_LOCALID": "1"}


@pytest.mark.parametrize(
    ("environment", "count", "number"), [(TORCHRUN, 2, 1), (TORCHRUN, 1, None), (SLURM, 1, 0)]
)
def test_two_processes_do_not_get_the_same_gpu(gpus, monkeypatch, environment, count, number):
    """Only SLURM may show each process its own GPU as number 0."""
    gpus(count)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    if number is None:
        with pytest.raises(UserError, match="process 1 of this machine has no GPU"):
            Engine()
    else:
        assert Engine().device == torch.device("cuda", number)


def test_missing_gpus_are_a_warning(digits, train, capsys):
    train(digits(), "-d", "0,1")
    printed = capsys.readouterr().out
    assert "warning: GPU 0, 1 asked for, but this machine has none; using the CPU" in printed
    train(digits(), "-d", "gpu", code=2)
    assert '-d gpu: should be "cpu"' in capsys.readouterr().err
    with pytest.raises(UserError):
        Engine("-1")


def test_start_says_where_it_computes(gpus, digits, train, capsys):
    threads = torch.get_num_threads()
    train(digits())
    assert f"device: CPU ({threads} threads), as torch sees no GPU, fp32" in capsys.readouterr().out
    train(digits({"n_gpu": 0, "engine": {"precision": "bf16", "deterministic": True}}))
    printed = capsys.readouterr().out
    assert f"device: CPU ({threads} threads), bf16, deterministic" in printed
    gpus(2)
    engine = Engine("1", settings={"compile": "default"})
    assert engine.describe() == "GPU 1 (Tesla K80), tf32, compiled (default)"


def test_old_gpus_are_told_apart(gpus, monkeypatch):
    gpus(1, capability=(6, 1), bf16=False)
    with pytest.raises(UserError, match=r"compile: .* capability 7\.0, and this one has 6\.1"):
        Engine(settings={"compile": "default"})
    assert "only emulates bf16" in Engine(settings={"precision": "bf16"}).notes[0]
    gpus(1)
    assert not Engine(settings={"precision": "bf16"}).notes
    monkeypatch.setattr("utils.engine.engine.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"engine\.compile: Triton is missing"):
        Engine(settings={"compile": "default"})


def torchs_settings():
    return (
        torch.get_float32_matmul_precision(),
        torch.backends.cudnn.allow_tf32,
        torch.backends.cudnn.benchmark,
        torch.are_deterministic_algorithms_enabled(),
    )


def test_cublas_is_told_before_its_first_use(gpus, monkeypatch):
    """A deterministic engine may come later, and cuBLAS reads the variable only once."""
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    gpus(1)
    Engine()
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"


def test_each_engine_computes_with_its_own_settings(gpus):
    """A second engine, of a proof within a pruning run, must not change how the first trains."""
    gpus(1)
    seen = []

    class Network(torch.nn.Module):
        def forward(self, x):
            seen.append(torchs_settings())
            return x

    training, proof = Engine(), Engine(settings={"precision": "fp32", "deterministic": True})
    for engine in (training, proof, training, training, Engine("cpu")):
        engine.forward(Network(), torch.ones(1))
    fast, exact = ("high", True, True, False), ("highest", False, False, True)
    assert seen == [fast, exact, fast, fast, ("highest", False, True, False)]


def test_no_cuda_graphs_where_gradients_are_added_up(gpus):
    gpus(1)
    for mode, used in {
        "reduce-overhead": "default",
        "max-autotune": "max-autotune-no-cudagraphs",
        "default": "default",
    }.items():
        engine = Engine(settings={"compile": mode})
        engine.avoid_cuda_graphs("several networks")
        assert engine.compile == used
        assert [f'using "{used}"' in note for note in engine.notes] == [True] * (mode != used)
    on_cpu = Engine("cpu", settings={"compile": "reduce-overhead"})
    on_cpu.avoid_cuda_graphs("several networks")
    assert on_cpu.compile == "reduce-overhead"


@pytest.mark.parametrize(("steps", "mode"), [(1, "reduce-overhead"), (2, "default")])
def test_trainer_says_that_it_adds_up_gradients(digits, monkeypatch, steps, mode):
    from tests.conftest import build

    monkeypatch.setattr(torch, "compile", lambda model, mode, dynamic: model)
    trainer = build(digits({"trainer.grad_accum_steps": steps}))
    engine = trainer.engine
    engine.compile, engine.device = "reduce-overhead", torch.device("cuda", 0)
    monkeypatch.setattr(engine, "prepare", lambda model: model)
    trainer.set_model(trainer.model, trainer.optimizer)
    assert engine.compile == mode


class Generator:
    """A GPU's generator: the last seed, and a state."""

    def __init__(self, state):
        self.state = torch.tensor([state], dtype=torch.uint8)

    def manual_seed(self, seed):
        self.state = torch.tensor([seed % 256], dtype=torch.uint8)


@pytest.fixture
def generators(monkeypatch):
    """Of three GPUs."""
    made = [Generator(10), Generator(11), Generator(12)]

    def set_state(state, device):
        made[device.index].state = state

    monkeypatch.setattr(torch.cuda, "default_generators", made)
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: made[device.index].state)
    monkeypatch.setattr(torch.cuda, "set_rng_state", set_state)
    return made


def test_seeds_reach_the_gpu_and_leave_it_as_it_was(generators):
    device = torch.device("cuda", 1)
    drawn = []
    for _ in range(2):
        with randomness.seeded("heat maps", device=device):
            drawn.append(int(generators[1].state))
    assert drawn[0] == drawn[1] != 11
    assert [int(one.state) for one in generators] == [10, 11, 12]


def test_generator_of_the_gpu_is_restored_whatever_its_number(generators):
    kept = randomness.get_state(torch.device("cuda", 1))
    assert [int(state) for state in kept["cuda"]] == [11]
    randomness.set_state(kept, torch.device("cuda", 2))
    assert [int(one.state) for one in generators] == [10, 11, 11]
    old = kept | {"cuda": [torch.tensor([n], dtype=torch.uint8) for n in (1, 2, 3)]}
    randomness.set_state(old, torch.device("cuda", 2))  # all visible GPUs were kept
    assert [int(one.state) for one in generators] == [10, 11, 3]
    randomness.set_state(kept, torch.device("cpu"))


class Stream:
    """What is done on it, in order."""

    def __init__(self, name, done):
        self.name, self.done = name, done

    def wait_stream(self, other):
        self.done.append(f"{self.name} waits for {other.name}")

    def record_event(self):
        return SimpleNamespace(synchronize=lambda: self.done.append("CPU waits"))


def test_batches_are_copied_on_a_stream_of_their_own(monkeypatch):
    done, computing = [], None

    @contextlib.contextmanager
    def stream(chosen):
        done.append(f"on {chosen.name}")
        yield
        done.append("off")

    computing = Stream("computing", done)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: Stream("copying", done))
    monkeypatch.setattr(torch.cuda, "stream", stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: computing)
    monkeypatch.setattr(
        torch.Tensor,
        "record_stream",
        lambda tensor, on: done.append(f"{len(tensor)} for {on.name}"),
    )

    def finish(batch):
        done.append("finish")
        return batch

    transfer = Transfer(torch.device("cpu"), finish)
    batch = {"image": torch.ones(3, 2), "label": [torch.ones(4)]}
    moved = transfer(batch)
    assert torch.equal(moved["image"], batch["image"])
    assert done == [
        "on copying", "finish", "off", "computing waits for copying", "3 for computing",
        "4 for computing",
    ]  # fmt: skip
    for _ in range(4):
        transfer(batch)
    assert done.count("CPU waits") == 5 - AHEAD


def test_lengths_of_packed_sequences_stay_on_the_cpu():
    packed = pack_sequence([torch.ones(2, 3), torch.ones(4, 3)], enforce_sorted=False)
    moved = map_tensors({"text": packed}, lambda tensor: tensor.to("meta"))["text"]
    assert moved.data.device.type == moved.unsorted_indices.device.type == "meta"
    assert moved.batch_sizes.tolist() == [2, 2, 1, 1]
    same = map_tensors(packed, lambda tensor: tensor)
    assert torch.equal(pad_packed_sequence(same)[0], pad_packed_sequence(packed)[0])


def test_unwrap_returns_the_network_itself():
    model = LeNet()
    assert unwrap(Engine("cpu").prepare(model)) is model
    assert unwrap(torch.nn.DataParallel(model)) is model
    assert unwrap(torch.compile(model)) is model


def test_waiting_is_for_the_device_in_use(gpus, monkeypatch):
    waited = []
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    gpus(2)
    for device in ("cpu", "1"):
        Engine(device).synchronize()
    assert waited == [torch.device("cuda", 1)]


def test_other_tests_see_no_gpu():
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""
    assert not torch.cuda.is_available()
