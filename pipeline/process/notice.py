"""Tells a line that is no warning, through the log."""

import logging


def tell(log: logging.Logger, text: str, *values: object) -> None:
    """Log a line that is shown although it is no warning. A level that somebody has set for this log stays.

    Args:
        log: of the module that tells.
        text, values: as for `logging.Logger.info`.
    """
    if not log.level:
        log.setLevel(logging.INFO)
    log.info(text, *values)
