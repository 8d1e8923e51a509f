"""Randomness as a function of (seed, epoch, position), not of history.

So a resumed run draws what the unbroken run would have drawn, for any number of workers.
"""

import contextlib
import hashlib
import random
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch

CPU = torch.device("cpu")


def derive_seed(*parts: int | str) -> int:
    """One 63-bit seed from several parts; a change in any part gives an unrelated seed."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


# in quotes: numpy loads its random module when it is named
def make_generator(*parts: int | str) -> "np.random.Generator":
    """A numpy generator seeded from `parts`."""
    return np.random.Generator(np.random.PCG64(derive_seed(*parts)))


def seed_everything(*parts: int | str) -> None:
    """Seed torch (all devices), numpy and random from `parts`."""
    torch.manual_seed(derive_seed(*parts))
    _seed_cpu(*parts)


def _seed_cpu(*parts: int | str) -> None:
    seed = derive_seed(*parts)
    torch.random.default_generator.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


@contextlib.contextmanager
def seeded(*parts: int | str, device: torch.device = CPU) -> Iterator[Callable[..., None]]:
    """Random numbers inside follow from `parts` alone; those outside continue undisturbed.

    Those of the CPU, where samples are made, and of `device`. Yields a function that seeds the
    CPU's again, from other parts, which costs much less than another block.
    """
    states = torch_rng_state(device), np.random.get_state(), random.getstate()
    _seed_cpu(*parts)
    if device.type == "cuda":
        torch.cuda.default_generators[_index(device)].manual_seed(derive_seed(*parts))
    try:
        yield _seed_cpu
    finally:
        set_torch_rng_state(states[0], device)
        np.random.set_state(states[1])
        random.setstate(states[2])


def draws_randomness(action: Callable[[], object]) -> bool:
    """Whether `action` uses the generators of torch (on the CPU), numpy or random."""

    def draw() -> tuple[int, int, float]:
        return int(torch.randint(2**62, ())), int(np.random.randint(2**31)), random.random()

    with seeded("watched") as seed:
        expected = draw()
        seed("watched")
        action()
        return draw() != expected


def stratified_choice(
    targets: Sequence | np.ndarray | torch.Tensor | None, count: int, size: int, seed: int
) -> np.ndarray:
    """`size` of `count` indices, sorted; each class keeps its share to within one sample.

    Any indices if `targets` is None or not one class number or name per sample. scikit-learn's
    train_test_split does the same, but takes seconds to import.
    """
    generator = make_generator(seed, "validation")
    labels = None if targets is None else np.asarray(targets)
    if labels is None or labels.ndim != 1 or labels.dtype.kind == "f":
        return np.sort(generator.permutation(count)[:size])
    classes, sizes = np.unique(labels, return_counts=True)
    exact = sizes * (size / count)
    taken = np.floor(exact).astype(int)
    largest_remainders = np.lexsort((generator.random(len(classes)), taken - exact))
    taken[largest_remainders[: size - taken.sum()]] += 1
    chosen = [
        generator.permutation(np.flatnonzero(labels == label))[:number]
        for label, number in zip(classes, taken, strict=True)
    ]
    return np.sort(np.concatenate(chosen))


def get_state(device: torch.device) -> dict:
    """The states of the generators as plain data, for a checkpoint; of GPUs only `device`'s."""
    kind, keys, position, has_gauss, cached = np.random.get_state()
    version, numbers, gauss = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch_rng_state(device)[1:],
        "numpy": [kind, torch.from_numpy(keys.astype(np.int64)), position, has_gauss, cached],
        "python": [version, list(numbers), gauss],
    }


def set_state(state: dict, device: torch.device) -> None:
    """Restore what `get_state` returned, whatever the number of the GPU was."""
    on_gpu = state["cuda"]
    if len(on_gpu) > 1:  # before December 2026 the states of all GPUs were kept
        on_gpu = on_gpu[_index(device) :][:1]
    set_torch_rng_state([state["torch"], *on_gpu], device)
    kind, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))


def torch_rng_state(device: torch.device) -> list[torch.Tensor]:
    """The states of this process's torch generators: the CPU's, and the device's if it is a GPU."""
    on_gpu = [torch.cuda.get_rng_state(device)] if device.type == "cuda" else []
    return [torch.get_rng_state(), *on_gpu]


def set_torch_rng_state(states: list[torch.Tensor] | list[list[int]], device: torch.device) -> None:
    """Restore what `torch_rng_state` returned (older checkpoints hold lists of numbers)."""
    cpu, *on_gpu = (torch.as_tensor(state, dtype=torch.uint8) for state in states)
    torch.set_rng_state(cpu)
    if on_gpu and device.type == "cuda":
        torch.cuda.set_rng_state(on_gpu[0], device)


def _index(device: torch.device) -> int:
    return device.index or 0
