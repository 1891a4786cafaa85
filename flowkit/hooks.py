"""Report what went wrong in code of the user that only watches a run.

Knows the logger ``flowkit``. Does not know who called the hook: callbacks, observers, retry predicates and cleanup
handlers all end here when they raise, and the run goes on unchanged.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def log_broken_hook(hook: str, consequence: str) -> None:
    """Log the exception being handled, which came out of *hook*, to the logger ``flowkit``."""
    from contextlib import suppress  # noqa: PLC0415 - costs 1 ms, and hooks rarely break

    with suppress(Exception):  # if the application's own log handler is broken, there is nobody left to tell
        quiet_logger().exception("%s raised. %s", hook, consequence)


def quiet_logger() -> Any:
    """Return the stdlib logger ``flowkit``, silent until the application or flowkit configures it."""
    import logging  # noqa: PLC0415 - costs 6 ms, and most runs log nothing

    logger = logging.getLogger("flowkit")
    if not logger.handlers:
        logger.addHandler(logging.NullHandler())
    return logger
