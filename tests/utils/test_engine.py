"""The ways to compute, against torch's own recipes and against plain float32."""

import itertools
import platform
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.conftest import ROOT, assert_same, build, last_checkpoint
from utils.engine.engine import Engine, unwrap

OPTIMIZERS = [
    {"type": "Adam", "args": {"lr": 0.002}},
    {"type": "SGD", "args": {"lr": 0.1, "momentum": 0.9}},
]


def way(precision, channels_last, optimizer):
    """A setting of the engine and an optimizer, named after both."""
    settings = {"precision": precision, "channels_last": channels_last}
    memory = "channels_last" if channels_last else "contiguous"
    name = f"{precision}-{memory}-{optimizer['type']}"
    # on a CPU tf32 is fp32, and convolutions of 16 bits are slow
    is_slow = precision != "fp32" and name != "bf16-channels_last-Adam"
    marks = [pytest.mark.slow] if is_slow else []
    return pytest.param(
        settings | {"deterministic": channels_last}, optimizer, marks=marks, id=name
    )


PRECISIONS = "fp32", "tf32", "bf16", "fp16"
WAYS = list(itertools.starmap(way, itertools.product(PRECISIONS, (True, False), OPTIMIZERS)))


@pytest.mark.parametrize(("way", "optimizer"), WAYS)
def test_every_setting_learns(digits, way, optimizer):
    changes = {"trainer.epochs": 4, "metrics": ["accuracy"], "optimizer": optimizer}
    log = build(digits({**changes, "engine": way})).train()
    assert log["val_accuracy"] > 0.88
    assert log["val_loss"] < 0.5


@pytest.mark.slow  # the compiler takes a minute
@pytest.mark.parametrize(("precision", "mode"), [("fp32", "default"), ("bf16", "reduce-overhead")])
def test_compiled_run_learns_and_resumes_exactly(digits, train, resume, precision, mode):
    config = digits({"engine": {"precision": precision, "compile": mode}})
    whole = train(config, "--epochs", 4)
    half = train(config, "--epochs", 2)
    resume(half, "--epochs", 4)
    states = [last_checkpoint(run)["state_dict"] for run in (half, whole)]
    assert_same(*states)
    assert not any("_orig_mod" in name for name in states[0])
    plain = last_checkpoint(train(digits(), "--epochs", 4))
    assert last_checkpoint(whole)["monitor_best"] == pytest.approx(plain["monitor_best"], rel=0.15)


@pytest.mark.slow
def test_later_models_are_compiled_too_and_graph_breaks_reported_once(digits, own_code, capsys):
    own_code(
        "breaking",
        "import torch\n"
        "class Net(torch.nn.Sequential):\n"
        "    def forward(self, x):\n"
        "        torch._dynamo.graph_break()\n"
        "        return super().forward(x)\n"
        "def net(width: int = 8):\n"
        "    first, last = torch.nn.Linear(784, width), torch.nn.Linear(width, 10)\n"
        "    return Net(torch.nn.Flatten(), first, torch.nn.ReLU(), last)\n",
    )
    import breaking

    from trainer.optimization import build_optimizer

    trainer = build(
        digits({"arch": "breaking.net", "engine": {"compile": "default"}, "trainer.epochs": 3})
    )

    def before_epoch(epoch):
        if epoch == 2:
            network = breaking.net(5)
            optimizer = build_optimizer(trainer.config, trainer.engine, network)
            trainer.set_model(network, optimizer)

    trainer.before_epoch = before_epoch
    assert trainer.train()["val_loss"] < 2.3
    assert unwrap(trainer.model)[1].out_features == 5
    assert trainer.model is not unwrap(trainer.model)
    message = "is compiled in several parts: Call to `torch._dynamo.graph_break()`"
    assert capsys.readouterr().out.count(message) == 1


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_run_in_16_bits_resumes_exactly(digits, train, resume, own_code, precision):
    own_code(
        "linear",
        "from torch import nn\n"
        "def net():\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(784, 10))\n",
    )
    config = digits(
        {"arch": "linear.net", "engine": {"precision": precision}, "trainer.clip_grad_norm": 1.0}
    )
    whole = train(config, "--epochs", 4)
    half = train(config, "--epochs", 2)
    resume(half, "--epochs", 4)
    one, two = (last_checkpoint(run) for run in (half, whole))
    for key in ("state_dict", "optimizer", "scaler", "trainer"):
        assert_same(one[key], two[key])
    assert (one["scaler"] is None) == (precision == "bf16")
    assert all(tensor.dtype == torch.float32 for tensor in one["state_dict"].values())


def test_mixed_precision_equals_torchs_recipe():
    """https://docs.pytorch.org/docs/stable/notes/amp_examples.html, with clipped gradients."""
    torch.manual_seed(0)
    batches = [(torch.randn(8, 3, 12, 12), torch.randint(4, (8,))) for _ in range(5)]

    def network():
        torch.manual_seed(1)
        return nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(600, 4))

    reference = network()
    optimizer = torch.optim.SGD(reference.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu")
    seen = []
    for data, target in batches:
        with torch.autocast("cpu", torch.float16):
            output = reference(data)
        scaler.scale(F.cross_entropy(output.float(), target)).backward()
        scaler.unscale_(optimizer)
        seen.append(reference[0].weight.grad.norm())
        nn.utils.clip_grad_norm_(reference.parameters(), 0.5)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
    engine = Engine("cpu", settings={"precision": "fp16", "channels_last": False})
    model = engine.prepare(network())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for (data, target), norm in zip(batches, seen, strict=True):
        output = engine.forward(model, data)
        assert output.dtype == torch.float32
        engine.backward(F.cross_entropy(output, target))
        engine.unscale(optimizer)
        assert torch.equal(model[0].weight.grad.norm(), norm)  # after_backward sees true gradients
        engine.optimizer_step(optimizer, 0.5)
    assert_same(dict(model.state_dict()), dict(reference.state_dict()))
    assert engine.scaler.state_dict() == scaler.state_dict()


def test_nested_outputs_are_float32():
    class Two(nn.Linear):
        def forward(self, x):
            return {"main": super().forward(x), "parts": (super().forward(x), torch.arange(3))}

    output = Engine("cpu", settings={"precision": "bf16"}).forward(Two(4, 2), torch.randn(3, 4))
    assert output["main"].dtype == output["parts"][0].dtype == torch.float32
    assert output["parts"][1].dtype == torch.int64


def test_memory_format_of_4d_tensors():
    model = nn.ModuleList([nn.Conv2d(3, 4, 3), nn.Conv3d(3, 4, 3), nn.Linear(3, 4)])
    engine = Engine("cpu")
    engine.prepare(model)
    data = engine.to_device((torch.randn(2, 3, 5, 5), torch.arange(2)))
    assert model[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert data[0].is_contiguous(memory_format=torch.channels_last)
    plain = Engine("cpu", settings={"channels_last": False})
    assert plain.prepare(model)[0].weight.is_contiguous()
    assert plain.to_device(data[0]).is_contiguous()


@pytest.mark.parametrize("kind", ["Adam", "AdamW", "SGD"])
@pytest.mark.parametrize("saved_as", [torch.contiguous_format, torch.channels_last])
def test_optimizer_resumes_with_another_memory_format(kind, saved_as):
    """A fused step ignores strides; compared with a step that does not."""
    arguments = {"lr": 0.1, **({"momentum": 0.9} if kind == "SGD" else {})}
    start, gradients = torch.randn(4, 3, 5, 5), torch.randn(4, 4, 3, 5, 5)

    def steps(optimizer, parameter, gradients):
        for gradient in gradients:
            parameter.grad = torch.empty_like(parameter).copy_(gradient)
            optimizer.step()

    reference = nn.Parameter(start.clone())
    steps(getattr(torch.optim, kind)([reference], **arguments, foreach=False), reference, gradients)
    one = nn.Parameter(start.contiguous(memory_format=saved_as))
    before = getattr(torch.optim, kind)([one], **arguments, fused=True)
    steps(before, one, gradients[:2])
    two = nn.Parameter(one.detach().clone(memory_format=torch.contiguous_format))
    other = [torch.contiguous_format, torch.channels_last][saved_as is torch.contiguous_format]
    two = nn.Parameter(two.detach().contiguous(memory_format=other))
    after = getattr(torch.optim, kind)([two], **arguments, fused=True)
    Engine("cpu").load_optimizer(after, before.state_dict())
    steps(after, two, gradients[2:])
    torch.testing.assert_close(two, reference, check_stride=False)


@pytest.mark.parametrize(
    ("optimizer", "fused"),
    [
        ({"type": "Adam", "args": {"lr": 0.1}}, True),
        ({"type": "AdamW", "args": {"lr": 0.1, "fused": False}}, False),
        ({"type": "AdamW", "args": {"lr": 0.1, "foreach": True}}, None),
        ({"type": "SGD", "args": {"lr": 0.1}}, None),  # not faster on a CPU
        ({"type": "Adagrad", "args": {"lr": 0.1}}, None),
    ],
)
def test_fused_optimizers(digits, optimizer, fused):
    assert build(digits({"optimizer": optimizer})).optimizer.param_groups[0]["fused"] is fused


def test_mistakes_in_the_section(digits, train, capsys):
    train(digits({"engine": {"precision": "fp8"}}), code=2)
    assert "engine" in capsys.readouterr().err
    train(digits({"engine": {"compiled": "default"}}), code=2)
    assert "engine" in capsys.readouterr().err


@pytest.mark.skipif(
    sys.platform != "linux" or platform.libc_ver()[0] != "glibc",
    reason="needs glibc",
)
def test_freed_memory_is_reused_without_page_faults():
    # In a process of its own: after a failed allocation the C library takes blocks elsewhere.
    code = """
import resource, torch
from utils.engine.engine import Engine
Engine("cpu")
faults = []
for _ in range(12):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(2**24)  # 64 MB: 16,384 pages, or 32 large ones
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(sorted(faults)[6])
"""
    command = [sys.executable, "-c", code]
    median = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert int(median) < 32
