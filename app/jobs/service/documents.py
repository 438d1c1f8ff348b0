"""PDF from a template and data. The same input gives the same bytes."""

from collections.abc import Mapping
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

import orjson
import typst

_FOLDER = Path(__file__).parents[1]
_TEMPLATES = _FOLDER / "templates"


def render_pdf(template: str, data: Mapping[str, Any], made_at: datetime) -> bytes:
    """PDF/A-3b, if our fonts have all characters of the data. Keeps a core busy for some milliseconds, so it belongs
    into a thread.
    """
    try:
        return _compile(template, data, made_at, "a-3b")
    except typst.TypstError as error:
        if "could not be displayed" not in str(error):
            raise
    # PDF/A wants a glyph for each character. A box in the place of one is better than no document.
    return _compile(template, data, made_at, [])


def _compile(template: str, data: Mapping[str, Any], made_at: datetime, standards: Any) -> bytes:
    return typst.compile(
        str(_TEMPLATES / f"{template}.typ"),
        root=str(_TEMPLATES),
        font_paths=_fonts(),
        ignore_system_fonts=True,
        sys_inputs={"data": orjson.dumps(data).decode()},
        format="pdf",
        pdf_standards=standards,
        timestamp=int(made_at.timestamp()),
    )


@cache
def _fonts() -> typst.Fonts:
    """Read once, because that costs more than making a page."""
    return typst.Fonts(include_system_fonts=False, font_paths=[str(_FOLDER / "fonts")])
