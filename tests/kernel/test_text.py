"""What counts as a text of a person, wherever one is asked for, and how it stands beside other words."""

import pytest
from pydantic import BaseModel, ValidationError

from app.identity.schemas.accounts import RegisterRequest
from app.identity.schemas.admin import BanRequest
from app.identity.schemas.api_keys import ApiKeyRequest
from app.identity.schemas.sessions import LoginRequest
from app.jobs.schemas.invoices import Customer, InvoiceLine, IssueInvoiceRequest
from app.jobs.schemas.webhooks import CreateEndpointRequest, PatchEndpointRequest
from app.kernel.validation.text import has_visible, isolated, printable, within_lines
from app.users.schemas import PatchUserRequest

BLANK = [
    *(" ", "\t", "\u00a0", "\u3000", "\u2003"),
    *("\u200b", "\u200d", "\u2060", "\u2063", "\ufeff", "\u00ad", "\u180e", "\u200e", "\u061c"),
    *("\u2800", "\u3164", "\u115f", "\u1160", "\uffa0", "\u034f", "\u17b4", "\ufffc"),
    *("\u0301", "\u0e31", "\ufe0f", "\u20dd", "\u0301\u0302"),
    *("\U000e0041", "\U000e0100", "\U000e0fff", "\U0001d173", "\U0001d159", "\ufff0", "\ufdd0", "\U0001ffff", "\ue000"),
    " \u200b\u3164\u0301 ",
]
NOT_ON_A_LINE = ["a\nb", "a\tb", "a\rb", "a\x00b", "a\x7fb", "a\x85b", "a\u2028b", "a\u2029b", "a\u202eb", "a\u2066b"]


@pytest.mark.parametrize("text", BLANK, ids=ascii)
def test_nothing_to_see(text: str) -> None:
    assert not has_visible(text)
    assert has_visible(f"{text}x")


@pytest.mark.parametrize("text", ["x", ".", "王", "ß", "ሰ", "🦄", "👩\u200d👩\u200d👧", "e\u0301", "\u00bf", "\u0378"])
def test_something_to_see(text: str) -> None:
    assert has_visible(text)


FIELDS: list[tuple[type[BaseModel], str]] = [
    (RegisterRequest, "display_name"),
    (PatchUserRequest, "display_name"),
    (LoginRequest, "device_name"),
    (ApiKeyRequest, "name"),
    (BanRequest, "reason"),
    (CreateEndpointRequest, "description"),
    (PatchEndpointRequest, "description"),
    (Customer, "name"),
    (Customer, "address"),
    (InvoiceLine, "description"),
    (IssueInvoiceRequest, "number"),
    (IssueInvoiceRequest, "order_id"),
]
LINES = {"display_name", "device_name", "name", "number", "order_id"}


@pytest.mark.parametrize(("model", "field"), FIELDS, ids=lambda value: getattr(value, "__name__", value))
def test_every_text_of_a_person_has_something_to_see(model: type[BaseModel], field: str) -> None:
    assert {code_of(model, field, text) for text in BLANK} == {"blank_text"}
    assert code_of(model, field, "") == "string_too_short"
    assert code_of(model, field, "x" * 5000) == "string_too_long"
    assert code_of(model, field, "山田 \u200b e\u0301 🦄") is None
    codes = {code_of(model, field, text) for text in NOT_ON_A_LINE}
    assert codes == ({"control_character"} if field in LINES else {None})


def code_of(model: type[BaseModel], field: str, value: str) -> str | None:
    """Why `value` is refused; what else the model lacks does not matter."""
    try:
        model.model_validate({field: value})
    except ValidationError as error:
        return next((item["type"] for item in error.errors() if item["loc"] == (field,)), None)
    return None


@pytest.mark.parametrize(
    ("text", "printed"),
    [
        ("a\tb", "a    b"),
        ("a\r\nb\nc\x0bd\x0ce\x85f\u2028g\u2029h", "a\nb\nc\nd\ne\nf\ng\nh"),
        ("bell \a", "bell [U+0007]"),
        ("\x7f\x9f", "[U+007F][U+009F]"),
        ("a\u202eb\u202cc\u2066d\u2069", "abcd"),
        ("\u05d0\u05d1\u200f!", "\u05d0\u05d1\u200f!"),
        ("", ""),
    ],
)
def test_lines_are_printed_by_themselves(text: str, printed: str) -> None:
    assert printable(text) == printed


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Ada", "Ada"),
        ("\u05d0\u05d1", "\u2068\u05d0\u05d1\u2069"),
        ("a\u202eb\nc", "ab c"),
        ("é\u2069\u202e", "\u2068é\u2069"),
    ],
)
def test_a_name_in_a_sentence_does_not_move_the_rest(text: str, shown: str) -> None:
    assert isolated(text) == shown


def test_a_name_is_kept_as_it_was_given() -> None:
    assert PatchUserRequest.model_validate({"display_name": " Ada "}).model_dump(exclude_unset=True) == {
        "display_name": " Ada "
    }


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("", ""),
        ("a\nb\nc", "a\nb\nc"),
        ("a\n\nb", "a\n\nb"),
        ("a\nb\nc\nd", "a\nb\nc d"),
        ("\n\na\n \nb\r\nc\u2028d\n", "a\nb\nc d"),
        ("a" + "\n" * 9, "a"),
    ],
)
def test_what_is_beyond_the_last_line_goes_on_in_it(text: str, shown: str) -> None:
    assert within_lines(text, 3) == shown
