"""Which network a file holds or shows, and what that was made from."""

import hashlib
from collections.abc import Iterator

import torch
from torch import Tensor


def digest(state: dict) -> str:
    """Identify a checkpoint's network: its weights, their average if there is one, its structure.

    It depends on names, dtypes, sizes and values alone, and on nothing else that `state` holds.
    """
    network = {key: state.get(key) for key in ("state_dict", "structure")}
    network["ema"] = (state.get("ema") or {}).get("state_dict")
    hashed = hashlib.blake2b(digest_size=16)
    for part in _parts(network):
        hashed.update(part)
    return hashed.hexdigest()


def origin(state: dict) -> dict:
    """The record of origin in a checkpoint's content, which an exported file may hold, too.

    It is {"digest": of the network, "data": of the training data, "seed", "versions", "figures": of
    the network when it was saved, "made_from": the record of the checkpoint that the run started
    from, with its "config"}. Of a file without it, what is known.
    """
    seed = (state.get("config") or {}).get("seed")
    known = {"data": None, "seed": seed, "versions": state.get("versions"), "made_from": None}
    record = {"digest": None} | known | (state.get("origin") or {})
    return record | {"digest": digest(state)} if state.get("state_dict") else record


def _parts(value: object, name: str = "") -> Iterator[bytes | memoryview]:
    if isinstance(value, dict):
        for key in sorted(value, key=str):
            yield from _parts(value[key], f"{name}/{key}")
    elif isinstance(value, Tensor):
        yield f"{name} {value.dtype} {list(value.shape)}\n".encode()
        plain = value.detach().cpu().resolve_conj().resolve_neg().contiguous().flatten()
        yield plain.view(torch.uint8).numpy().data
    else:
        yield f"{name} {value!r}\n".encode()
