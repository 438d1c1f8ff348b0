"""What browsers are asked for, and the check of what they answer (WebAuthn level 3), by py_webauthn.

That library takes half a second to import, so that `passkeys` loads this module when it is first needed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from webauthn import (
    generate_authentication_options,
    generate_registration_options,
    verify_authentication_response,
    verify_registration_response,
)
from webauthn.helpers import (
    base64url_to_bytes,
    decode_credential_public_key,
    options_to_json_dict,
    parse_client_data_json,
    parse_registration_credential_json,
)
from webauthn.helpers.decode_credential_public_key import DecodedRSAPublicKey
from webauthn.helpers.structs import (
    AuthenticatorSelectionCriteria,
    CredentialDeviceType,
    PublicKeyCredentialDescriptor,
    ResidentKeyRequirement,
    UserVerificationRequirement,
)

from app.identity.records.credentials import PasskeyCredential

_TIMEOUT_MS = 300_000
# Names of authenticators, by AAGUID.
_NAMES = {
    "08987058-cadc-4b81-b6e1-30de50dcbe96": "Windows Hello",
    "9ddd1817-af5a-4672-a2b9-3e3dd95000a9": "Windows Hello",
    "6028b017-b1d4-4c02-b4b3-afcdafc96bb2": "Windows Hello",
    "adce0002-35bc-c60a-648b-0b25f1f05503": "Chrome on Mac",
    "bada5566-a7aa-401f-bd96-45619a55120d": "1Password",
    "d548826e-79b4-db40-a3d8-11116f7e8349": "Bitwarden",
    "531126d6-e717-415c-9320-3d9aa6981239": "Dashlane",
    "ea9b8d66-4d01-1d21-3ce4-b6b48cb575d4": "Google Password Manager",
    "fbfc3007-154e-4ecc-8c0b-6e020557d7bd": "iCloud Keychain",
    "fdb141b2-5d84-443e-8a35-4698c205a502": "KeePassXC",
    "50726f74-6f6e-5061-7373-50726f746f6e": "Proton Pass",
    "53414d53-554e-4700-0000-000000000000": "Samsung Pass",
}
_UNKNOWN = "Passkey"
# Level 3, section 4: "Credential IDs are at most 1,023 bytes". Keys of ML-DSA are the longest, with 2.6 KiB.
_LONGEST_ID = 1023
_LONGEST_KEY = 4096
# What RSA takes to check a signature grows with the square of the modulus and with the exponent, which may be as long:
# each log-in would hold the event loop for 17 ms, and no authenticator makes such a key.
_LONGEST_MODULUS_BYTES = 512
_RSA_EXPONENT = 65537
_TRANSPORTS = frozenset({"usb", "nfc", "ble", "smart-card", "internal", "cable", "hybrid"})


class CeremonyFailed(Exception):
    """The browser's answer is malformed, of another site or challenge, or not signed by the credential."""


@dataclass(frozen=True, slots=True)
class RelyingParty:
    """This service, as browsers know it: a domain, and the origins whose pages may use its passkeys."""

    id: str
    name: str
    origins: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class VerifiedCredential:
    """A new credential. `name` is that of its authenticator, where it is known."""

    credential_id: bytes
    public_key: bytes
    sign_count: int
    name: str
    transports: list[str]
    backed_up: bool


@dataclass(frozen=True, slots=True)
class VerifiedAssertion:
    """A proof that the user holds a credential. `is_synced`: it may be on several devices."""

    sign_count: int
    backed_up: bool
    is_synced: bool


def registration_options(
    party: RelyingParty, user_handle: bytes, user_name: str, challenge: bytes, known: Sequence[PasskeyCredential]
) -> dict[str, Any]:
    """`PublicKeyCredentialCreationOptions` as JSON."""
    options = generate_registration_options(
        rp_id=party.id,
        rp_name=party.name,
        user_id=user_handle,
        user_name=user_name,
        challenge=challenge,
        timeout=_TIMEOUT_MS,
        authenticator_selection=AuthenticatorSelectionCriteria(
            resident_key=ResidentKeyRequirement.REQUIRED,
            require_resident_key=True,
            user_verification=UserVerificationRequirement.REQUIRED,
        ),
        exclude_credentials=[PublicKeyCredentialDescriptor(id=each.credential_id) for each in known],
    )
    return options_to_json_dict(options)


def login_options(party: RelyingParty, challenge: bytes) -> dict[str, Any]:
    """`PublicKeyCredentialRequestOptions` as JSON, for any passkey of this service."""
    options = generate_authentication_options(
        rp_id=party.id,
        challenge=challenge,
        timeout=_TIMEOUT_MS,
        user_verification=UserVerificationRequirement.REQUIRED,
    )
    return options_to_json_dict(options)


def challenge_of(credential: Mapping[str, Any]) -> bytes:
    """The challenge that the browser says it has answered.

    Raises:
        CeremonyFailed
    """
    try:
        return parse_client_data_json(base64url_to_bytes(credential["response"]["clientDataJSON"])).challenge
    except Exception as error:
        raise CeremonyFailed from error


def verify_registration(party: RelyingParty, credential: Mapping[str, Any], challenge: bytes) -> VerifiedCredential:
    """What the authenticator has made.

    Raises:
        CeremonyFailed
    """
    try:
        parsed = parse_registration_credential_json(cast("dict[str, Any]", credential))
        verified = verify_registration_response(
            credential=parsed,
            expected_challenge=challenge,
            expected_rp_id=party.id,
            expected_origin=list(party.origins),
            require_user_verification=True,
        )
        is_ordinary = _is_ordinary(verified.credential_id, verified.credential_public_key)
    except Exception as error:
        # Whatever hostile bytes make the parsers of CBOR, ASN.1 and certificates raise.
        raise CeremonyFailed from error
    if not is_ordinary:
        raise CeremonyFailed
    transports = {transport.value for transport in parsed.response.transports or ()}
    return VerifiedCredential(
        credential_id=verified.credential_id,
        public_key=verified.credential_public_key,
        sign_count=verified.sign_count,
        name=_NAMES.get(verified.aaguid, _UNKNOWN),
        transports=sorted(transports & _TRANSPORTS),
        backed_up=verified.credential_backed_up,
    )


def _is_ordinary(credential_id: bytes, public_key: bytes) -> bool:
    """Whether the credential costs no more to keep and to check than those of real authenticators."""
    if len(credential_id) > _LONGEST_ID or len(public_key) > _LONGEST_KEY:
        return False
    key = decode_credential_public_key(public_key)
    if not isinstance(key, DecodedRSAPublicKey):
        return True
    return len(key.n) <= _LONGEST_MODULUS_BYTES and int.from_bytes(key.e) == _RSA_EXPONENT


def verify_assertion(
    party: RelyingParty, credential: Mapping[str, Any], challenge: bytes, known: PasskeyCredential
) -> VerifiedAssertion:
    """What the authenticator has signed.

    Raises:
        CeremonyFailed
    """
    try:
        verified = verify_authentication_response(
            credential=cast("dict[str, Any]", credential),
            expected_challenge=challenge,
            expected_rp_id=party.id,
            expected_origin=list(party.origins),
            credential_public_key=known.public_key,
            # The library would judge the counter before the signature, and anyone could make a passkey look copied.
            credential_current_sign_count=0,
            require_user_verification=True,
        )
        handle = credential["response"].get("userHandle")
        is_of_user = not handle or base64url_to_bytes(handle) == known.user_id.bytes
    except Exception as error:
        raise CeremonyFailed from error
    if not is_of_user:
        raise CeremonyFailed
    return VerifiedAssertion(
        verified.new_sign_count,
        verified.credential_backed_up,
        verified.credential_device_type == CredentialDeviceType.MULTI_DEVICE,
    )
