"""A loop of one's own, for coroutines that are run from a thread that is not a loop's."""

import asyncio
import contextvars
import gc
import signal
import threading
import warnings

import pytest

from flowkit.engine.loops import PrivateLoop

variable = contextvars.ContextVar("variable", default="none")


@pytest.fixture(autouse=True)
def no_warnings():
    """Fail if anything warned, as of a coroutine that was never awaited, which Python cannot raise."""
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        yield
        gc.collect()
    assert [str(warning.message) for warning in warned] == []


@pytest.fixture
def loop():
    made = PrivateLoop()
    yield made
    made.close()


def in_a_loop(call):
    """Return what *call* gives, made in a thread in which an event loop runs."""

    async def main():
        return call()

    return asyncio.run(main())


@pytest.fixture(params=["outside of a loop", "inside of a loop"])
def from_where(request):
    """How a call is made: as it is, or in a thread in which a loop runs."""
    return in_a_loop if request.param == "inside of a loop" else lambda call: call()


async def give(value=1):
    await asyncio.sleep(0)
    return value


async def forever():
    await asyncio.Event().wait()


def test_run_gives_what_the_coroutine_gives(loop, from_where):
    assert from_where(lambda: loop.run(give(5))) == 5
    assert from_where(lambda: loop.run(give(None))) is None


def test_whatever_can_be_awaited_can_be_run(loop, from_where):
    class Awaitable:
        def __await__(self):
            yield from asyncio.sleep(0).__await__()
            return 7

    assert from_where(lambda: loop.run(Awaitable())) == 7


@pytest.mark.parametrize("error", [ValueError("no"), SystemExit(3), KeyboardInterrupt(), asyncio.CancelledError(),
                                   GeneratorExit(), MemoryError(), StopAsyncIteration()],
                         ids=lambda e: type(e).__name__)  # fmt: skip
def test_run_raises_what_the_coroutine_raises_and_goes_on_with_the_next(loop, error, from_where):
    async def bad():
        await asyncio.sleep(0)
        raise error

    def both():
        with pytest.raises(type(error)) as caught:
            loop.run(bad())
        return caught.value, loop.run(give(2))

    assert from_where(both) == (error, 2)


def test_an_error_has_no_part_in_how_the_loop_was_found(loop, from_where):
    """Its traceback would say "During handling of the above exception", which was none of the user's."""

    async def bad():
        raise ValueError("no")

    def call():
        with pytest.raises(ValueError, match="no") as caught:
            loop.run(bad())
        return caught.value.__context__

    assert from_where(call) is None


def test_all_coroutines_run_on_one_loop(loop, from_where):
    async def which():
        return asyncio.get_running_loop()

    assert from_where(lambda: loop.run(which())) is from_where(lambda: loop.run(which()))


def test_outside_of_loops_it_runs_in_the_calling_thread(loop):
    async def where():
        return threading.current_thread()

    assert loop.run(where()) is threading.current_thread()
    assert in_a_loop(lambda: loop.run(where())) is not threading.current_thread()


def test_the_loop_that_runs_already_is_the_running_one_again_afterwards(loop):
    def call():
        here = asyncio.get_running_loop()
        loop.run(give())
        return asyncio.get_running_loop() is here

    assert in_a_loop(call) is True


def test_a_loop_can_be_used_from_one_thread_after_the_other(loop):
    found = []
    for n in range(5):
        thread = threading.Thread(target=lambda n=n: found.append(loop.run(give(n))))
        thread.start()
        thread.join(5)
    assert found == [0, 1, 2, 3, 4]


def test_what_a_coroutine_leaves_running_goes_on_with_the_next_one(loop, from_where):
    done = []

    async def background():
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        done.append(1)

    async def first():
        done.append(asyncio.create_task(background()))

    async def second():
        await done[0]
        return done[1:]

    from_where(lambda: loop.run(first()))
    assert from_where(lambda: loop.run(second())) == [1]


# ---------------------------------------------------------------- context variables


def test_the_coroutine_sees_the_callers_context_variables_and_changes_none(loop, from_where):
    async def change():
        before = variable.get()
        variable.set("changed")
        await asyncio.sleep(0)
        return before, variable.get()

    def call():
        variable.set("mine")
        return loop.run(change()), variable.get()

    assert from_where(lambda: contextvars.copy_context().run(call)) == (("mine", "changed"), "mine")


def test_the_coroutine_runs_in_the_context_that_it_is_given(loop, from_where):
    async def change():
        before = variable.get()
        variable.set("changed")
        return before

    context = contextvars.copy_context()
    context.run(variable.set, "given")
    assert from_where(lambda: loop.run(change(), context)) == "given"
    assert context[variable] == "changed"
    assert variable.get() == "none"


def test_an_empty_context_is_a_context_too(loop):
    async def ask():
        return variable.get()

    token = variable.set("mine")
    try:
        assert loop.run(ask(), contextvars.Context()) == "none"
    finally:
        variable.reset(token)


# ---------------------------------------------------------------- cancelling


def test_cancel_from_another_thread_ends_the_coroutine(loop, from_where):
    has_begun = threading.Event()

    async def wait():
        has_begun.set()
        await forever()

    def cancel():
        assert has_begun.wait(5)
        loop.cancel()

    def call():
        with pytest.raises(asyncio.CancelledError):
            loop.run(wait())
        return loop.run(give(2))

    thread = threading.Thread(target=cancel)
    thread.start()
    assert from_where(call) == 2
    thread.join(5)


def test_a_coroutine_may_end_well_in_spite_of_a_cancel(loop):
    async def stubborn():
        loop.cancel()
        try:
            await forever()
        except asyncio.CancelledError:
            return "done after all"

    assert loop.run(stubborn()) == "done after all"


def test_cancel_with_nothing_to_cancel_does_nothing(loop):
    loop.cancel()
    assert loop.run(give(1)) == 1
    loop.cancel()
    assert loop.run(give(2)) == 2
    loop.close()
    loop.cancel()


def test_cancel_is_for_the_coroutine_that_runs_and_not_for_the_next_one(loop):
    """The first one asks for it and ends before it comes."""

    async def quick():
        loop.cancel()
        return "quick"

    assert loop.run(quick()) == "quick"
    assert loop.run(give(2)) == 2


@pytest.mark.parametrize("rounds", [100, pytest.param(5000, marks=pytest.mark.soak)])
def test_cancel_at_any_moment_gives_the_value_or_the_cancellation(loop, rounds):
    stop, answers = threading.Event(), []

    def cancel():
        while not stop.is_set():
            loop.cancel()

    thread = threading.Thread(target=cancel)
    thread.start()
    try:
        for n in range(rounds):
            try:
                answers.append(loop.run(give(n)) == n)
            except asyncio.CancelledError:
                answers.append(True)
    finally:
        stop.set()
        thread.join(5)
    assert answers == [True] * rounds


# ---------------------------------------------------------------- the end


def test_close_cancels_what_is_left_running(loop, from_where):
    ended = []

    async def background():
        try:
            await forever()
        finally:
            await asyncio.sleep(0)
            ended.append(1)

    async def careless():
        kept.append(asyncio.create_task(background()))
        await asyncio.sleep(0)

    kept = []
    from_where(lambda: loop.run(careless()))
    assert ended == []
    from_where(loop.close)
    assert ended == [1]


def test_close_closes_async_generators(loop):
    closed = []

    async def numbers():
        try:
            yield 1
        finally:
            await asyncio.sleep(0)
            closed.append(1)

    async def careless():
        kept.append(numbers())
        return await anext(kept[0])

    kept = []
    assert loop.run(careless()) == 1
    loop.close()
    assert closed == [1]


def test_a_loop_that_was_never_used_can_be_closed_and_so_can_a_closed_one(loop):
    loop.close()
    loop.close()


def test_after_a_close_the_next_coroutine_gets_a_new_loop(loop):
    async def which():
        return asyncio.get_running_loop()

    first = loop.run(which())
    loop.close()
    second = loop.run(which())
    assert first.is_closed()
    assert first is not second


def test_the_callers_current_event_loop_stays_what_it_was():
    """A program from before ``asyncio.run`` has set a loop that it will run later."""
    found = []

    def main():
        mine = asyncio.new_event_loop()
        asyncio.set_event_loop(mine)
        loop = PrivateLoop()
        for act in (lambda: loop.run(give()), loop.close):
            act()
            try:
                found.append(asyncio.get_event_loop() is mine)
            except RuntimeError as error:
                found.append(str(error))
        asyncio.set_event_loop(None)
        mine.close()

    thread = threading.Thread(target=main)
    thread.start()
    thread.join(5)
    assert found == [True, True]


def test_the_handler_of_ctrl_c_stays_what_it_was(loop):
    """Also while the coroutine runs: who asked for the run listens already."""

    def handle(number, frame): ...

    async def look():
        return signal.getsignal(signal.SIGINT)

    before = signal.signal(signal.SIGINT, handle)
    try:
        assert loop.run(look()) is handle
        assert signal.getsignal(signal.SIGINT) is handle
    finally:
        signal.signal(signal.SIGINT, before)


def test_making_one_imports_no_asyncio(script):
    done = script("""
import sys
from flowkit.engine.loops import PrivateLoop
loop = PrivateLoop()
loop.cancel()
loop.close()
print("asyncio" in sys.modules)
async def give():
    return 1
print(loop.run(give()), "asyncio" in sys.modules)
loop.close()
""").finish()
    assert done.returncode == 0, done.err
    assert done.out == "False\n1 True\n"
