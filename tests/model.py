"""The reference model: what a run with ``fail_fast=False`` gives, said without any of the engine's code."""

import zlib

GOOD, SKIP, FAILED = "succeeded", "skipped", "failed"
FAILURES, BAD = {FAILED, "upstream_failed"}, {FAILED, "upstream_failed", "cancelled"}
RULES = {  # each gets the final states of the upstream tasks, at least one
    "none_failed": lambda ups: GOOD in ups and not BAD & set(ups),
    "all_success": lambda ups: set(ups) == {GOOD},
    "one_success": lambda ups: GOOD in ups,
    "all_done": lambda ups: True,
    "one_failed": lambda ups: bool(FAILURES & set(ups)),
    "all_failed": lambda ups: set(ups) <= FAILURES,
}


def value_of(name, attempt, given):
    """What attempt number *attempt* of *name* returns: a fingerprint of itself and of everything upstream."""
    return zlib.crc32(repr((name, attempt, given)).encode())


def predict(plans):
    """Return the state, the attempts made and the value of each of *plans*, which are in topological order."""
    state, attempts, value = {}, {}, {}
    for task in plans:
        name, ups, attempts[task.name], value[task.name] = task.name, [state[u] for u in task.upstream], 0, None
        if ups and not RULES[task.rule](ups):
            state[name] = "upstream_failed" if BAD & set(ups) else SKIP
        elif task.when in (False, "raises"):  # asked once, before attempt 1
            state[name] = FAILED if task.when == "raises" else SKIP
        else:
            for n in range(1, task.retries + 2):
                outcome = task.script[min(n, len(task.script)) - 1]  # the last entry repeats
                attempts[name], state[name] = n, {"ok": GOOD, "skip": SKIP}.get(outcome, FAILED)
                if outcome not in {"fail", "timeout", "retry_after"}:  # "give_up" and "exit" are not retried
                    break
            if state[name] == GOOD:
                value[name] = value_of(name, n, tuple(value[u] for u in task.upstream))
    return state, attempts, value
