"""Markdown pages for a project that lacks a part of what they describe."""

import re
import textwrap
from collections.abc import Iterator

WIDTH = 140  # of the pages' lines
SENTENCE = re.compile(r"(?<=[.!?:;]) +(?=[A-Z`\[*(])")


def without(text: str, gone: re.Pattern) -> str:
    """A page without what names something that is `gone`.

    A heading goes with its section; of a table or list the rows go, of code the lines, of a
    paragraph the sentences.
    """
    blocks = [*_blocks(text)]
    kept: list[str] = []
    dropped_level = 0  # of the heading whose section goes
    for block in blocks:
        heading = re.match(r"(#+) ", block)
        if heading:
            level = len(heading[1])
            if dropped_level and level > dropped_level:
                continue
            dropped_level = level if gone.search(block) else 0
        if not dropped_level and (rest := _rest(block, gone)):
            kept.append(rest)
    return re.sub(r"\n{3,}", "\n\n", "\n\n".join(kept)) + "\n"


def _blocks(text: str) -> Iterator[str]:
    """Headings, paragraphs, tables, lists, and code with its fences."""
    for part in re.split(r"(^```.*?^```$)", text, flags=re.MULTILINE | re.DOTALL):
        if part.startswith("```"):
            yield part
        else:
            yield from filter(None, (block.strip("\n") for block in re.split(r"\n\s*\n", part)))


def _rest(block: str, gone: re.Pattern) -> str:
    """What stays of a block; empty if that is nothing of use."""
    if not gone.search(block):
        return block
    lines = block.splitlines()
    if block.startswith("```"):
        if not re.match(r"```(bash|text)", block):
            return ""
        inner = [line for line in lines[1:-1] if not gone.search(line)]
        return "\n".join([lines[0], *inner, lines[-1]]) if any(inner) else ""
    if block.startswith("|"):
        head, rows = lines[:2], [line for line in lines[2:] if not gone.search(line)]
        return "\n".join(head + rows) if rows and not gone.search(lines[0]) else ""
    items = re.split(r"\n(?=(?:[-*]|\d+\.) )", block)
    if len(items) > 1 or re.match(r"(?:[-*]|\d+\.) ", block):
        return "\n".join(item for item in items if not gone.search(item))
    sentences = SENTENCE.split(" ".join(line.strip() for line in lines))
    rest = " ".join(sentence for sentence in sentences if not gone.search(sentence))
    return "\n".join(textwrap.wrap(rest, WIDTH, break_long_words=False, break_on_hyphens=False))
