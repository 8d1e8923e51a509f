"""The report in Japanese: every text has its translation, with the same values in it."""

import json
import re
import string

import pytest

import test as script
from tester import appearance, language
from tests.conftest import ROOT
from utils import checkpoint

TEXTS = json.loads((ROOT / "tester" / "report.ja.json").read_text(encoding="utf-8"))
CALL = re.compile(r'\bt\(\s*"((?:[^"\\]|\\.)*)"')


def used():
    files = [*(ROOT / "tester").glob("*.html"), *(ROOT / "tester").glob("*.py")]
    found = {text for file in files for text in CALL.findall(file.read_text(encoding="utf-8"))}
    return {text.replace('\\"', '"') for text in found} | {
        word for words in appearance.WORDS.items() for word in (words[0], *words[1])
    }


def fields(text):
    return sorted(name for _, name, _, _ in string.Formatter().parse(text) if name)


def test_every_text_is_translated_and_no_other():
    assert used() == set(TEXTS)
    for english, japanese in TEXTS.items():
        assert set(fields(japanese)) <= set(fields(english)), english
        assert re.search(r"[\u3040-\u30ff\u4e00-\u9fff]", japanese), english


def test_no_english_text_stands_outside_of_t():
    for file in (ROOT / "tester").glob("*.html"):
        text = re.sub(r"<style>.*?</style>|{% block style %}.*?{% endblock %}", "",
                      file.read_text(encoding="utf-8"), flags=re.DOTALL)  # fmt: skip
        text = re.sub(r"{{.*?}}|{%.*?%}|<[^>]*>", " ", text, flags=re.DOTALL)
        assert re.findall(r"[A-Za-z]{3,}", text) == [], file.name


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"LANG": "ja_JP.UTF-8"}, "ja"),
        ({"LANG": "ja_JP", "LC_ALL": "C"}, "en"),
        ({"LANG": "de"}, "en"),
    ],
)
def test_language_is_that_of_the_locale(monkeypatch, variables, expected):
    for name in ("LC_ALL", "LC_MESSAGES", "LANG"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert language.system_language() == expected


@pytest.mark.charts
def test_page_in_japanese_with_names_of_classes(digits, train, tmp_path):
    sections = {
        "inspection": {"target": "8", "max_overkill": 0.01},
        "shown_names": {"8": "八"},
    }
    run = train(digits({"trainer.epochs": 2, **sections}))
    assert script.main(["-r", str(run), "--lang", "ja"]) == 0
    page = (run / "test" / "report.html").read_text(encoding="utf-8")
    assert '<html lang="ja">' in page
    for text in ("検査：八", "八 の見逃し", "混同行列", "学習の経過", "要確認"):
        assert text in page
    assert (run / "test" / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert script.main(["-r", str(run), "--lang", "en"]) == 0
    page = (run / "test" / "report.html").read_text(encoding="utf-8")
    assert "Inspection: 八" in page
    table = (run / "test" / "predictions.csv").read_text(encoding="utf-8-sig")
    assert "p(8)" in table  # names in files that others read stay
    assert checkpoint.load(run / checkpoint.BEST)["classes"][8] == "8"
