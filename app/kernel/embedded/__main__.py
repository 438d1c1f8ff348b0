"""The keeper of `servers`: `python -m app.kernel.embedded <data folder>`."""

import sys
from pathlib import Path

from app.kernel.embedded.servers import keep

keep(Path(sys.argv[1]))
