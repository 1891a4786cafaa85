"""What flowkit is compared with: a plain loop, bare threads, graphlib by hand, dask.

Knows: how each of them runs a graph. Does not know: flowkit, what is measured.

All of them key results by index, which is cheaper than by name; dask needs names.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from graphlib import TopologicalSorter
from importlib import import_module
from importlib.util import find_spec
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any

from .measure import Engine, Functions
from .shapes import Graph

Results = dict[Any, Any]


def _build_nothing(graph: Graph, functions: Functions) -> tuple[Graph, Functions]:
    return graph, functions


def _run_loop(built: tuple[Graph, Functions]) -> Results:
    graph, functions = built
    results: Results = {}
    for index, (function, upstream) in enumerate(zip(functions, graph, strict=True)):
        results[index] = function(*[results[i] for i in upstream])
    return results


floor = Engine("floor", _build_nothing, _run_loop)
"""The least one can do in Python: call in the given order, keep results in a dict."""


def _build_sorter(graph: Graph, functions: Functions) -> tuple[TopologicalSorter[int], Graph, Functions]:
    sorter = TopologicalSorter(dict(enumerate(graph)))
    sorter.prepare()
    return sorter, graph, functions


def _run_sorter(built: tuple[TopologicalSorter[int], Graph, Functions]) -> Results:
    sorter, graph, functions = built
    results: Results = {}
    while sorter.is_active():
        ready = sorter.get_ready()
        for index in ready:
            results[index] = functions[index](*[results[i] for i in graph[index]])
        sorter.done(*ready)
    return results


graphlib_sequential = Engine("graphlib", _build_sorter, _run_sorter, reruns=False)
"""graphlib.TopologicalSorter in one thread. A sorter runs once."""


def graphlib_pool(workers: int) -> Engine:
    """Return graphlib with a ThreadPoolExecutor: submit what is ready, wait on a queue of what is done."""

    def run(built: tuple[TopologicalSorter[int], Graph, Functions]) -> Results:
        sorter, graph, functions = built
        results: Results = {}
        finished: SimpleQueue[tuple[int, Any, BaseException | None]] = SimpleQueue()
        tell = finished.put

        def call(index: int) -> None:
            try:
                tell((index, functions[index](*[results[i] for i in graph[index]]), None))
            except BaseException as error:  # the coordinator raises it
                tell((index, None, error))

        with ThreadPoolExecutor(workers) as pool:
            while sorter.is_active():
                for index in sorter.get_ready():
                    pool.submit(call, index)
                told = finished.get()
                try:
                    while True:  # all that is done by now: one look at what is ready for a crowd
                        index, value, error = told
                        if error is not None:
                            raise error
                        results[index] = value
                        sorter.done(index)
                        told = finished.get_nowait()
                except Empty:
                    pass
        return results

    return Engine(f"graphlib + TPE {workers}", _build_sorter, run, reruns=False)


def bare_threads(workers: int) -> Engine:
    """Return threads that share out the functions beforehand and ignore every edge; no values are passed."""

    def run(built: tuple[Graph, Functions]) -> Results:
        functions = built[1]
        results: Results = {}

        def call_every(first: int) -> None:
            for index in range(first, len(functions), workers):
                results[index] = functions[index]()

        threads = [Thread(target=call_every, args=[first]) for first in range(workers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return results

    return Engine(f"bare threads {workers}", _build_nothing, run)


def dask_threaded(workers: int) -> list[Engine]:
    """Return dask's threaded scheduler, or nothing where dask is not installed.

    It gets a graph of its documented form, {key: (function, key, ...)}, is asked for every key, and keeps its
    pool of threads from run to run.
    """
    if find_spec("dask") is None:
        return []
    threaded = import_module("dask.threaded")

    def run(graph: dict[str, tuple[Any, ...]]) -> Results:
        return dict(zip(graph, threaded.get(graph, list(graph), num_workers=workers), strict=True))

    return [Engine(f"dask threaded {workers}", _build_dask, run, reruns=False)]


def _build_dask(graph: Graph, functions: Functions) -> dict[str, tuple[Any, ...]]:
    names = [f"t{index}" for index in range(len(graph))]
    return {
        name: (function, *[names[i] for i in upstream])
        for name, function, upstream in zip(names, functions, graph, strict=True)
    }
