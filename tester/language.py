"""The language of the report."""

import json
import locale
import os
from collections.abc import Callable
from pathlib import Path
from typing import Literal

Language = Literal["en", "ja"]
Translate = Callable[..., str]


def system_language() -> Language:
    """That of the user's locale, as far as the report has it."""
    name = next(filter(None, map(os.environ.get, ("LC_ALL", "LC_MESSAGES", "LANG"))), None)
    return "ja" if (name or locale.getlocale()[0] or "").lower().startswith("ja") else "en"


def translator(language: Language) -> Translate:
    """A function that gives an English text in another language, with values in its braces.

    report.ja.json holds the Japanese texts. One that is missing there stays English.
    """
    texts = {}
    if language != "en":
        file = Path(__file__).with_name(f"report.{language}.json")
        texts = json.loads(file.read_text(encoding="utf-8"))

    def translate(text: str, **values: object) -> str:
        return texts.get(text, text).format(**values)

    return translate


ENGLISH = translator("en")
