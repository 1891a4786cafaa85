"""What the tasks of :mod:`test_model_process` do, where processes can import it."""

import os
import signal

from model import value_of

from flowkit import GiveUp, RetryAfter, Skip


def act(name, script, context, *given):
    """Do what *script* says of this attempt; "timeout" stands for whatever ends an attempt from outside: it dies."""
    outcome = script[min(context.attempt, len(script)) - 1]
    if outcome == "timeout":
        os.kill(os.getpid(), signal.SIGKILL)
    if outcome in _RAISED:
        raise _RAISED[outcome]()
    return value_of(name, context.attempt, given)


def answer(name, value):
    if value == "raises":
        raise LookupError(name)
    return value


_RAISED = {
    "fail": lambda: ConnectionError("refused"),
    "skip": lambda: Skip("nothing to do"),
    "give_up": lambda: GiveUp("no use"),
    "exit": lambda: SystemExit(3),
    "retry_after": lambda: RetryAfter(0),
}
