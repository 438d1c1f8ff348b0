"""The end of everything that could act for an account before its owner has proven the address."""

from app.identity.queries.one_time_tokens import delete_one_time_tokens
from app.identity.queries.passkeys import delete_passkeys
from app.identity.queries.second_factor import delete_totp
from app.identity.queries.sessions import insert_account_revocation
from app.identity.records import Actor, Device
from app.identity.records.tokens import Revocation
from app.identity.service.api_keys import end_api_keys
from app.identity.service.container import IdentityServices
from app.identity.service.sessions import end_sessions
from app.kernel.database import Tx
from app.kernel.ids import UserId


async def end_credentials(
    tx: Tx, identity: IdentityServices, user_id: UserId, version: int, device: Device, *, reason: str
) -> None:
    """Ends sessions, access tokens, API keys, second factor, passkeys and links, and turns off what else reports to the
    outside.

    `tx` has just set the account to `version`. That is what ends the rest: a log-in, a request, a job or a link that
    began before is bound to the version before and waits for the lock that `tx` holds.
    """
    actor = Actor(user_id, None, device)
    await end_sessions(tx, identity, user_id, device, reason=reason, actor_id=user_id, is_noted=False)
    await end_api_keys(tx, identity, actor, user_id)
    await delete_totp(tx, user_id)
    await delete_passkeys(tx, user_id)
    await delete_one_time_tokens(tx, user_id)
    await identity.end_channels(tx, user_id)
    await make_stale(tx, identity, user_id, version)


async def make_stale(tx: Tx, identity: IdentityServices, user_id: UserId, version: int) -> None:
    """Access tokens of before `version` are refused everywhere once `tx` has committed."""
    end = identity.revocations_end()
    await insert_account_revocation(tx, user_id, version, end)
    identity.feed.announce(tx, [Revocation("account", user_id, version, end)])
