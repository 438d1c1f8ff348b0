"""Documents: every script in its place, nothing outside of its cell, and a word about what cannot be printed."""

import io
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from pypdf import PdfReader

from app.jobs.service import documents
from app.jobs.service.documents import SCRIPTS, Document, find_missing_scripts, typeset, use_fonts

MADE = datetime(2026, 3, 4, tzinfo=UTC)
# A page is 210 mm wide and has margins of 22 mm.
LEFT, RIGHT = (millimetres * 72 / 25.4 for millimetres in (22, 188))
PROMISED = SCRIPTS.keys() - {"Gujarati", "Gurmukhi", "Kannada", "Malayalam", "Sinhala", "Tibetan"}


def invoice(**changes: Any) -> Document:
    data = {
        "number": "N-1",
        "order_id": "O-1",
        "issued": [2026, 3, 4],
        "seller": {"name": "Analytical Ltd", "address": "1 Street\nLondon", "tax_id": "GB 123"},
        "customer": {"name": "Ada", "email": "ada@example.com", "address": "12 Square\nLondon"},
        "currency": "EUR",
        "lines": [line("Engine")],
        "tax_rate": "19",
        "subtotal": "33.35",
        "tax": "6.34",
        "total": "39.69",
        "notes": None,
    }
    return typeset("invoice", data | changes, MADE)


def line(description: str) -> dict[str, str]:
    return {"description": description, "quantity": "3", "unit_price": "33.35", "amount": "100.05"}


def report(*kinds: str) -> Document:
    data = {
        "made": [2026, 3, 4],
        "since": "2026-03-03",
        "until": "2026-03-04",
        "total": 3,
        "days": [{"day": "2026-03-03", "count": 3}, {"day": "2026-03-04", "count": 0}],
        "kinds": [{"kind": kind, "count": 3} for kind in kinds],
    }
    return typeset("activity", data, MADE)


def text_of(document: Document) -> str:
    return "\n".join(page.extract_text() for page in PdfReader(io.BytesIO(document.pdf)).pages)


@pytest.fixture
def own_fonts() -> Iterator[None]:
    """The fonts that are installed with us, and no others."""
    use_fonts(())
    yield
    use_fonts(None)


@pytest.mark.parametrize("script", sorted(PROMISED))
def test_each_script_is_printed_and_can_be_copied(own_fonts: None, script: str) -> None:
    sample = SCRIPTS[script]
    document = invoice(customer={"name": sample, "email": "a@example.com", "address": sample}, notes=sample)
    assert document.missing == frozenset()
    letters = set("".join(sample.split()))
    assert letters - set(text_of(document)) == set()


@pytest.mark.parametrize(
    "sample",
    [
        "\uff26\uff35\uff2c\uff2c \uff57\uff49\uff44\uff54\uff48",
        "臺灣 骨直遍",
        "𠮷野家",
        "½ ₹ ₩ ฿ ₿ €",
        "⑴ Ⅳ ㈱",
        "👩\u200d👩\u200d👧 🇩🇪",
    ],
)
def test_other_signs_are_printed(own_fonts: None, sample: str) -> None:
    assert invoice(notes=sample).missing == frozenset()


def test_documents_are_for_archives_and_screen_readers(own_fonts: None) -> None:
    for document in (invoice(notes="山田太郎"), invoice(notes="ᚠ\ue000\ufffe\x07"), report("page.viewed")):
        reader = PdfReader(io.BytesIO(document.pdf))
        root: Any = reader.trailer["/Root"]
        assert root["/ViewerPreferences"]["/DisplayDocTitle"]
        assert (root["/Lang"], root["/MarkInfo"]["/Marked"], bool(root["/OutputIntents"])) == ("en", True, True)
        metadata = root["/Metadata"].get_data().decode()
        assert re.search(r"pdfaid:part>3<.*pdfaid:conformance>B<.*pdfuaid:part>1<", metadata, re.DOTALL)
        assert reader.metadata is not None
        assert reader.metadata.title in {"Invoice N-1", "Activity 2026-03-03 \u2013 2026-03-04"}


def test_what_no_font_has_is_named(own_fonts: None) -> None:
    document = invoice(number="N ᚠ", notes='runes: ᚠᚢ "\\ and ગુ', lines=[line("ᚢ")])
    assert document.missing == {"ᚠ", "ᚢ", "ગ", "ુ"}
    assert document.remarks == {"missing_characters": ["U+0A97", "U+0AC1", "U+16A0", "U+16A2"]}
    text = text_of(document)
    assert 'runes: [U+16A0][U+16A2] "\\ and [U+0A97][U+0AC1]' in text
    assert "N [U+16A0]" in text
    assert invoice().remarks == {}
    assert find_missing_scripts() == ["Gujarati", "Gurmukhi", "Kannada", "Malayalam", "Sinhala", "Tibetan"]


def test_fonts_of_the_operator_are_used_for_what_ours_lack(monkeypatch: pytest.MonkeyPatch) -> None:
    emoji = Path(documents.__file__).parents[1] / "fonts"
    monkeypatch.setattr(documents, "_FOLDER", emoji / "nowhere")
    monkeypatch.setattr(documents, "FONT_PACKAGES", ())
    documents._fonts.cache_clear()
    try:
        use_fonts(())
        assert invoice(notes="🦄").missing == {"🦄"}
        use_fonts((emoji,))
        assert invoice(notes="🦄").missing == frozenset()
    finally:
        documents._fonts.cache_clear()
        use_fonts(None)


LONG = ["W" * 60, "_" * 60, "王" * 60, "ก" * 60, "🦄" * 30, "https://example.com/" + "a/" * 20, "a\u0301" * 30]


@pytest.mark.parametrize("word", LONG, ids=lambda word: ascii(word[0]))
def test_a_long_word_stays_in_its_cell(own_fonts: None, word: str) -> None:
    seller = {"name": word, "address": word * 3, "tax_id": word}
    customer = {"name": word, "email": f"{'m' * 64}@example.com", "address": f"{word}\n{word * 4}"}
    document = invoice(
        number=word,
        order_id=word,
        notes=word * 8,
        seller=seller,
        customer=customer,
        lines=[line(word * 8), line(f"two {word}")],
    )
    assert_within_margins(document)
    copied = "".join(text_of(document).split())
    assert copied.count("100.05") == 2
    # Nothing is lost, and nothing is added that would be copied with it.
    assert word[:12] in copied
    assert not re.search("[\u200b\u00ad\u2060]", copied)


def test_long_kinds_of_a_report_stay_in_their_column(own_fonts: None) -> None:
    kinds = ["w" * 64, "m_" * 32, "k" * 64]
    document = report(*kinds)
    assert_within_margins(document)
    copied = "".join(text_of(document).split())
    assert all(kind in copied for kind in kinds)


def assert_within_margins(document: Document) -> None:
    """By the width of each text on the page, as a reader of the file draws it."""
    runs = [run for page in PdfReader(io.BytesIO(document.pdf)).pages for run in runs_of(page)]
    assert [run for run in runs if run[0] < LEFT - 1 or run[1] > RIGHT + 1] == []
    # The widest row is as wide as its cell, so widths are really looked at.
    assert max(right for _, right, _ in runs) > RIGHT - 50


def runs_of(page: Any) -> list[tuple[float, float, str]]:
    """Left and right end of each run of glyphs, in points. Typst moves and mirrors, but turns nothing."""
    fonts = {name: font.get_object() for name, font in page["/Resources"]["/Font"].items()}
    found = []
    font, size, left, start = "", 0.0, 0.0, 0.0
    saved: list[float] = []
    for operands, operator in page.get_contents().operations:
        if operator == b"q":
            saved.append(left)
        elif operator == b"Q":
            left = saved.pop()
        elif operator == b"cm":
            left += float(operands[4])
        elif operator == b"Tf":
            font, size = operands[0], float(operands[1])
        elif operator == b"Tm":
            start = left + float(operands[4])
        elif operator in {b"TJ", b"Tj"}:
            parts = operands[0] if operator == b"TJ" else operands
            width = sum(
                width_of(fonts[font], part) if isinstance(part, (str, bytes)) else -float(part) for part in parts
            )
            found.append((start, start + width * size / 1000, str(parts)))
    return found


def width_of(font: Any, glyphs: Any) -> float:
    """The sum of the widths of a Type 0 font's glyphs, in thousandths."""
    raw = glyphs if isinstance(glyphs, bytes) else glyphs.original_bytes
    descendant = font["/DescendantFonts"][0].get_object()
    widths: dict[int, float] = {}
    entries = list(descendant["/W"])
    while entries:
        first, second = int(entries.pop(0)), entries.pop(0)
        if isinstance(second, list):
            widths |= {first + number: float(width) for number, width in enumerate(second)}
        else:
            width = float(entries.pop(0))
            widths |= dict.fromkeys(range(first, int(second) + 1), width)
    default = float(descendant.get("/DW", 1000))
    return sum(widths.get(int.from_bytes(raw[at : at + 2]), default) for at in range(0, len(raw), 2))


def test_lines_tabs_and_directions_are_data(own_fonts: None) -> None:
    document = invoice(
        customer={"name": "\u202eevil", "email": "a@example.com", "address": "one\u2028two\r\nthree\tfour\u2029five"},
        lines=[line("first\u202e reversed"), line("second")],
        notes="bell \x07\n\nlast",
    )
    text = text_of(document)
    for expected in ("\none\ntwo\nthree    four\nfive\n", "evil", "first reversed", "second", "bell [U+0007]", "last"):
        assert expected in text, (expected, text)
    assert document.missing == frozenset()


def test_an_invoice_names_its_seller(own_fonts: None) -> None:
    text = text_of(invoice())
    assert "Analytical Ltd\n1 Street\nLondon\nGB 123" in text
    # Those of before the seller was kept.
    assert "Bill to" in text_of(invoice(seller=None))
