"""What type checkers refuse: each line with an error mark, and no other. Checked by tests/test_typing.py, never run.

The mistakes without a mark are those that no checker sees.
"""

from __future__ import annotations

from typing import assert_type

from flowkit import DAG, Event, Task, TaskFailed, chain, task


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
def shout(text: str) -> str:
    return text.upper()


@task
def keyword_only(*, rows: list[int]) -> int:
    return 0


@task
async def fetch_async(rows: list[int]) -> list[int]:
    return rows


@task
async def shout_async(text: str) -> str:
    return text.upper()


# ---------------------------------------------------------------- wiring

extract >> shout  # error
extract >> clean >> shout  # error
users >> clean  # error
count >> join  # error
extract >> 42  # error
extract >> clean([1])  # error
extract >> "clean"  # error
extract >> [42]  # error
extract >> [[clean]]  # error
extract >> keyword_only  # error
extract >> shout_async  # error
fetch_async >> shout  # error
fetch_async >> shout_async  # error
[extract, users] >> [clean]  # error
clean << 42  # error
clean << extract()  # error
clean << [42]  # error
chain(extract, 42)  # error
chain(extract, [clean, "count"])  # error
clean.after(42)  # error
clean.after("extract")  # error
clean.after([extract, 42])  # error

chain(extract, [[clean]])  # error

[1, 2] >> clean  # no checker looks into a list on the left,
extract >> [clean, shout]  # nor asks for each task of a list whether the result fits,
shout << extract  # nor asks it where the arrow points left,
chain(extract, shout)  # nor in a chain

# ---------------------------------------------------------------- mapping


@task
def one(row: int) -> str:
    return str(row)


@task
def keep(rows: list[str]) -> None: ...


@task
async def one_async(row: int) -> str:
    return ""


extract >> shout.map()  # error
extract >> one.map() >> clean  # error
extract >> one.map() >> one.map()  # error
count >> one.map()  # error
extract >> one_async.map() >> clean  # error
one.map("row", 2)  # error
one.map(over=3)  # error
one.map(by="row")  # error
one.map()(3)  # error
one.map()(["text"])  # error
one.map()()  # error
mapped: list[int] = one.map()([1])  # error
keyword_only.map()  # error

users >> one.map()  # error
extract >> one.map  # a method is a function like any other,
users >> one.map(over="rwo")  # and no checker knows the names of parameters

# ---------------------------------------------------------------- direct calls

clean("text")  # error
clean()  # error
clean([1], 2)  # error
clean(row=[1])  # error
join({}, order=[1])  # error
number: int = clean([1])  # error
text: Task[[str], str] = clean  # error
awaited: list[int] = fetch_async([1])  # error
assert_type(clean.func([1]), str)  # error
clean.with_options(name="again")("text")  # error

# ---------------------------------------------------------------- options


def on_count(rows: int) -> None: ...


def on_failure(event: TaskFailed) -> None: ...


def on_event(event: Event) -> None: ...


Task(42)  # error
Task("load", 42)  # error
Task("load", count.func, retires=3)  # error
Task(count.func, retries="3")  # error
task(42)  # error
task(retires=3)  # error
task(retries="3")  # error
task(retries=1.5)  # error
task(timeout="30 s")  # error
task(when=True)  # error
task(name=3)  # error
task(retry_on="OSError")  # error
task(retry_on=(OSError, 5))  # error
task(on_failure=on_count)  # error
task(on_success=on_failure)  # error
task(on_success=on_event)
task(trigger=None)  # error
task(uses=4)  # error
clean.with_options(retires=3)  # error
clean.retries = 3  # error
clean.upstream = []  # error

# ---------------------------------------------------------------- running

dag = DAG("nightly", tasks=[clean])
DAG(42)  # error
DAG("nightly", [clean])  # error
DAG("nightly", tasks=["clean"])  # error
DAG("nightly", workers=4)  # error
dag.run(retries=3)  # error
dag.run(max_workers="4")  # error
dag.run(fail_fast="no")  # error
dag.run(limits={"api": "2"})  # error
dag.run(inputs=["today"])  # error
dag.run(observers=[on_count])  # error
dag.run(observers=[on_event])
dag.run()["clean"] = []  # error
dag.start().done().result()  # error
dag.visualize(42)  # error
