"""HTML pages that need nothing else: no network, no other file."""

import functools
from pathlib import Path
from typing import TYPE_CHECKING

from utils.files import write_text

if TYPE_CHECKING:
    from jinja2 import Environment


def write_html(path: Path, template: Path, language: str = "en", **values: object) -> None:
    """Fill in `template`, which may extend or include this folder's page.html or its neighbours.

    The values are inserted as text, never as HTML. `language` is the page's ("ja").
    """
    page = _environment(template.parent).get_template(template.name)
    write_text(path, page.render(language=language, **values))


@functools.cache  # a template is compiled once
def _environment(folder: Path) -> "Environment":
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    loader = FileSystemLoader([folder, Path(__file__).parent])
    return Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
