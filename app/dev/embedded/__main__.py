"""The keeper of `servers`: `python -m app.dev.embedded <data folder>`."""

import sys
from pathlib import Path

from app.dev.embedded.servers import keep

keep(Path(sys.argv[1]))
