# pyright: strict, reportUnusedExpression=false, reportUnknownLambdaType=false, reportUnknownArgumentType=false
"""What a user writes, and type checkers accept: tests/test_typing.py checks these lines, and runs them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Sequence
from functools import partial
from typing import Any, TypeVar, assert_type

from flowkit import (
    DAG,
    AttemptFailed,
    Event,
    GiveUp,
    RetryAfter,
    RunHandle,
    RunResult,
    Skip,
    Task,
    TaskContext,
    TaskExecutionError,
    TaskFailed,
    TaskRun,
    TaskSucceeded,
    chain,
    task,
)

T = TypeVar("T")


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
def combine(users: dict[str, int], orders: list[int], total: int) -> str:
    return ""


@task
def shout(text: str) -> str:
    return text.upper()


@task
def notify() -> None: ...


# ---------------------------------------------------------------- wiring

extract >> clean
extract >> clean >> count
extract >> notify  # takes nothing: order only
extract >> [clean, count]
extract >> (clean, count)
[extract, users] >> join
(extract, users) >> join
extract >> join  # the second parameter; the first is the other task's
users >> join
extract >> [clean, count] >> notify
users >> combine
clean >> combine
count >> combine  # the third parameter
count << clean << extract
combine << [users, clean, count]
[clean, count] << extract
chain(extract, [clean, count], notify)
chain([extract, users], [join, shout], (notify,))
shout.after(extract)
shout.after(extract, users, [clean, count])

assert_type(extract >> clean, Task[..., list[int]])
assert_type(extract >> clean >> count, Task[..., int])
assert_type(extract >> notify, Task[[], None])
assert_type(extract >> [clean, count], list[Task[..., Any]])
assert_type((shout << join)({}, []), str)
assert_type(([extract, users] >> join)({}, [1]), str)
assert_type(shout.after(extract)("text"), str)


@task
def optional(rows: list[int] | None = None) -> int:
    return 0


@task
def setting(rows: list[int], limit: int = 10) -> list[int]:
    return rows[:limit]


@task
def merge(*parts: list[int]) -> list[int]:
    return [row for part in parts for row in part]


@task
def gather(**parts: list[int]) -> int:
    return len(parts)


@task
def with_context(context: TaskContext, rows: list[int]) -> int:
    return context.attempt


@task
def any_items(rows: Iterable[object]) -> float:
    return 0


@task
def half(number: float) -> float:
    return number / 2


@task
def first(rows: Sequence[T]) -> T:
    return rows[0]


@task
def untyped() -> Any:
    return 0


extract >> optional
extract >> setting
[extract, clean] >> merge
extract >> merge
extract >> gather
extract >> with_context
extract >> any_items >> half
count >> half
extract >> first
untyped >> clean
untyped >> shout


@task
async def fetch_async(rows: list[int]) -> list[int]:
    return rows


@task
async def count_async(rows: list[int]) -> int:
    return len(rows)


extract >> fetch_async >> clean  # what the coroutine gives, not the coroutine
extract >> fetch_async >> count_async >> half

parts = [count.with_options(name=f"count_{n}") for n in range(3)]


@task
def total(*counts: int) -> int:
    return sum(counts)


extract >> parts >> total
for part in parts:
    clean >> part


# ---------------------------------------------------------------- mapping


@task
def one(row: int) -> str:
    return str(row)


@task
def keep(rows: list[str]) -> list[str]:
    return rows


@task
def scaled(row: int, factor: float, *, offset: float = 0) -> float:
    return factor * row + offset


@task
async def one_async(row: int) -> bytes:
    return b""


@task
def any_bytes(parts: Sequence[bytes]) -> bytes:
    return b"".join(parts)


extract >> one.map() >> keep
extract >> one.map() >> shout.map() >> keep
extract >> one_async.map() >> any_bytes  # the results of the coroutines
extract >> [one.map(), one_async.map()]
[extract, half] >> scaled.map()
extract >> scaled.map()
half >> scaled.map()  # the second parameter
half >> scaled.map(over="row")
untyped >> one.map()
users >> one.map(over="row")  # no checker knows which parameter that is
mapped_one = one.map()
extract >> mapped_one
mapped_one.after(extract)

assert_type(one.map()([1]), list[str])
assert_type(one.map()((1, 2)), list[str])
assert_type(one.map()(range(3)), list[str])
assert_type(scaled.map()([1], 2.5, offset=1), list[float])
assert_type(one.map(over="row")(row=[1]), list[str])
assert_type(one.with_options(name="again").map()([1]), list[str])
assert_type(one.map().with_options(name="again")([1]), list[str])
assert_type(extract >> one.map(), Task[..., list[str]])
assert_type(extract >> one_async.map(), Task[..., list[bytes]])


# ---------------------------------------------------------------- direct calls keep their types

assert_type(extract(), list[int])
assert_type(clean([1]), list[int])
assert_type(clean(rows=[1]), list[int])
assert_type(join({}, orders=[1]), str)
assert_type(setting([1], limit=3), list[int])
assert_type(merge([1], [2]), list[int])
assert_type(first(["text"]), str)
assert_type(notify.func, Callable[[], None])
assert_type(count.func([1]), int)
assert_type(count.__wrapped__([1]), int)
assert_type(count.with_options(name="again", retries=2)([1]), int)


async def awaits() -> None:
    assert_type(await count_async([1]), int)
    coroutine: Coroutine[Any, Any, int] = count_async(rows=[1])
    assert_type(await coroutine, int)


asyncio.run(awaits())

as_function: Callable[[list[int]], int] = count
as_task: Task[[list[int]], int] = count
as_any_task: Task[..., Any] = count
by_name: dict[str, Task[..., Any]] = {t.name: t for t in (extract, users, join)}
assert_type(list(count.upstream), list[Task[..., Any]])


# ---------------------------------------------------------------- options


def on_success(event: TaskSucceeded) -> None:
    print(event.task_name, event.value, event.duration)


def on_failure(event: TaskFailed) -> None:
    print(event.task_name, event.error, event.attempts)


def on_retry(event: AttemptFailed) -> None:
    print(event.task_name, event.retry_in)


def on_event(event: Event) -> None:
    print(event.run_id, event.time)


@task()
def plain() -> int:
    return 1


@task(
    name="load all",
    retries=3,
    delay=0.5,
    backoff=2,
    jitter=0,
    max_delay=30,
    retry_on=(OSError, TimeoutError),
    timeout=60,
    when=lambda rows: bool(rows),
    trigger="none_failed",
    executor="thread",
    uses="api",
    on_success=on_success,
    on_failure=on_failure,
    on_retry=on_retry,
)
def load(rows: list[int]) -> int:
    if not rows:
        raise Skip("no rows")
    if rows[0] < 0:
        raise RetryAfter(12)
    if rows[0] > 100:
        raise GiveUp("too large")
    return rows[0]


@task(retry_on=ConnectionError, on_failure=on_event)
def by_class() -> None: ...


@task(retry_on=lambda error: "busy" in str(error), timeout=None, when=None)
def by_predicate() -> None: ...


def add(a: int, b: int = 0) -> int:
    return a + b


assert_type(plain(), int)
assert_type(load([1]), int)
assert_type(Task("plus", add)(1, b=2), int)
assert_type(Task("plus_slowly", add, retries=3, timeout=5)(1), int)
assert_type(Task(add)(1), int)
assert_type(Task(add, name="plus_more", retries=3)(1), int)
assert_type(Task("one", lambda: 1)(), int)
assert_type(Task("plus_one", partial(add, 1))(), int)
assert_type(Task("size", len)("text"), int)
extract >> load


# ---------------------------------------------------------------- running


def run(dag: DAG) -> RunHandle:
    result = dag.run({"date": "today"}, executor="thread", max_workers=4, limits={"api": 2}, timeout=60)
    assert_type(result, RunResult)
    assert_type(result["load"], Any)
    assert_type(result.get("load"), Any | None)
    assert_type(dict(result), dict[str, Any])
    assert_type(result.tasks["load"], TaskRun)
    assert_type(result.tasks["load"].items, tuple[TaskRun, ...])
    assert_type(result.ok, bool)
    assert_type(result.failed, list[str])
    assert_type(result.errors, dict[str, BaseException])
    assert_type(result.summary(), str)
    assert_type(dag.waves(), list[list[str]])
    assert_type(dag.visualize("mermaid", result=result), str)
    try:
        dag.run(targets=["load", extract], fail_fast=True, raise_on_failure=True, observers=[on_event, print])
    except TaskExecutionError as error:
        assert_type(error.task_name, str)
        assert_type(error.attempts, int)
    dag.validate({"date": "today"}, limits={"api": 1})
    handle = dag.start(fail_fast=False, executor="sequential")
    handle.cancel("enough")
    assert_type(handle.result(timeout=5), RunResult)
    assert_type(handle.snapshot()["load"], Any)
    return handle


DAG()
DAG("nightly", tasks=[join, notify], inputs={"date": "today"}, max_workers=2, fail_fast=False)
with DAG("block") as block:
    extract >> clean
    assert_type(block, DAG)
