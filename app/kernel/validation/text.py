"""Texts of people: whether there is anything to see, and how they stand beside other words without moving them."""

import re
import unicodedata
from dataclasses import dataclass
from typing import Any

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

# Letters, numbers, punctuation and symbols. Marks (M) need a base, and of separators, controls, formats and private
# characters nothing is seen. Unassigned ones (Cn) are taken for letters: a newer Unicode may know them.
_VISIBLE = ("L", "N", "P", "S", "Cn")
# What is blank all the same: fillers of Hangul, the empty Braille pattern, a note without a head, an object's mark.
_BLANK = frozenset("\u115f\u1160\u2800\u3164\uffa0\ufffc\U0001d159")
# Unassigned, and to be ignored by renderers even so (Default_Ignorable_Code_Point), or no characters at all.
_IGNORED = re.compile(
    "[\u2065\ufdd0-\ufdef\ufff0-\ufff8\ufffe\uffff\U000e0000-\U000e0fff"
    + "".join(f"{chr(plane << 16 | 0xFFFE)}{chr(plane << 16 | 0xFFFF)}" for plane in range(1, 17))
    + "]"
)
_CONTROL = r"\u0000-\u001f\u007f-\u009f"
# They give text that follows another direction than its own (UAX #9, sections 2.1 to 2.5).
_DIRECTION = r"\u202a-\u202e\u2066-\u2069"
_NOT_ON_LINE = rf"{_CONTROL}\u2028\u2029{_DIRECTION}"
_MOVES_NEIGHBOURS = re.compile(f"[{_NOT_ON_LINE}]")
_DIRECTIONS = re.compile(f"[{_DIRECTION}]")
_CONTROLS = re.compile(f"[{_CONTROL}]")
_TAB = " " * 4


def has_visible(text: str) -> bool:
    """Whether any character of `text` can be seen by itself."""
    return any(
        unicodedata.category(character).startswith(_VISIBLE)
        and character not in _BLANK
        and not _IGNORED.match(character)
        for character in text
    )


@dataclass(frozen=True, slots=True)
class VisibleText:
    """`Annotated[str, VisibleText(500)]`: any number of lines with something to see in them; else 422 `blank_text`."""

    max_length: int

    def check(self, value: str) -> str:
        if not has_visible(value):
            raise PydanticCustomError("blank_text", "At least one visible character is required.")
        return value

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        text = core_schema.str_schema(min_length=1, max_length=self.max_length)
        return core_schema.no_info_after_validator_function(self.check, text)

    @property
    def pattern(self) -> str:
        """What JSON Schema can say: that marks and fillers alone are refused as well, no pattern can."""
        return f"[^\\s{_CONTROL}]"

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return handler(schema) | {"pattern": self.pattern}


@dataclass(frozen=True, slots=True)
class VisibleLine(VisibleText):
    """A name, a number, a title: the same on one line, with nothing that moves its neighbours (`control_character`)."""

    @property
    def pattern(self) -> str:
        other = f"[^{_NOT_ON_LINE}]*"
        return f"^{other}[^\\s{_NOT_ON_LINE}]{other}$"

    def check(self, value: str) -> str:
        VisibleText.check(self, value)
        if _MOVES_NEIGHBOURS.search(value):
            raise PydanticCustomError(
                "control_character", "Control characters, line breaks and bidirectional controls are not allowed."
            )
        return value


def code_point(character: str) -> str:
    """`U+0041`."""
    return f"U+{ord(character):04X}"


def printable(text: str) -> str:
    """The lines of `text`, whatever separates them, each to be printed by itself: tabs as spaces, other control
    characters by their number in brackets, and nothing that changes the direction of what follows.
    """
    return "\n".join(
        _CONTROLS.sub(lambda found: f"[{code_point(found[0])}]", _DIRECTIONS.sub("", line.replace("\t", _TAB)))
        for line in text.splitlines()
    )


def within_lines(text: str, most: int) -> str:
    """`text` on at most so many lines: those beyond go on in the last one, behind a space, and empty ones are left out.

    What is laid out costs by its lines: one with a single letter takes as much paper, time and memory as a full one.
    """
    lines = text.splitlines()
    if len(lines) <= most:
        return text
    filled = [line for line in lines if line.strip()]
    last = " ".join(filled[most - 1 :])
    return "\n".join([*filled[: most - 1], *([last] if last else [])])


def isolated(text: str) -> str:
    """`text` on one line for the middle of a sentence, whose direction it does not change."""
    line = " ".join(printable(text).split("\n"))
    # First strong isolate, pop directional isolate: renderers lay out what is between them by itself.
    return line if line.isascii() else f"\u2068{line}\u2069"
