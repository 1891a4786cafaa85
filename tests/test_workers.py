"""The contract between a run and its workers, with a fake run that says what is ready.

All pools are given the same graphs; what differs (threads, order) is tested below, and in ``test_coroutines.py``.
"""

import contextvars
import threading
from types import SimpleNamespace

import pytest

from flowkit import FlowkitError
from flowkit.context import holder
from flowkit.engine.loops import PrivateLoop
from flowkit.engine.workers import NotStartedError, Worker, context_for
from flowkit.engine.workers.coroutines import CoroutinePool
from flowkit.engine.workers.inline import InlinePool
from flowkit.engine.workers.threads import ThreadPool
from flowkit.states import FAILED, PENDING, SUCCEEDED


class FakeRun:
    """Says what becomes ready by counting down, and notes who did what.

    Attributes:
        done: The ids in the order in which they ended.
        threads: The thread that made each attempt.
        most: The most attempts that were made at once.
        finished: Set when every id has ended.
    """

    def __init__(self, upstream, funcs=None):
        count = len(upstream)
        self.record = SimpleNamespace(
            upstream=upstream, state=bytearray(count), started=[0.0] * count, workers=[None] * count,
            names=[f"t{i}" for i in range(count)], attempts_of=lambda i: 1, values=[None] * count,
            ended=[0.0] * count, items={},
        )  # fmt: skip
        self.missing = [len(before) for before in upstream]
        self.downstream = [[j for j, before in enumerate(upstream) if i in before] for i in range(count)]
        self.funcs = funcs or {}
        self.lock = threading.Lock()
        self.done, self.errors, self.threads, self.inside, self.most = [], {}, {}, 0, 0
        self.abandoned = set()
        self.finished = threading.Event()
        self.reading = 0.0
        self.is_stopped = False
        self.admitted = set()
        self.scheduler = SimpleNamespace(is_calm=True)
        self.is_plain = False
        self.check_interrupt = lambda: None
        self.timers = []

    def admits(self, i):
        return i in self.admitted

    def now(self):
        self.reading += 1.0
        return self.reading

    def call_of(self, worker):
        def call(i):
            with self.lock:
                self.threads[i] = threading.current_thread()
                self.inside += 1
                self.most = max(self.most, self.inside)
            try:
                return self.funcs[i]() if i in self.funcs else i
            finally:
                with self.lock:
                    self.inside -= 1

        return call

    def succeeded(self, worker, i, value):
        return self._end(worker, i, SUCCEEDED)

    def failed(self, worker, i, error):
        self.errors[i] = error
        return self._end(worker, i, FAILED)

    def _end(self, worker, i, state):
        with self.lock:
            if worker.is_abandoned:
                return None
            self.record.state[i] = state
            self.done.append(i)
            ready = []
            for j in self.downstream[i]:
                self.missing[j] -= 1
                if not self.missing[j]:
                    ready.append(j)
            if len(self.done) == len(self.record.state):
                self.finished.set()
            return ready

    def task_context(self, worker, i):
        return (worker.name, i)

    # What only an inline pool asks.

    timers = ()
    is_plain = False
    scheduler = SimpleNamespace(is_calm=True)

    def starts_now(self, i):
        return self.record.state[i] == PENDING

    def run_timers(self): ...

    def is_backing_off(self, i=None):
        return False

    def check_process(self): ...

    # What only a pool of coroutines asks.

    context = contextvars.copy_context()

    async def start_coroutine(self, worker, i, enter):
        return self.call_of(worker)(i)

    def check_value(self, i, value): ...


def roots(run):
    return [i for i, before in enumerate(run.record.upstream) if not before]


def run_all(upstream, make, funcs=None):
    """Run everything in the pool that *make* makes, close it and return the fake run."""
    run = FakeRun(upstream, funcs)
    pool = make(run)
    pool.add(roots(run))
    if isinstance(pool, InlinePool):
        pool.work()
    assert run.finished.wait(5)
    pool.close()
    assert not any(thread.is_alive() for thread in {*run.threads.values()} - {threading.current_thread()})
    return run


def inline(run, timeouts=None, pick=None):
    return InlinePool(run, timeouts or {}, PrivateLoop(), pick)


CHAIN = [[], [0], [1], [2], [3]]
DIAMOND = [[], [0], [0], [0], [1, 2, 3]]
POOLS = {
    "inline": inline,
    "inline, last first": lambda run: inline(run, pick=lambda ready: len(ready) - 1),
    "one thread": lambda run: ThreadPool(run, 1),
    "four threads": lambda run: ThreadPool(run, 4),
    "coroutines": lambda run: CoroutinePool(run, None),
    "two coroutines": lambda run: CoroutinePool(run, 2),
}


@pytest.fixture(params=POOLS)
def make(request):
    return POOLS[request.param]


# ---------------------------------------------------------------- the contract


FAN_OUT, FAN_IN = [[], *[[0]] * 20], [*[[]] * 20, list(range(20))]


@pytest.mark.parametrize("upstream", [CHAIN, DIAMOND, [[]] * 20, FAN_OUT, FAN_IN])
def test_every_attempt_is_made_once_and_after_what_it_needs(make, upstream):
    run = run_all(upstream, make)
    assert sorted(run.done) == list(range(len(upstream)))
    place = {i: n for n, i in enumerate(run.done)}
    assert all(place[u] < place[i] for i, before in enumerate(upstream) for u in before)


def test_an_attempt_that_raises_is_told_as_failed_and_the_pool_goes_on(make):
    """0 ─► 1, 2 ─► 3; 0 and 2 raise"""
    error, stop = ValueError("no"), SystemExit(3)

    def raising(what):
        raise what

    funcs = {0: lambda: raising(error), 2: lambda: raising(stop)}
    run = run_all([[], [0], [], [2]], make, funcs)
    assert run.errors == {0: error, 2: stop}
    assert bytes(run.record.state) == bytes([FAILED, SUCCEEDED, FAILED, SUCCEEDED])


def test_the_start_and_the_worker_of_an_attempt_are_noted(make):
    run = run_all(DIAMOND, make)
    assert all(run.record.started)
    assert all(run.record.workers)
    assert run.record.started[0] < run.record.started[4]


def test_a_worker_knows_its_attempt_and_only_while_it_makes_it(make):
    """0 ─► 1"""
    seen = []

    def look():
        (worker,) = pool.working()
        seen.append((worker.current, worker.task_context()))

    run = FakeRun([[], [0]], {0: look, 1: look})
    pool = make(run)
    pool.add([0])
    if isinstance(pool, InlinePool):
        pool.work()
    assert run.finished.wait(5)
    pool.close()
    assert [i for i, _ in seen] == [0, 1]
    assert [context[1] for _, context in seen] == [0, 1]
    assert seen[0][1][0] == run.record.workers[0]


def test_a_closed_pool_without_work_leaves_no_thread(make):
    run = FakeRun([[]])
    pool = make(run)
    pool.close()
    assert pool.working() == []
    assert run.done == []


# ---------------------------------------------------------------- threads


def test_a_chain_stays_on_one_thread():
    """0 ─► 1 ─► 2 ─► 3 ─► 4"""
    run = run_all(CHAIN, POOLS["four threads"])
    assert len(set(run.threads.values())) == 1
    assert set(run.record.workers) == {"thread-1"}
    assert run.threads[0].name == "flowkit-thread-1"
    assert run.threads[0].daemon


def test_a_surplus_wakes_another_thread():
    """0 ─► 1, 2, 3: each of the three waits until all are inside"""
    together = threading.Barrier(3)
    funcs = dict.fromkeys((1, 2, 3), lambda: together.wait(5))
    run = run_all([[], [0], [0], [0]], POOLS["four threads"], funcs)
    assert run.errors == {}
    assert len({run.threads[i] for i in (1, 2, 3)}) == 3
    assert run.threads[1] is run.threads[0]  # the first that became ready goes on where it was


def test_threads_that_sleep_are_woken_again_before_new_ones_are_started():
    """Ten times: 0 ─► three that wait for each other ─► next"""
    upstream, funcs = [[]], {}
    for _ in range(10):
        first = len(upstream)
        together = threading.Barrier(3)
        upstream += [[first - 1]] * 3
        funcs |= dict.fromkeys(range(first, first + 3), lambda together=together: together.wait(5))
        upstream.append([first, first + 1, first + 2])
    run = run_all(upstream, lambda run: ThreadPool(run, 8), funcs)
    assert run.errors == {}
    assert 3 <= len(set(run.threads.values())) <= 4


@pytest.mark.parametrize("size", [1, 2, 3])
def test_there_are_never_more_attempts_at_once_than_the_size(size):
    """0 ─► 60 tasks that wait for each other in groups of the size"""
    together = threading.Barrier(size)
    funcs = dict.fromkeys(range(1, 61), lambda: together.wait(5))
    run = run_all([[], *[[0]] * 60], lambda run: ThreadPool(run, size), funcs)
    assert run.errors == {}
    assert run.most == size
    assert len(set(run.threads.values())) == size


def test_work_added_later_is_made_too():
    run = FakeRun([[], [], []])
    pool = ThreadPool(run, 2)
    for i in range(3):
        pool.add([i])
    assert run.finished.wait(5)
    pool.close()
    assert sorted(run.done) == [0, 1, 2]


def test_adding_nothing_starts_no_thread():
    before = threading.enumerate()
    pool = ThreadPool(FakeRun([[]]), 2)
    pool.add([])
    assert threading.enumerate() == before
    pool.close()


def test_a_closed_pool_starts_no_thread():
    run = FakeRun([[]])
    pool = ThreadPool(run, 2)
    pool.close()
    before = threading.enumerate()
    pool.add([0])
    assert threading.enumerate() == before
    assert pool.working() == []


def test_what_has_not_started_can_be_withdrawn():
    """One thread, busy with 0; 1, 2 and 3 wait"""
    inside, go_on = threading.Event(), threading.Event()
    run = FakeRun([[]] * 4, {0: lambda: inside.set() or go_on.wait(5)})
    pool = ThreadPool(run, 1)
    pool.add([0, 1, 2, 3])
    assert inside.wait(5)
    assert pool.withdraw() == [1, 2, 3]
    assert pool.withdraw() == []
    go_on.set()
    pool.close()
    assert run.done == [0]


def test_withdrawing_gives_way_to_a_worker_that_was_faster():
    """The queue is seen full and found empty."""

    class Emptied(list):
        def __bool__(self):
            return True

        def popleft(self):
            raise IndexError

    pool = ThreadPool(FakeRun([[]]), 1)
    pool._ready = Emptied()
    assert pool.withdraw() == []


def test_an_abandoned_worker_ends_and_another_takes_its_place():
    """One thread, stuck in 0; 1 waits"""
    inside, go_on = threading.Event(), threading.Event()
    run = FakeRun([[], []], {0: lambda: inside.set() or go_on.wait(5)})
    pool = ThreadPool(run, 1)
    pool.add([0, 1])
    assert inside.wait(5)
    (stuck,) = pool.working()
    with run.lock:
        stuck.is_abandoned = True
        assert pool.abandon(stuck) == 1
    run.done.append(0)  # as the run does when it gives up on an attempt
    pool.add([])
    assert run.finished.wait(5)
    assert run.done == [0, 1]
    assert run.threads[1] is not run.threads[0]
    go_on.set()
    run.threads[0].join(5)
    pool.close()
    assert run.done == [0, 1]  # what the abandoned one said has changed nothing


def test_a_worker_that_takes_the_place_of_another_has_a_name_of_its_own():
    """0, 1 and 2 stay on three threads; the first is abandoned, and 3 runs on the one that takes its place"""
    inside, go_on = threading.Barrier(4), threading.Event()

    def stay():
        inside.wait(5)
        go_on.wait(5)

    run = FakeRun([[]] * 4, dict.fromkeys((0, 1, 2), stay) | {3: go_on.set})
    pool = ThreadPool(run, 3)
    pool.add([0, 1, 2])
    inside.wait(5)
    stuck = next(worker for worker in pool.working() if worker.current == 0)
    stuck.is_abandoned = True
    assert pool.abandon(stuck) == 1
    run.done.append(0)
    pool.add([3])
    assert run.finished.wait(5)
    pool.close()
    run.threads[0].join(5)
    assert len(set(run.record.workers)) == 4


def test_closing_waits_for_the_attempts_but_not_for_abandoned_ones():
    inside, go_on = threading.Barrier(3), threading.Event()

    def stay():
        inside.wait(5)
        go_on.wait(5)

    run = FakeRun([[], []], dict.fromkeys((0, 1), stay))
    pool = ThreadPool(run, 2)
    pool.add([0, 1])
    inside.wait(5)
    for worker in pool.working():
        worker.is_abandoned = True
    assert pool.close() == 0  # whoever abandoned them has counted them
    assert run.done == []
    go_on.set()
    for thread in run.threads.values():
        thread.join(5)


def test_in_a_stopped_run_only_what_the_run_admits_is_started():
    """0, 1, 2, of which the run admits 1 when it is stopped"""
    run = FakeRun([[], [], []])
    run.is_stopped, run.admitted = True, {1}
    pool = ThreadPool(run, 1)
    pool.add([0, 1, 2])
    assert run.finished.wait(5)
    pool.close()
    assert set(run.threads) == {1}
    assert {i: type(error) for i, error in run.errors.items()} == {0: NotStartedError, 2: NotStartedError}


def test_who_is_idle_is_told_to_whoever_wants_to_know():
    told = threading.Event()
    run = FakeRun([[]])
    pool = ThreadPool(run, 2, told.set)
    pool.add([0])
    assert told.wait(5)
    assert pool.working() == []
    pool.close()


def refuse(mocker, times):
    """Let the first *times* starts of a thread fail, as on a machine that has no more."""
    start, left = threading.Thread.start, [times]

    def start_or_refuse(thread):
        if thread.name.startswith("flowkit-thread") and left[0]:
            left[0] -= 1
            raise RuntimeError("can't start new thread")
        start(thread)

    mocker.patch.object(threading.Thread, "start", start_or_refuse)


def test_without_a_single_thread_adding_work_is_an_error(mocker):
    refuse(mocker, 1)
    pool = ThreadPool(FakeRun([[]]), 2)
    with pytest.raises(FlowkitError, match="cannot start a thread to run tasks on: can't start new thread"):
        pool.add([0])
    assert pool.working() == []
    pool.close()


def test_with_some_threads_the_pool_makes_do(mocker):
    """0 ─► 1, 2, 3, 4 on at most four threads, of which there is only one"""
    run = FakeRun([[], *[[0]] * 4], {0: lambda: refuse(mocker, 99)})
    pool = ThreadPool(run, 4)
    pool.add([0])
    assert run.finished.wait(5)
    pool.close()
    assert len(set(run.threads.values())) == 1


@pytest.mark.parametrize("attempt", range(20))
def test_no_wake_up_is_lost_between_a_worker_that_lies_down_and_one_that_shares(attempt):
    """30 times: a pair on two threads, where one ends first and lies down while the other shares"""
    upstream = [[]]
    for _ in range(30):
        last = len(upstream) - 1
        upstream += [[last], [last], [last + 1, last + 2]]
    run = run_all(upstream, lambda run: ThreadPool(run, 2))
    assert len(run.done) == len(upstream)


class Waker(list):
    """The list of sleeping workers of a pool; somebody shares an id and wakes the first that lies down, at once."""

    def append(self, worker):
        super().append(worker)
        if self.late:
            self.remove(worker)
            self.pool._is_rousing = True
            worker.gate.release()
            self.pool._ready.append(self.late.pop())


def test_a_worker_that_is_woken_before_it_sleeps_takes_the_wake_up_with_it():
    """0, then 1 is shared in the moment in which the worker lies down."""
    run = FakeRun([[], []])
    pool = ThreadPool(run, 1)
    pool._idle = waker = Waker()
    waker.pool, waker.late = pool, [1]
    pool.add([0])
    assert run.finished.wait(5)
    pool.close()
    assert run.done == [0, 1]


# ---------------------------------------------------------------- inline


def test_inline_runs_in_the_calling_thread_in_the_order_of_ids():
    """0 ─► 3, 1 ─► 2"""
    run = FakeRun([[], [], [1], [0]])
    pool = inline(run)
    pool.work()
    assert run.done == [0, 1, 2, 3]
    assert set(run.threads.values()) == {threading.current_thread()}
    assert run.record.workers == ["main"] * 4


def test_inline_takes_the_ready_ids_in_the_order_in_which_they_are_picked():
    """0, 1 ─► 2"""
    run = FakeRun([[], [], [1]])
    pool = inline(run, pick=lambda ready: len(ready) - 1)
    pool.add([0, 1])
    pool.work()
    assert run.done == [1, 2, 0]


def test_inline_withdraws_what_is_ready_but_not_what_it_is_in():
    """0, 1, 2 ─► 3; last first, so 2 comes first"""
    withdrawn = []
    run = FakeRun([[], [], [], [2]], {2: lambda: withdrawn.extend(pool.withdraw())})
    pool = inline(run, pick=lambda ready: len(ready) - 1)
    pool.add([0, 1, 2])
    pool.work()
    assert withdrawn == [0, 1]
    assert run.done == [2, 3]


@pytest.mark.parametrize("pick", [None, lambda ready: 0])
def test_inline_leaves_out_what_is_final_already(pick):
    """0, 1"""
    run = FakeRun([[], []], {0: lambda: run.record.state.__setitem__(1, FAILED)})
    pool = inline(run, pick=pick)
    pool.add([0, 1])
    pool.work()
    assert run.done == [0]


def test_inline_asks_about_each_id_once_something_has_gone_wrong():
    """0, 1, 2, of which the run lets 2 start"""
    run = FakeRun([[], [], []])
    run.scheduler = SimpleNamespace(is_calm=False)
    run.starts_now = lambda i: i == 2
    inline(run).work()
    assert run.done == [2]


def test_inline_notes_the_results_itself_in_a_run_that_nobody_watches():
    """0, 1: 1 raises"""
    run = FakeRun([[], []], {0: lambda: "value", 1: lambda: {}["no"]})
    run.is_plain = True
    inline(run).work()
    assert (run.record.values[0], run.record.state[0]) == ("value", SUCCEEDED)
    assert run.record.ended[0] > run.record.started[0] > 0
    assert list(run.errors) == [1]


def test_inline_judges_a_timeout_when_the_attempt_returns():
    run = FakeRun([[], []])
    inline(run, {0: 0.5, 1: 100.0}).work()  # the fake clock moves on by 1 with each look
    assert list(run.errors) == [0]
    assert str(run.errors[0]) == "attempt 1 of task 't0' took longer than its timeout of 0.5 s"


def test_the_calling_thread_cannot_be_left_behind():
    pool = inline(FakeRun([[]]))
    assert pool.abandon(pool.worker) == 0
    assert pool.close() == 0
    assert pool.working() == []
    assert not pool.is_starting()


# ---------------------------------------------------------------- the worker itself


def test_between_attempts_a_worker_has_no_context():
    worker = Worker(FakeRun([[]]), None, "one")
    assert worker.task_context() is None
    worker.current = 0
    assert worker.task_context() == ("one", 0)
    assert not worker.is_inline


def test_a_worker_is_found_in_its_own_copy_of_the_context_only():
    worker = Worker(FakeRun([[]]), None, "one")
    own = context_for(worker, contextvars.copy_context())
    assert own.run(holder.get) is worker
    assert holder.get() is None
