# pyright: strict, reportUnusedExpression=false
"""What a user writes, and every type checker accepts: ``tests/test_typing.py`` runs them over this file.

It is checked, never run.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, assert_type

from flowkit import (
    DAG,
    AttemptFailed,
    DAGExecutionError,
    Event,
    RunHandle,
    RunResult,
    Task,
    TaskContext,
    TaskExecutionError,
    TaskFailed,
    TaskRun,
    TaskSucceeded,
    chain,
    current_context,
    task,
)


@task
def extract() -> list[int]:
    return [1]


@task
def users() -> dict[str, int]:
    return {}


@task
def clean(rows: list[int]) -> list[int]:
    return rows


@task
def count(rows: list[int]) -> int:
    return len(rows)


@task
def join(users: dict[str, int], orders: list[int]) -> str:
    return ""


@task
def report(text: str, *counts: int) -> None: ...


@task
def shout(text: str) -> str:
    return text


@task
def notify() -> None: ...


@task
def opt(rows: list[int] | None = None) -> int:
    return 0


@task
def setting(rows: list[int], limit: int = 10) -> list[int]:
    return rows[:limit]


@task
def anything() -> Any:
    return 0


@task
async def fetch_async(rows: list[int]) -> list[int]:
    return rows


@task
async def count_async(rows: list[int]) -> int:
    return len(rows)


# ---------------------------------------------------------------- wiring

extract >> clean
extract >> notify  # takes nothing: order only
extract >> [clean, count]
extract >> (clean, count)
[extract, users] >> join
(extract, users) >> join
extract >> join  # its second parameter; the first one is the other task's
users >> join
extract >> opt
extract >> setting
extract >> clean >> count
extract >> [clean, setting] >> join
[extract, users] >> join >> report
extract >> fetch_async >> clean  # what the coroutine gives, not the coroutine
extract >> fetch_async >> count_async
anything >> clean
anything >> shout
join << [extract, users]
count << clean
count << clean << extract
[clean, count] << extract
[extract, users] >> [clean]  # type: ignore[operator]  # chain() is for two lists
chain(extract, [clean, count], join)
chain([extract, users], [join, opt], (report,), notify)
shout.after(extract)
shout.after(extract, [users, clean], notify).after(join)
assert_type(shout.after(extract), Task[[str], str])
assert_type(extract >> [clean, count], list[Task[..., Any]])
assert_type([extract, users] >> join, Task[[dict[str, int], list[int]], str])
assert_type(extract >> clean, Task[..., list[int]])
assert_type(extract >> notify, Task[[], None])
assert_type(extract >> clean >> count, Task[..., int])


# ---------------------------------------------------------------- types survive decoration

assert_type(extract, Task[[], list[int]])
assert_type(extract(), list[int])
assert_type(clean([1]), list[int])
assert_type(clean(rows=[1]), list[int])
assert_type(join({}, orders=[1]), str)
assert_type(setting([1]), list[int])
assert_type(setting([1], limit=3), list[int])
assert_type(count.func([1]), int)
assert_type(count.__wrapped__([1]), int)
assert_type(report("text", 1, 2), None)
awaitable: Coroutine[Any, Any, int] = count_async([1])
plain: Callable[[list[int]], int] = count  # a task is callable as its function is
