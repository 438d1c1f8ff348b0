"""What several of the requests and answers have."""

from typing import Annotated, Literal

from pydantic import Field
from typing_extensions import TypeAliasType

Transport = TypeAliasType("Transport", Literal["bearer", "cookie"])
TRANSPORT_HELP = (
    "How the session's credentials travel: `bearer` has tokens in the response, `cookie` sets a session cookie instead."
)
MAX_SENT_PASSWORD = 1024
# Log-in says no more of a malformed address than of an unknown one.
AnyEmail = Annotated[str, Field(min_length=1, max_length=254, examples=["ada@example.com"])]
SentPassword = Annotated[str, Field(min_length=1, max_length=MAX_SENT_PASSWORD, examples=["correct horse battery"])]
OneTimeTokenText = Annotated[str, Field(min_length=1, max_length=256)]
Code = Annotated[str, Field(min_length=6, max_length=64, examples=["123456"])]
EXAMPLE_TOKENS = {
    "access_token": "eyJhbGciOiJFZERTQSIsInR5cCI6ImF0K2p3dCJ9.eyJzdWIiOiIwMTk4In0.c2lnbmF0dXJl",
    "token_type": "Bearer",
    "expires_in": 600,
    "refresh_token": "rt_5Jk2vXq0Zb7Wc9Ye1Rf3Tg5Uh8Io4Pa6",
    "scope": "events:read events:write profile:read",
}
PASSWORD_HELP = "Password of the account, at most 1,024 characters."
NEW_PASSWORD_HELP = "Password, 8 to 256 characters, none of the common ones, and unlike the address and name."
CURRENT_PASSWORD_HELP = "Present password of the account."
CODE_HELP = "Six digits of the authenticator app, or a recovery code."
