"""Decide whether a failed attempt is tried again, and after how long.

Knows the policy. Does not know clocks and does not sleep.
"""

from __future__ import annotations

from .exceptions import GiveUp, OptionError, RetryAfter, describe, shown
from .hooks import log_broken_hook

TYPE_CHECKING = False
if TYPE_CHECKING:
    import random
    from collections.abc import Callable

    RetryOn = type[BaseException] | tuple[type[BaseException], ...] | Callable[[Exception], object]

LONGEST = 1e9
"""No duration in flowkit is longer, in seconds: waits beyond it overflow the platform's clocks."""


def check_seconds(where: str, option: str, value: object, *, above_zero: bool = False) -> float:
    """Return *value* as a duration in seconds, or raise OptionError.

    Args:
        where: Whose option it is, for the message, such as ``"task 'load'"``.
        option: The option's name.
        value: What was given.
        above_zero: Whether 0 is refused too.
    """
    if not is_duration(value) or (above_zero and value == 0):
        least = "above 0" if above_zero else "from 0"
        what = _not_of(value, int, float)
        raise OptionError(f"{where}: {option}={shown(value)} must be a finite number {least} to {LONGEST:g}{what}.")
    return float(value)  # type: ignore[arg-type]


def is_duration(value: object) -> bool:
    """Return whether *value* is a number of seconds that clocks can wait for; NaN and infinity are not."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= LONGEST


def check_count(where: str, option: str, value: object, least: int, most: int) -> int:
    """Return *value* as an integer from *least* to *most*, or raise OptionError; a bool is no integer here."""
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise OptionError(
            f"{where}: {option}={shown(value)} must be an integer from {least} to {most:,}{_not_of(value, int)}."
        )
    return int(value)


def _not_of(value: object, *kinds: type) -> str:
    """Return ``, not str`` for a message if *value* is of none of *kinds*; else it is only out of range."""
    return "" if type(value) in kinds else f", not {type(value).__name__}"


class RetryPolicy:
    """How often a task is tried, for which exceptions, and how long it waits in between.

    Args:
        retries: Extra attempts after the first.
        delay: Seconds before the second attempt.
        backoff: Factor on the wait for each further attempt.
        jitter: Up to this fraction of the wait is added at random.
        max_delay: No wait is longer, in seconds, before the jitter is added.
        retry_on: An exception class, a tuple of them, or a predicate ``exc -> bool``; any other exception fails
            at once.
        where: Whose policy it is, for error messages.

    Raises:
        OptionError: A value is outside of its range.
    """

    __slots__ = ("backoff", "delay", "jitter", "max_delay", "retries", "retry_on")

    def __init__(
        self,
        retries: int = 0,
        delay: float = 1.0,
        backoff: float = 2.0,
        jitter: float = 0.1,
        max_delay: float = 60.0,
        retry_on: RetryOn = Exception,
        *,
        where: str = "RetryPolicy",
    ) -> None:
        self.retries = check_count(where, "retries", retries, 0, 1_000_000_000)
        self.delay = check_seconds(where, "delay", delay)
        self.backoff = check_seconds(where, "backoff", backoff)
        self.jitter = check_seconds(where, "jitter", jitter)
        self.max_delay = check_seconds(where, "max_delay", max_delay)
        self.retry_on = _check_retry_on(where, retry_on)

    def is_retryable(self, error: BaseException) -> bool:
        """Return whether *error* may be followed by another attempt, if one is left.

        A predicate that raises is logged and counts as no: the error stays the task's own.
        """
        if isinstance(error, RetryAfter):
            return True
        if isinstance(error, GiveUp):
            return False
        retry_on = self.retry_on
        if isinstance(retry_on, (type, tuple)):
            return isinstance(error, retry_on)
        if not isinstance(error, Exception):  # only a class that names it makes an exit or a Ctrl-C be tried again
            return False
        try:
            return bool(retry_on(error))
        except BaseException:  # noqa: BLE001 - a broken predicate must not hide the error it was asked about
            log_broken_hook(f"retry_on {shown(retry_on, 200)}", f"No further attempt is made after {describe(error)}.")
            return False

    def wait_after(self, attempt: int, error: BaseException, rng: random.Random) -> float:
        """Return how many seconds to wait after *attempt* failed with *error*, which may ask for a wait itself."""
        if isinstance(error, RetryAfter) and is_duration(error.seconds):  # a subclass may have put anything there
            return error.seconds
        return self.delay_before(attempt + 1, rng)

    def delay_before(self, attempt: int, rng: random.Random) -> float:
        """Return how many seconds to wait before *attempt* may start.

        The first attempt never waits. From the second on the wait grows by ``backoff`` each time, is capped at
        ``max_delay``, and then has up to ``jitter`` of itself added.

        Args:
            attempt: The attempt about to start, counted from 1.
            rng: Source of the jitter. Pass a seeded one to make runs repeat.

        Raises:
            ValueError: *attempt* is below 1.

        >>> import random
        >>> RetryPolicy(retries=3, delay=1, backoff=2, jitter=0).delay_before(3, random.Random(0))
        2.0
        """
        if attempt < 1:
            raise ValueError(f"attempt={attempt!r}: attempts are counted from 1.")
        if attempt == 1:
            return 0.0
        try:
            wait = self.delay * self.backoff ** (attempt - 2)
        except OverflowError:
            wait = self.max_delay if self.delay else 0.0
        wait = min(wait, self.max_delay)
        return wait + wait * self.jitter * rng.random() if self.jitter else wait


def _check_retry_on(where: str, retry_on: RetryOn) -> RetryOn:
    classes = retry_on if isinstance(retry_on, tuple) else (retry_on,)
    if all(isinstance(cls, type) and issubclass(cls, BaseException) for cls in classes):
        return retry_on
    if not isinstance(retry_on, (type, tuple)) and callable(retry_on):
        return retry_on
    raise OptionError(
        f"{where}: retry_on={shown(retry_on)} must be an exception class, a tuple of exception classes, "
        f"or a function that takes the exception and returns a bool."
    )
