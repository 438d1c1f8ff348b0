"""What other modules and the composition root may use of the identity module."""

from app.identity.errors import EmailNotVerified
from app.identity.queries.accounts import get_mail_account, is_admin_at, list_admins
from app.identity.records import OPERATOR_ID, Actor, Device, operator
from app.identity.service.audit_log import (
    read_security_events,
    record_admin_read,
    record_operator_act,
    record_security_event,
)
from app.identity.service.callers import lock_admin, lock_caller, lock_maker
from app.identity.service.container import IdentityServices, confirm_secret, make_identity, run_identity
from app.identity.service.email_codes import issue_login_code
from app.identity.service.exporting import export_identity, iterate_security_events
from app.identity.service.key_rotation import check_secret, replace_signing_keys, rotate_signing_keys
from app.identity.service.password_hashing import PasswordHashing
from app.identity.service.provisioning import provision_account
from app.identity.tasks import IDENTITY_KINDS, AccountPurge

__all__ = [
    "IDENTITY_KINDS",
    "OPERATOR_ID",
    "AccountPurge",
    "Actor",
    "Device",
    "EmailNotVerified",
    "IdentityServices",
    "PasswordHashing",
    "check_secret",
    "confirm_secret",
    "export_identity",
    "get_mail_account",
    "is_admin_at",
    "issue_login_code",
    "iterate_security_events",
    "list_admins",
    "lock_admin",
    "lock_caller",
    "lock_maker",
    "make_identity",
    "operator",
    "provision_account",
    "read_security_events",
    "record_admin_read",
    "record_operator_act",
    "record_security_event",
    "replace_signing_keys",
    "rotate_signing_keys",
    "run_identity",
]
