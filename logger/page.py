"""HTML pages that need nothing else: no network, no other file."""

from pathlib import Path

from utils.files import write_text


def write_html(path: Path, template: Path, language: str = "en", **values: object) -> None:
    """Fill in `template`, which may extend or include this folder's page.html or its neighbours.

    The values are inserted as text, never as HTML. `language` is the page's ("ja").
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    loader = FileSystemLoader([template.parent, Path(__file__).parent])
    jinja = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    text = jinja.get_template(template.name).render(language=language, **values)
    write_text(path, text)
