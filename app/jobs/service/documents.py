"""PDF from a template and data. Where the same fonts are, the same input gives the same bytes."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import orjson
import typst

from app.kernel.observability.telemetry import get_logger
from app.kernel.validation.text import code_point, printable

_FOLDER = Path(__file__).parents[1]
_TEMPLATES = _FOLDER / "templates"
# Packages of the dependency group `fonts`: located without being imported, because they are wanted as folders alone.
FONT_PACKAGES = (
    "justmytype_intl_africa",
    "justmytype_intl_rtl",
    "justmytype_intl_sea",
    "justmytype_intl_south_asia",
    "rinoh_typeface_notosanscjk",
)
# Where Debian and its kin keep fonts.
_SYSTEM_FONTS = (Path("/usr/share/fonts"), Path("/usr/local/share/fonts"))
# A document that archives keep and screen readers read (ISO 19005-3, ISO 14289-1).
_STANDARDS: Any = ["a-3b", "ua-1"]
# In a diagnosis of Typst, where the text is a string literal of Rust.
_WITHOUT_GLYPH = re.compile(r'the text `"((?:[^"\\]|\\.)*)"` could not be displayed')
_RUST_ESCAPE = re.compile(r"\\(?:u\{([0-9a-f]+)\}|(.))")
# One finds all that have no glyph; another one is for a font that is chosen anew when some of them are gone.
_MAX_PASSES = 4
_MOST_NAMED = 100
# Some letters of each script that documents are wanted in, as `doctor` tries them.
SCRIPTS: Mapping[str, str] = {
    "Arabic": "مرحبا",
    "Armenian": "Բարեւ",
    "Bengali": "নমস্কার",
    "Chinese": "您好",
    "Cyrillic": "Привет",
    "Devanagari": "नमस्ते",
    "Ethiopic": "ሰላም",
    "Georgian": "გამარჯობა",
    "Greek": "Γειά",
    "Gujarati": "નમસ્તે",
    "Gurmukhi": "ਸਤਿ",
    "Hebrew": "שלום",
    "Japanese": "こんにちは",
    "Kannada": "ನಮಸ್ಕಾರ",
    "Khmer": "សួស្តី",
    "Korean": "안녕하세요",
    "Lao": "ສະບາຍດີ",
    "Latin": "Żółć Ωß",
    "Malayalam": "നമസ്കാരം",
    "Myanmar": "မင်္ဂလာပါ",
    "Sinhala": "ආයුබෝවන්",
    "Tamil": "வணக்கம்",
    "Telugu": "నమస్కారం",
    "Thai": "สวัสดี",
    "Tibetan": "བཀྲ་ཤིས",
}

_logger = get_logger(__name__)
_font_folders: tuple[Path, ...] = _SYSTEM_FONTS


@dataclass(frozen=True, slots=True)
class Document:
    """A PDF. `missing` are the characters that no font has, which stand in it by their numbers, as `[U+1681]`."""

    pdf: bytes
    missing: frozenset[str]

    @property
    def remarks(self) -> dict[str, list[str]]:
        """What the job that made it says of it."""
        return {"missing_characters": _code_points(self.missing)} if self.missing else {}


def use_fonts(folders: tuple[Path, ...] | None) -> None:
    """The fonts of this process beside our own, for what those lack: of `folders`, or of the system."""
    global _font_folders  # noqa: PLW0603 - as logging is, fonts are of the whole process, and read once
    _font_folders = _SYSTEM_FONTS if folders is None else folders


def typeset(template: str, data: Mapping[str, Any], made_at: datetime) -> Document:
    """PDF/A-3b and PDF/UA-1. Keeps a core busy for some milliseconds, so it belongs into a thread."""
    document = _typeset(template, data, made_at)
    if document.missing:
        _logger.warning("jobs.glyphs_missing", template=template, characters=_code_points(document.missing))
    return document


def _typeset(template: str, data: Mapping[str, Any], made_at: datetime) -> Document:
    content = _mapped(data, printable)
    missing: frozenset[str] = frozenset()
    for _ in range(_MAX_PASSES):
        try:
            pdf = _compile(template, content, made_at)
        except typst.TypstError as error:
            found = _without_glyph(error) - missing
            if not found:
                raise
            missing |= found
            content = _mapped(content, partial(_by_numbers, found))
            continue
        return Document(pdf, missing)
    raise RuntimeError(f"{template} always has another character without a glyph")


def _compile(template: str, data: Mapping[str, Any], made_at: datetime) -> bytes:
    pdf: bytes = typst.compile(
        str(_TEMPLATES / f"{template}.typ"),
        root=str(_TEMPLATES),
        font_paths=_fonts(_font_folders),
        ignore_system_fonts=True,
        sys_inputs={"data": orjson.dumps(data).decode()},
        format="pdf",
        pdf_standards=_STANDARDS,
        timestamp=int(made_at.timestamp()),
    )
    return pdf


def find_missing_scripts() -> list[str]:
    """Those of `SCRIPTS` of which some letter has no glyph."""
    now = datetime.fromtimestamp(0)  # noqa: DTZ006 - of a document that is thrown away
    missing = _typeset("scripts", {"samples": list(SCRIPTS.values())}, now).missing
    return [name for name, sample in SCRIPTS.items() if not missing.isdisjoint(sample)]


@cache
def _fonts(folders: tuple[Path, ...]) -> typst.Fonts:
    """Ours, then those of `folders`. Read once, because that costs more than making a page."""
    packages = (find_spec(name) for name in FONT_PACKAGES)
    ours = (Path(spec.origin).parent for spec in packages if spec is not None and spec.origin is not None)
    paths = [str(path) for path in (_FOLDER / "fonts", *ours, *folders) if path.is_dir()]
    return typst.Fonts(include_system_fonts=False, font_paths=paths)


def _mapped(value: Any, change: Callable[[str], str]) -> Any:
    """`value` with each of its texts changed; the names of its fields stay."""
    match value:
        case str():
            return change(value)
        case Mapping():
            return {name: _mapped(item, change) for name, item in value.items()}
        case list():
            return [_mapped(item, change) for item in value]
    return value


def _without_glyph(error: typst.TypstError) -> frozenset[str]:
    texts = (_RUST_ESCAPE.sub(_unescaped, text) for text in _WITHOUT_GLYPH.findall(error.diagnostic))
    return frozenset(character for text in texts for character in text)


def _unescaped(found: re.Match[str]) -> str:
    return chr(int(found[1], 16)) if found[1] else found[2]


def _by_numbers(characters: frozenset[str], text: str) -> str:
    return "".join(f"[{code_point(character)}]" if character in characters else character for character in text)


def _code_points(characters: frozenset[str]) -> list[str]:
    """The first of them: a text can be made of nothing else, and these are shown in each list of jobs, and logged."""
    return [code_point(character) for character in sorted(characters)[:_MOST_NAMED]]
