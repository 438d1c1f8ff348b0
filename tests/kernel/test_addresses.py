"""E-mail addresses: what is one, which are the same, and how they are sent."""

import pytest

from app.kernel.validation.addresses import canonical_email, canonical_email_part, mailbox_of, parse_email, parse_sender


@pytest.mark.parametrize(
    ("text", "stored", "wire"),
    [
        ("Ada@EXAMPLE.com", "Ada@example.com", "Ada@example.com"),
        ("k@xn--mller-kva.de", "k@müller.de", "k@xn--mller-kva.de"),
        ("k@MÜLLER.de", "k@müller.de", "k@xn--mller-kva.de"),
        ("k@mu\u0308ller.de", "k@müller.de", "k@xn--mller-kva.de"),
        ("a@example\u3002com", "a@example.com", "a@example.com"),
        ("b@\uff45xample.com", "b@example.com", "b@example.com"),
        ("zoe\u0308@example.com", "zoë@example.com", "zoë@example.com"),
        ("ada@faß.de", "ada@faß.de", "ada@xn--fa-hia.de"),
        ("o'hara+tag=1@example.com", "o'hara+tag=1@example.com", "o'hara+tag=1@example.com"),
    ],
)
def test_the_forms_of_an_address(text: str, stored: str, wire: str) -> None:
    address = parse_email(text)
    assert (address.text, address.wire, address.needs_smtputf8) == (stored, wire, not wire.isascii())
    assert parse_email(stored) == address
    assert parse_email(wire) == address
    assert canonical_email(text) == canonical_email(stored) == canonical_email(wire) == canonical_email(f" {text} ")


def test_what_is_no_address_is_compared_all_the_same() -> None:
    assert canonical_email(" Not An Address ") == "not an address"
    assert canonical_email("a@xn--a.de") == "a@xn--a.de"
    assert canonical_email("ü" * 5000) == "ü" * 5000
    # To put marks in their order would take a time that grows with the square of their number.
    assert canonical_email("a" + "\u0315\u0300" * 2000) == "a" + "\u0315\u0300" * 2000
    assert canonical_email("a\u0315\u0300") == "à\u0315"


@pytest.mark.parametrize("part", ["k@xn--mller-kva.de", "@XN--mller-kva", "xn--mller-kva.de", "K@Müller。de", "MÜLL"])
def test_a_part_is_found_in_an_address(part: str) -> None:
    assert canonical_email_part(part) in canonical_email("k@müller.de")


def test_a_tag_is_no_other_mailbox() -> None:
    assert mailbox_of("ada+a+b@example.com") == mailbox_of("ada@example.com") == "ada@example.com"
    assert mailbox_of("+ada@example.com") == "+ada@example.com"


@pytest.mark.parametrize(
    ("text", "name", "wire"),
    [
        ("a@example.com", "", "a@example.com"),
        ("Onehop <a@example.com>", "Onehop", "a@example.com"),
        ('"Onehop, Inc." <a@müller.de>', "Onehop, Inc.", "a@xn--mller-kva.de"),
        ("robot@mailhost", "", "robot@mailhost"),
    ],
)
def test_a_sender(text: str, name: str, wire: str) -> None:
    sender = parse_sender(text)
    assert (sender.name, sender.address.wire, sender.domain) == (name, wire, wire.rpartition("@")[2])
