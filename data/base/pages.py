"""All HTML pages: a template beside its code, laid over `page.html`, into one file that needs no
other. What is put in is escaped, but pictures of ours (`Markup`).
"""

from pathlib import Path
from typing import Any

from jinja2 import ChoiceLoader, Environment, FileSystemLoader, StrictUndefined

from data.base import tables


def render(template: Path, content: dict[str, Any]) -> str:
    """The page of a template file, which extends `page.html` and fills its blocks.

    A name that the content lacks is an error of ours: jinja2's UndefinedError.
    """
    folders = [FileSystemLoader(template.parent), FileSystemLoader(Path(__file__).parent)]
    environment = Environment(
        loader=ChoiceLoader(folders),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": tables.percent,
        "mb": tables.mb,
        "millions": tables.millions,
        "count": lambda number: f"{number:,.0f}",
    }
    return environment.get_template(template.name).render(content)
