"""The second factor."""

from pydantic import Field

from app.identity.schemas.fields import Code
from app.kernel.http import Schema, example


class TotpCodeRequest(Schema, json_schema_extra=example({"code": "123456"})):
    """A code of the authenticator app."""

    code: Code = Field(description="Six digits of the authenticator app.")


class EnrolmentResponse(Schema):
    """The secret for an authenticator app."""

    secret: str = Field(description="The secret in base32, to type in.")
    otpauth_uri: str = Field(description="The same as a URI that authenticator apps open.")
    qr_svg: str = Field(description="The URI as a QR code, an SVG image.")


class RecoveryCodesResponse(Schema):
    """Recovery codes, which no other answer contains."""

    recovery_codes: list[str] = Field(description="Codes that each replace the authenticator app once.")


class SecondFactorResponse(Schema):
    """The state of the second factor."""

    totp_enabled: bool = Field(description="Whether a log-in needs a code.")
    recovery_codes_left: int = Field(description="How many recovery codes have not been used.")
