"""Files shared out among the parts of a split."""

import collections

import numpy as np
import pytest

from base.parts import share_out

SHARES = [0.7, 0.15, 0.15]


def singles(counts):
    return [
        (f"{c}/{n}.png", c, f"{c}/{n}.png") for c, count in counts.items() for n in range(count)
    ]


def count(parts, files):
    table = collections.defaultdict(lambda: [0, 0, 0])
    for name, label, _ in files:
        table[label][parts[name]] += 1
    return dict(table)


@pytest.mark.parametrize("seed", range(5))
def test_each_class_is_in_each_part_by_its_share(seed):
    files = singles({"NG": 7, "OK": 200, "rare": 40})
    parts = share_out(files, SHARES, seed, {})
    for label, numbers in count(parts, files).items():
        total = sum(1 for _, other, _ in files if other == label)
        assert all(numbers)
        assert np.abs(np.array(numbers) - np.array(SHARES) * total).max() <= 1
    assert share_out(files[::-1], SHARES, seed, {}) == parts  # not by the order of files
    assert seed == 0 or parts != share_out(files, SHARES, 0, {})


def test_adding_files_moves_none_and_keeps_the_shares():
    files = singles({"NG": 12, "OK": 100})
    parts = share_out(files, SHARES, 1, {})
    more = [*files, *((f"NG/new{n}.png", "NG", f"NG/new{n}.png") for n in range(60))]
    again = share_out(more, SHARES, 1, parts)
    assert {name: again[name] for name in parts} == parts
    numbers = np.array(count(again, more)["NG"])
    assert np.abs(numbers - np.array(SHARES) * 72).max() <= 1
    # removing files moves none either
    fewer = [file for n, file in enumerate(more) if n % 3]
    assert share_out(fewer, SHARES, 1, again) == {name: again[name] for name, *_ in fewer}


@pytest.mark.parametrize("seed", range(5))
def test_lots_stay_together(seed):
    generator = np.random.default_rng(seed)
    files = []
    for lot in range(40):
        for n in range(int(generator.integers(3, 13))):
            label = "NG" if generator.random() < 0.15 else "OK"
            files.append((f"{label}/lot{lot}_{n}.png", label, f"lot{lot}"))
    parts = share_out(files, SHARES, seed, {})
    of_lot = collections.defaultdict(set)
    for name, _, lot in files:
        of_lot[lot].add(parts[name])
    assert all(len(found) == 1 for found in of_lot.values())
    total = np.sum(list(count(parts, files).values()), axis=0)
    assert np.abs(total / len(files) - SHARES).max() < 0.05
    assert all(count(parts, files)["NG"])
    # a new image of a known lot joins it
    again = share_out([*files, ("OK/lot3_new.png", "OK", "lot3")], SHARES, seed, parts)
    assert {again["OK/lot3_new.png"]} == of_lot["lot3"]


def test_part_without_a_share_stays_empty():
    files = singles({"a": 10})
    assert set(share_out(files, [0.8, 0.2, 0.0], 0, {}).values()) == {0, 1}
