"""A checkpoint's classes and input are compared with the data's, by name."""

import unicodedata
from types import SimpleNamespace

import pytest

from trainer.agreement import check_agreement, rows_by_name
from utils.errors import UserError

COLOUR = {"shape": [3, 32, 32], "mean": [0.5] * 3, "std": [0.2] * 3}


def check(known, present, before=COLOUR, now=COLOUR):
    loader = SimpleNamespace(classes=present, input=now)
    return check_agreement("run/model_best.pth", {"classes": known, "input": before}, loader)


@pytest.mark.parametrize(
    ("known", "present", "message"),
    [
        (["NG", "OK"], ["OK", "scratch"], "NG missing, scratch new"),
        (["NG", "OK"], ["OK", "NG"], "the order differs"),
        (["NG", "OK"], ["AA", "NG", "OK"], "AA new"),
        (["NG", "OK"], ["NG"], "OK missing"),
        (["NG", "OK"], ["ng", "OK"], "NG missing, ng new"),
        (["0", "1"], ["0 - zero", "1 - one"], "0, 1 missing, 0 - zero, 1 - one new"),
    ],
)
def test_other_classes_are_refused_with_the_difference(known, present, message):
    with pytest.raises(UserError) as caught:
        check(known, present)
    assert message in str(caught.value)
    assert "run/model_best.pth" in str(caught.value)


def test_the_same_classes_agree_in_any_unicode_form():
    assert check(["Grün", "NG"], ["Grün", "NG"]) == []
    assert check([unicodedata.normalize("NFD", "Grün"), "NG"], ["Grün", "NG"]) == []
    assert check(None, None) == []


def test_what_cannot_be_compared_is_said():
    assert check(None, ["NG", "OK"]) == [
        "run/model_best.pth does not name its classes; they are taken to be NG, OK"
    ]
    assert check(["NG", "OK"], None) == [
        "the data does not name its classes; they are taken to be NG, OK"
    ]
    assert check(["a"], ["a"], before=None) == []


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"shape": [3, 64, 64]}, "a sample is 3x64x64, run/model_best.pth was trained on 3x32x32"),
        ({"mean": [0.4] * 3}, "the data's mean is [0.4, 0.4, 0.4]"),
        ({"std": [0.3] * 3}, "the data's std is"),
        ({"mean": [0.5]}, "the data's mean is [0.5]"),
        ({"mean": None}, None),
        ({"mean": [0.500001] * 3}, None),
    ],
)
def test_another_input_is_said(changed, message):
    notes = check(["a"], ["a"], now=COLOUR | changed)
    assert [note.startswith(message) for note in notes] == ([True] if message else [])


@pytest.mark.parametrize("shape", [[1, 32, 32], [32, 32], [96]])
def test_input_with_other_axes_is_refused(shape):
    with pytest.raises(UserError, match="was trained on 3x32x32"):
        check(["a"], ["a"], now=COLOUR | {"shape": shape})


def test_rows_follow_the_names():
    assert rows_by_name(["a", "b", "c"], ["c", "a", "b"]) == [2, 0, 1]
    for known, present in ((["a", "b"], ["a", "b"]), (["a"], ["b"]), (None, ["a"]), (["a"], None)):
        assert rows_by_name(known, present) is None
