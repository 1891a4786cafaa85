"""Functions of mapped tasks, which worker processes import.

An item is a pair: what its attempts do, and a number. :func:`behave` and :func:`behave_soon` do the same.
"""

import asyncio
import os
import time

from flowkit import GiveUp, RetryAfter, Skip, current_context


def echo(rows):
    return rows


def keep(values):
    return values


def behave(item, context):
    kind, number = item
    if kind == "skip":
        raise Skip(f"no {number}")
    if kind == "fail" or (kind == "flaky" and context.attempt == 1):
        raise ValueError(f"refused {number}")
    if kind == "give_up":
        raise GiveUp("no use")
    if kind == "retry_after" and context.attempt == 1:
        raise RetryAfter(0.001)
    return 10 * number


async def behave_soon(item, context):
    await asyncio.sleep(0)
    return behave(item, context)


def is_wanted(item):
    """Hold for all items but those that are off; raise for an unclear one."""
    if item[0] == "unclear":
        raise LookupError("unclear")
    return item[0] != "off"


def ten():
    return 10


def double(x):
    return 2 * x


async def double_soon(x):
    await asyncio.sleep(0)
    return 2 * x


def scale(x, factor, *, offset=0):
    return factor * x + offset


def repeat(whole, times):
    return whole * times


def look_around(x, context):
    """Return who is called, by the context and by current_context()."""
    assert current_context().task_name == context.task_name
    return context.task_name, context.attempt, sorted(context.upstream)


async def look_around_soon(x, context):
    await asyncio.sleep(0)
    return look_around(x, context)


def count_upstream_items(context):
    """Return how many items the mapped task upstream had."""
    return [len(run.items) for run in context.upstream.values()]


def hang(x):
    """Take a minute for the item 1."""
    if x == 1:
        time.sleep(60)
    return x


async def hang_soon(x):
    if x == 1:
        await asyncio.sleep(60)
    return x


def hang_all(x, path):
    """Say by a file that an item has begun, and take a minute."""
    with open(os.path.join(path, str(x)), "x"):
        pass
    time.sleep(60)
