"""Run a DAG on a Dask cluster, and leave the data there.

Needs the extra: ``pip install flowkit[dask]``. Knows Dask's client. Does not know runs.

``dag.run(executor=client.get_executor(pure=False))`` runs on a cluster too, but every result comes back to this process
and goes out again. With a :class:`DaskExecutor` a result that only tasks on the cluster take stays on the worker that
computed it, and Dask moves it to where it is needed.
"""

from __future__ import annotations

import os
from concurrent.futures import Executor, Future, InvalidStateError
from importlib import import_module

from ..engine.workers import remote
from ..engine.workers.foreign import attempt_kept
from ..exceptions import OptionError, shown

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

__all__ = ["DaskExecutor"]

try:
    distributed: Any = import_module("distributed")
except ImportError as missing:
    raise ImportError("flowkit.integrations.dask needs Dask: pip install 'flowkit[dask]'") from missing


class DaskExecutor(Executor):
    """The workers of a Dask cluster as an executor: ``dag.run(executor=DaskExecutor(client))``.

    In the result, what stayed on the cluster is a ``distributed.Future``: ``result["clean"].result()`` fetches it, and
    it lives as long as the ``RunResult``. Results that no task takes, and those that a task outside of the cluster
    takes, are fetched at once.

    Args:
        client: A ``distributed.Client``. It is never closed here.

    Raises:
        OptionError: *client* is something else, or asynchronous.
    """

    def __init__(self, client: Any) -> None:
        if not isinstance(client, distributed.Client) or client.asynchronous:
            raise OptionError(f"DaskExecutor({shown(client)}): it takes a distributed.Client that is not asynchronous.")
        self._client = client

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Have *fn* called on the cluster; the result comes back."""
        return _promise(self._client.submit(fn, *args, **kwargs, pure=False), fetches=True)

    def submit_kept(
        self, _: Callable[..., Any], spec: Any, name: str, run_id: str, attempt: int, arguments: Any
    ) -> Future[Any]:
        """Have an attempt made on the cluster; the result stays there, and the answer is its ``distributed.Future``."""
        key = f"{name}-{run_id}-{attempt}-{os.urandom(4).hex()}"  # never the key of another run's data
        return _promise(
            self._client.submit(attempt_kept, spec, name, run_id, attempt, arguments, key=key, pure=False),
            fetches=False,
        )


class _Promise(Future):  # type: ignore[type-arg]
    """A future of concurrent.futures that follows one of Dask's."""

    def __init__(self, followed: Any) -> None:
        super().__init__()
        self.followed = followed

    def cancel(self) -> bool:
        self.followed.cancel()
        return super().cancel()


def _promise(followed: Any, *, fetches: bool) -> Future[Any]:
    promise = _Promise(followed)

    def pass_on(followed: Any) -> None:
        try:
            if followed.cancelled():
                promise.cancel()
                promise.set_running_or_notify_cancel()
                return
            error = followed.exception()
            if isinstance(error, remote.Ended):
                promise.set_result((error.answer, error.parts))
            elif error is not None:
                promise.set_exception(error)
            else:
                promise.set_result(followed.result() if fetches else ("kept", followed))
        except InvalidStateError:  # cancelled here in this moment
            return
        except BaseException as lost:  # noqa: BLE001 - the connection to the cluster, say
            if not promise.done():
                promise.set_exception(lost)

    followed.add_done_callback(pass_on)
    return promise
