"""Randomness as a function of (seed, epoch, position), not of history.

So a resumed run draws what the unbroken one would have drawn, whatever the number of workers.
"""

import contextlib
import hashlib
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch


def seed_of(*parts: int | str) -> int:
    """One 63-bit seed from several parts; any change in one gives an unrelated seed."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator_of(*parts: int | str) -> "np.random.Generator":  # in quotes, as numpy loads that part when it is named
    """Numpy's generator, started from `parts`."""
    return np.random.Generator(np.random.PCG64(seed_of(*parts)))


def seed_everything(*parts: int | str) -> None:
    """Seed torch (all devices), numpy and random from `parts`."""
    seed = seed_of(*parts)
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


@contextlib.contextmanager
def seeded(*parts: int | str) -> Iterator[Callable]:
    """Random numbers drawn inside follow from `parts` alone, and those drawn outside go on as if nothing happened.

    Gives a function that seeds anew, from other parts, which is much cheaper. For the CPU's generators only: samples are
    made there.
    """
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()
    _seed_cpu(*parts)
    try:
        yield _seed_cpu
    finally:
        torch.set_rng_state(states[0])
        np.random.set_state(states[1])
        random.setstate(states[2])


def _seed_cpu(*parts: int | str) -> None:
    seed = seed_of(*parts)
    torch.random.default_generator.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


def draws_randomness(action: Callable[[], object]) -> bool:
    """Whether `action` draws from the generators of torch (on the CPU), numpy or random."""
    with seeded("watched"):
        before = _states()
        action()
        after = _states()
    return before != after


def _states() -> tuple:
    return torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), np.random.get_state()[2], random.getstate()


def stratified_choice(targets: Any, count: int, size: int, seed: int) -> np.ndarray:
    """`size` of `count` indices, sorted, with each class's share kept to within one sample.

    Without `targets` (None) any indices. Scikit-learn's train_test_split does this too, but takes seconds to import.
    """
    generator = generator_of(seed, "validation")
    if targets is None:
        return np.sort(generator.permutation(count)[:size])
    labels = np.asarray(targets)
    if labels.ndim != 1 or labels.dtype.kind == "f":  # several labels a sample, or numbers to predict: no classes
        return np.sort(generator.permutation(count)[:size])
    classes, sizes = np.unique(labels, return_counts=True)
    exact = sizes * (size / count)
    taken = np.floor(exact).astype(int)
    largest_remainders = np.lexsort((generator.random(len(classes)), taken - exact))
    taken[largest_remainders[: size - taken.sum()]] += 1
    chosen = [
        generator.permutation(np.flatnonzero(labels == label))[:number] for label, number in zip(classes, taken, strict=True)
    ]
    return np.sort(np.concatenate(chosen))


def get_state() -> dict:
    """All generators' states as plain data, for a checkpoint."""
    kind, keys, position, has_gauss, cached = np.random.get_state()
    version, numbers, gauss = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": [kind, torch.from_numpy(keys.astype(np.int64)), position, has_gauss, cached],
        "python": [version, list(numbers), gauss],
    }


def set_state(state: dict) -> None:
    """What `get_state` returned, put back. The CUDA generators only where there are as many as there were."""
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.device_count() == len(state["cuda"]):
        torch.cuda.set_rng_state_all(state["cuda"])
    kind, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))


def torchs_state(device: torch.device) -> list[list[int]]:
    """How torch's generators stand in this process, that of the CPU and that of the device, as plain numbers."""
    states = [torch.get_rng_state()]
    if device.type == "cuda":
        states.append(torch.cuda.get_rng_state(device))
    return [state.tolist() for state in states]


def set_torchs_state(states: list[list[int]], device: torch.device) -> None:
    """Go on from what `torchs_state` gave, as far as there are such generators."""
    torch.set_rng_state(torch.tensor(states[0], dtype=torch.uint8))
    if device.type == "cuda" and len(states) > 1:
        torch.cuda.set_rng_state(torch.tensor(states[1], dtype=torch.uint8), device)
