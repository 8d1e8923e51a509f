"""Markdown pages for a project that lacks a part of what they describe."""

import re
import textwrap

WIDTH = 140  # of the pages' lines
# code with its fences; or else lines up to an empty one: a heading, paragraph, table or list
BLOCK = re.compile(r"^```(?s:.*?)^```$|(?:^(?!```).*\S.*\n?)+", re.MULTILINE)
ITEM = re.compile(r"(?:\A|\n)(?=(?:[-*]|\d+\.) )")
SENTENCE = re.compile(r"(?<=[.!?:;]) +(?=[A-Z`\[*(])")


def without(text: str, gone: re.Pattern) -> str:
    """A page without what names something that is `gone`.

    A heading goes with its section; of a table or list the rows go, of code the lines, of a
    paragraph the sentences.
    """
    kept: list[str] = []
    dropped_level = 0  # of the heading whose section goes
    for block in BLOCK.findall(text):
        heading = re.match(r"(#+) ", block)
        if heading and (not dropped_level or len(heading[1]) <= dropped_level):
            dropped_level = len(heading[1]) if gone.search(block) else 0
        if not dropped_level and (rest := _rest(block.rstrip("\n"), gone)):
            kept.append(rest)
    return "\n\n".join(kept) + "\n"


def _rest(block: str, gone: re.Pattern) -> str:
    """What stays of a block; empty if that is nothing of use."""
    if not gone.search(block):
        return block
    lines, items = block.splitlines(), ITEM.split(block)
    if block.startswith(("```bash", "```text")):
        inner = [line for line in lines[1:-1] if not gone.search(line)]
        return "\n".join([lines[0], *inner, lines[-1]]) if any(inner) else ""
    if block.startswith("```"):
        return ""
    if block.startswith("|"):
        rows = [line for line in lines[2:] if not gone.search(line)]
        return "\n".join([*lines[:2], *rows]) if rows and not gone.search(lines[0]) else ""
    if len(items) > 1:
        return "\n".join(item for item in items if item and not gone.search(item))
    sentences = SENTENCE.split(" ".join(line.strip() for line in lines))
    rest = " ".join(sentence for sentence in sentences if not gone.search(sentence))
    return "\n".join(textwrap.wrap(rest, WIDTH, break_long_words=False, break_on_hyphens=False))
