"""What other modules and the composition root may use of the identity module."""

from app.identity.service.hashing import PasswordHashing
from app.identity.service.provisioning import provision_account
from app.identity.service.runtime import Identity, make_identity, run_identity

__all__ = ["Identity", "PasswordHashing", "make_identity", "provision_account", "run_identity"]
