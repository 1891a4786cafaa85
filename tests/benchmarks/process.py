"""Row: what processes cost, and what they bring: small tasks, pure Python on two of them, start-up, large values.

    python -m tests.benchmarks.process CONTESTANT

prints the seconds of the first and the second start of processes in a fresh interpreter.

Beside flowkit stand a ProcessPoolExecutor, whose processes are started as flowkit's are, and joblib with its loky where
it is installed. Work is timed without start-up: theirs on processes that are there already; flowkit's, where every run
has processes of its own, from the start of the first task to the end of the last one.
"""

from __future__ import annotations

import multiprocessing
import statistics
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from time import perf_counter, sleep
from typing import Any, NamedTuple

from flowkit import TaskRun

from . import subject
from .children import output_of
from .functions import Block, count_down, echo, noops, nothing
from .measure import Engine, Functions, interleave, median_ratio
from .report import Table, figure, judged
from .shapes import Graph, chain, independent

WORKERS = 2
UNBATCHED, BATCHED = 50, 10
"""Microseconds per task: where each one waits for the one before, and where none does."""
BUDGET = 6.0
CHUNK = 64
"""How many calls of a ProcessPoolExecutor travel together, where somebody has thought of it."""
BUSY_TASKS, BUSY_SECONDS, SPEED_UP = 200, 0.005, 1.85
LARGE, HOPS = 10_000_000, 8


def run(quick: bool) -> list[Table]:
    """Measure flowkit beside a ProcessPoolExecutor and joblib."""
    pools = [executor, *joblib()]
    return [
        _small_tasks(pools, *((500, 5_000, 3) if quick else (2_000, 20_000, 7))),
        _speed_up(pools, BUSY_TASKS // 4 if quick else BUSY_TASKS, 2 if quick else 5),
        _large_values(pools, 2 if quick else 7),
        _start_up(pools, 2 if quick else 7),
    ]


# ---------------------------------------------------------------- who is measured


def processes(workers: int) -> Engine:
    """Return flowkit on that many processes."""
    return replace(
        subject.thread(workers),
        name=f"flowkit process {workers}",
        run=lambda dag: dag.run(executor="process", max_workers=workers),
    )


def seconds_of(runs: Iterable[TaskRun]) -> float:
    """Return the seconds from the start of the first of *runs* to the end of the last one."""
    known = list(runs)
    first = min(run.started_at for run in known if run.started_at)
    return (max(run.ended_at for run in known if run.ended_at) - first).total_seconds()


def _time_work(engine: Engine, graph: Graph, functions: Functions) -> float:
    """Return the seconds that *engine*, flowkit on processes, works on the tasks."""
    result: Any = engine.run(engine.build(graph, functions))
    return seconds_of(result.tasks.values())


class Pool(NamedTuple):
    """One way to call functions in processes.

    Attributes:
        name: What it is called in tables.
        open: Returns a block with so many processes, started when they are needed and gone at its end.
        call: Calls a function there with a value, and returns its result.
        call_all: Calls functions that take nothing, and returns all results.
    """

    name: str
    open: Callable[[int], AbstractContextManager[Any]]
    call: Callable[[Any, Callable[..., Any], object], Any]
    call_all: Callable[[Any, Functions], Sequence[object]]

    def time(self, workers: int, work: Callable[[Any], object]) -> float:
        """Return the seconds of *work* on that many processes that are there already."""
        with self.open(workers) as pool:
            self.call_all(pool, [partial(sleep, 0.3)] * workers)  # long enough that no process gets two
            started = perf_counter()
            work(pool)
            return perf_counter() - started


def _open_executor(workers: int) -> AbstractContextManager[Any]:
    from concurrent.futures import ProcessPoolExecutor

    return ProcessPoolExecutor(workers, multiprocessing.get_context("forkserver"))


def _submit(pool: Any, function: Callable[..., Any], value: object) -> Any:
    return pool.submit(function, value).result()


def _submit_all(pool: Any, functions: Functions) -> Sequence[object]:
    return [future.result() for future in [pool.submit(function) for function in functions]]


executor = Pool("ProcessPoolExecutor", _open_executor, _submit, _submit_all)


def joblib() -> list[Pool]:
    """Return joblib's processes, or nothing where joblib is not installed.

    joblib sizes batches itself. A call whose value depends on the one before goes to the executor below it, which is
    ten times faster than a ``Parallel`` of one.
    """
    if find_spec("joblib") is None:
        return []
    parallel, delayed = (getattr(import_module("joblib"), name) for name in ("Parallel", "delayed"))
    reusable_executor = import_module("joblib.externals.loky").get_reusable_executor

    @contextmanager
    def open_parallel(workers: int) -> Iterator[Any]:
        with parallel(n_jobs=workers) as pool:
            yield pool
        reusable_executor().shutdown(wait=True)

    return [
        Pool(
            "joblib",
            open_parallel,
            lambda pool, function, value: _submit(reusable_executor(reuse=True), function, value),
            lambda pool, functions: pool([delayed(function)() for function in functions]),
        )
    ]


# ---------------------------------------------------------------- small tasks


def _small_tasks(pools: Sequence[Pool], links: int, crowd: int, rounds: int) -> Table:
    """Return the microseconds of a task that does nothing, in a chain and all at once."""
    flowkit = processes(WORKERS)
    flowkit.verify()
    below = [pool.name for pool in pools]
    chained = {"flowkit": _worker_of(flowkit, chain(links))}
    chained |= {pool.name: partial(pool.time, WORKERS, partial(_run_chain, pool, links)) for pool in pools}
    at_once = {"flowkit": _worker_of(flowkit, independent(crowd))}
    at_once |= {pool.name: partial(pool.time, WORKERS, partial(_run_all, pool, [nothing] * crowd)) for pool in pools}
    chunks = f"in chunks of {CHUNK}"
    at_once[chunks] = partial(executor.time, WORKERS, partial(_run_in_chunks, crowd))
    columns = ["", "flowkit", *below, f"{executor.name} {chunks}", *(f"{name} / flowkit" for name in below)]
    lines = []
    for name, tasks, contestants, most in (
        (f"chain, {links:,}: one call at a time", links, chained, UNBATCHED),
        (f"independent, {crowd:,}", crowd, at_once, BATCHED),
    ):
        samples = interleave(contestants, rounds, BUDGET)
        costs = {each: statistics.median(seconds) / tasks * 1e6 for each, seconds in samples.items()}
        cells = [judged(costs["flowkit"], at_most=most), *(figure(costs[each]) for each in below)]
        cells.append(figure(costs[chunks]) if chunks in costs else "")
        lines.append([name, *cells, *(figure(median_ratio(samples[each], samples["flowkit"])) for each in below)])
    note = f"{WORKERS} processes that are there already."
    return Table("Process: µs per task that does nothing", columns, lines, note)


def _worker_of(engine: Engine, graph: Graph) -> Callable[[], float]:
    return partial(_time_work, engine, graph, noops(graph))


def _run_chain(pool: Pool, links: int, opened: Any) -> None:
    value: object = 0
    for _ in range(links):
        value = pool.call(opened, echo, value)


def _run_all(pool: Pool, functions: Functions, opened: Any) -> None:
    pool.call_all(opened, functions)


def _run_in_chunks(crowd: int, opened: Any) -> None:
    list(opened.map(echo, range(crowd), chunksize=CHUNK))


# ---------------------------------------------------------------- pure Python


def _speed_up(pools: Sequence[Pool], tasks: int, rounds: int) -> Table:
    """Return how much sooner two processes are done than one."""
    functions = [partial(count_down, _steps_for(BUSY_SECONDS))] * tasks
    graph = independent(tasks)
    contestants: dict[str, Callable[[], Any]] = {"loop": partial(_time_calls, functions)}
    for workers in (1, WORKERS):
        contestants[f"flowkit {workers}"] = partial(_time_busy, processes(workers), graph, functions)
        for pool in pools:
            contestants[f"{pool.name} {workers}"] = partial(pool.time, workers, partial(_run_all, pool, functions))
    samples = interleave(contestants, rounds)
    wholes = {workers: [each[0] for each in samples[f"flowkit {workers}"]] for workers in (1, WORKERS)}
    works = {workers: [each[1] for each in samples[f"flowkit {workers}"]] for workers in (1, WORKERS)}
    lines = [
        ["flowkit", *_times(works), judged(median_ratio(works[1], works[WORKERS]), at_least=SPEED_UP)],
        ["flowkit, start-up and end included", *_times(wholes), figure(median_ratio(wholes[1], wholes[WORKERS]))],
    ]
    for pool in pools:
        seconds = {workers: samples[f"{pool.name} {workers}"] for workers in (1, WORKERS)}
        lines.append([pool.name, *_times(seconds), figure(median_ratio(seconds[1], seconds[WORKERS]))])
    title = f"Process: ms for {tasks} × {BUSY_SECONDS * 1e3:g} ms of pure Python"
    note = f"A plain loop in this process took {figure(statistics.median(samples['loop']) * 1e3)} ms."
    return Table(title, ["", "1 process", f"{WORKERS} processes", "times as fast"], lines, note)


def _times(seconds: dict[int, list[float]]) -> list[str]:
    return [figure(statistics.median(each) * 1e3) for each in seconds.values()]


def _time_busy(engine: Engine, graph: Graph, functions: Functions) -> tuple[float, float]:
    """Return the seconds of the whole run, and of its tasks alone."""
    built = engine.build(graph, functions)
    started = perf_counter()
    result: Any = engine.run(built)
    whole = perf_counter() - started
    return whole, seconds_of(result.tasks.values())


def _time_calls(functions: Functions) -> float:
    started = perf_counter()
    for function in functions:
        function()
    return perf_counter() - started


def _steps_for(seconds: float) -> int:
    """Return for how many steps count_down takes about *seconds*."""
    steps = 100_000
    return round(steps * seconds / min(_time_calls([partial(count_down, steps)]) for _ in range(7)))


# ---------------------------------------------------------------- large values


def _large_values(pools: Sequence[Pool], rounds: int) -> Table:
    """Return the milliseconds in which a large value goes to a process and comes back."""
    names = [pool.name for pool in pools]
    lines = []
    for what, value in (
        ("bytes", bytes(LARGE)),
        ("bytes that pickle hands over apart, as arrays are", Block(bytearray(LARGE))),
    ):
        contestants = {"flowkit": partial(_time_hops, value)}
        contestants |= {pool.name: partial(pool.time, 1, partial(_run_hops, pool, value)) for pool in pools}
        samples = interleave(contestants, rounds)
        cells = [figure(statistics.median(samples[name]) / HOPS * 1e3) for name in ("flowkit", *names)]
        lines.append([what, *cells, *(figure(median_ratio(samples[name], samples["flowkit"])) for name in names)])
    columns = ["", "flowkit", *names, *(f"{name} / flowkit" for name in names)]
    return Table(f"Process: ms for {LARGE / 1e6:.0f} MB there and back", columns, lines)


def _time_hops(value: object) -> float:
    """Return the seconds in which a chain of tasks hands on *value*."""
    graph = chain(HOPS + 1)
    engine = processes(1)
    functions: list[Callable[..., Any]] = [partial(echo, value), *[echo] * HOPS]
    result: Any = engine.run(engine.build(graph, functions))
    return seconds_of(list(result.tasks.values())[1:])


def _run_hops(pool: Pool, value: object, opened: Any) -> None:
    for _ in range(HOPS):
        value = pool.call(opened, echo, value)


# ---------------------------------------------------------------- start-up


def _start_up(pools: Sequence[Pool], rounds: int) -> Table:
    """Return how long it takes until processes have started, done nothing, and are gone."""
    names = ["flowkit", *(pool.name for pool in pools)]
    samples = interleave({name: partial(_time_starts, name) for name in names}, rounds)
    lines = []
    for name, seconds in samples.items():
        cells = [figure(statistics.median(each) * 1e3) for each in zip(*seconds, strict=True)]
        lines.append([name, *cells])
    title = f"Process: ms to start {WORKERS} processes, call each once, and end them"
    note = "Each process imports this module. The first time starts the forkserver, too."
    return Table(title, ["", "first time in an interpreter", "second time"], lines, note)


def _time_starts(name: str) -> list[float]:
    return [float(seconds) for seconds in output_of("-m", __name__, name).split()]


def _start_and_end(name: str) -> float:
    """Return the seconds of a call in each of some new processes."""
    functions = [nothing] * WORKERS
    started = perf_counter()
    if name == "flowkit":
        engine = processes(WORKERS)
        engine.run(engine.build(independent(WORKERS), functions))
    else:
        pool = next(pool for pool in [executor, *joblib()] if pool.name == name)
        with pool.open(WORKERS) as opened:
            pool.call_all(opened, functions)
    return perf_counter() - started


if __name__ == "__main__":
    print(_start_and_end(sys.argv[1]), _start_and_end(sys.argv[1]))
