"""The end of a process that only a person can help."""

import os
from multiprocessing import parent_process
from typing import NoReturn

from app.kernel.errors import EXIT_CONFIG
from app.kernel.observability.log_writer import output
from app.kernel.observability.telemetry import get_logger
from app.kernel.settings import SettingsError

_logger = get_logger(__name__)
_LAST_WORDS_SECONDS = 1.0
# uvicorn's code for a failed start, the only one after which `uvicorn --workers` does not start the process anew.
_FAILED_START = 3
# Of a process that was misconfigured; the servers of ours know EXIT_CONFIG, and set it.
exit_code = EXIT_CONFIG if parent_process() is None else _FAILED_START


def end_misconfigured(error: SettingsError) -> NoReturn:
    """Logs what is wrong and ends the process with `exit_code`: one with the same settings would end alike."""
    _logger.error("settings.rejected", reason="; ".join(error.problems))
    output.flush(_LAST_WORDS_SECONDS)
    os._exit(exit_code)
