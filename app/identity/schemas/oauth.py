"""The endpoints of OAuth, and the public keys."""

from typing import Annotated, Any, Literal

from pydantic import MISSING, BaseModel, Field

from app.identity.schemas.api_keys import Scope
from app.identity.schemas.fields import EXAMPLE_TOKENS
from app.kernel.http import Schema, example


class JwkResponse(Schema):
    """A public key (RFC 8037)."""

    kty: str = Field(description="Key type: `OKP`.")
    crv: str = Field(description="Curve: `Ed25519`.")
    alg: str = Field(description="Algorithm: `EdDSA`.")
    use: str = Field(description="Use: `sig`.")
    kid: str = Field(description="Id of the key, as in the header of tokens.")
    x: str = Field(description="The public key in base64url.")


class JwksResponse(Schema):
    """Get the public keys that verify access tokens (RFC 7517)."""

    keys: list[JwkResponse] = Field(description="Keys that sign, will sign, or have signed tokens that are still good.")


FormText = Annotated[str, Field(max_length=4096)]


def _describe_as_required(schema: dict[str, Any]) -> None:
    del schema["default"]
    schema["minLength"] = 1


def _required(description: str) -> Any:
    """A parameter whose absence is an error in OAuth's own words, so the model takes a form without it."""
    return Field("", description=description, json_schema_extra=_describe_as_required)


class TokenForm(
    BaseModel,
    json_schema_extra=example(
        {"grant_type": "password", "username": "ada@example.com", "password": "correct horse battery"}
    )
    | {"required": ["grant_type"]},
):
    """RFC 6749, sections 4.3, 4.4 and 6. Unknown parameters are ignored, as section 3.2 demands."""

    grant_type: FormText = _required("`password`, `refresh_token` or `client_credentials`.")
    username: FormText = Field("", description="Address of the account, for `password`.")
    password: FormText = Field("", description="Password of the account, for `password`.")
    refresh_token: FormText = Field("", description="Refresh token, for `refresh_token`.")
    scope: FormText = Field(
        "", description="Scopes that the tokens are to have, separated by spaces; empty: all that may be had."
    )
    client_id: FormText = Field(
        "", description="Id of the service account, for `client_credentials` without HTTP Basic; ignored otherwise."
    )
    client_secret: FormText = Field("", description="Secret of the service account, as above.")


class TokenOnlyForm(
    BaseModel,
    json_schema_extra=example({"token": "rt_5Jk2vXq0Zb7Wc9Ye1Rf3Tg5Uh8Io4Pa6"}) | {"required": ["token"]},
):
    """RFC 7662, section 2.1, and RFC 7009, section 2.1. The form of a token tells its type, so the hint is not
    needed.
    """

    token: FormText = _required("The token, of any type.")
    token_type_hint: FormText = Field("", description="Ignored: the token shows its type.")


class IssuedTokensResponse(BaseModel, json_schema_extra=example(EXAMPLE_TOKENS)):
    """Tokens (RFC 6749, section 5.1)."""

    access_token: str = Field(description="JWT (RFC 9068) to send as `Authorization: Bearer`.")
    token_type: str = Field(description="Always `Bearer`.")
    expires_in: int = Field(description="Lifetime of the access token in seconds.")
    refresh_token: str | MISSING = Field(
        MISSING, description="Refresh token, which works once; absent for `client_credentials`."
    )
    scope: str = Field(description="Scopes of the access token, separated by spaces.")


class ActingPartyResponse(BaseModel):
    """An administrator that acts for a user (RFC 8693, section 4.1)."""

    sub: str = Field(description="Id of the administrator.")


class IntrospectionResponse(BaseModel):
    """RFC 7662, section 2.2."""

    active: bool = Field(description="Whether the token is good; if not, no other member is present.")
    sub: str | MISSING = Field(MISSING, description="Id of the user.")
    scope: str | MISSING = Field(MISSING, description="Scopes, separated by spaces.")
    jti: str | MISSING = Field(MISSING, description="Id of the token.")
    iss: str | MISSING = Field(MISSING, description="The service that issued it.")
    aud: str | MISSING = Field(MISSING, description="Audience of the token.")
    iat: int | MISSING = Field(MISSING, description="When it was issued, in seconds since 1970.")
    exp: int | MISSING = Field(MISSING, description="When it expires, in seconds since 1970.")
    token_type: str | MISSING = Field(MISSING, description="`Bearer`, or `refresh_token`.")
    client_id: str | MISSING = Field(MISSING, description="The client that the token was issued to.")
    act: ActingPartyResponse | MISSING = Field(MISSING, description="The administrator that acts for the user.")


class OAuthErrorResponse(Schema):
    """RFC 6749, section 5.2."""

    error: str = Field(description="What went wrong, as a machine-readable code, for instance `invalid_grant`.")
    error_description: str = Field(description="What went wrong, in prose.")


class DiscoveryResponse(Schema):
    """RFC 8414, as far as it applies here."""

    issuer: str = Field(description="The issuer of tokens, their `iss`.")
    jwks_uri: str = Field(description="Address of the public keys.")
    token_endpoint: str = Field(description="Address of the token endpoint.")
    introspection_endpoint: str = Field(description="Address of introspection (RFC 7662).")
    revocation_endpoint: str = Field(description="Address of revocation (RFC 7009).")
    grant_types_supported: list[str] = Field(description="Grants of the token endpoint.")
    response_types_supported: list[str] = Field(
        description="Response types of an authorization endpoint, which does not exist here."
    )
    token_endpoint_auth_methods_supported: list[str] = Field(
        description="How clients authenticate at the token endpoint."
    )
    revocation_endpoint_auth_methods_supported: list[str] = Field(description="How clients authenticate to revoke.")
    introspection_endpoint_auth_methods_supported: list[str] = Field(
        description="How callers of introspection authenticate."
    )
    scopes_supported: list[Scope | Literal["introspect"]] = Field(description="Scopes that tokens may have.")
