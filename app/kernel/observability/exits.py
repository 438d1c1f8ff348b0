"""The end of a process that only a person can help."""

import os
from typing import NoReturn

from app.kernel.errors import EXIT_CONFIG
from app.kernel.observability.log_writer import output
from app.kernel.observability.telemetry import get_logger
from app.kernel.settings import SettingsError

_logger = get_logger(__name__)
_LAST_WORDS_SECONDS = 1.0


def end_misconfigured(error: SettingsError) -> NoReturn:
    """Logs what is wrong and ends the process with EXIT_CONFIG: one with the same settings would end alike."""
    _logger.error("settings.rejected", reason="; ".join(error.problems))
    output.flush(_LAST_WORDS_SECONDS)
    os._exit(EXIT_CONFIG)
