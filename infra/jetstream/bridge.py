"""From threads into asyncio: one event loop in one background thread, shared by the whole process.

The `eventsourcing` library is synchronous and nats-py is not. Whoever needs the loop acquires the
bridge and releases it; the thread is there from the first to the last of them. All inserts of all
threads meet on that loop, which is what lets them share a commit.

- `run` blocks its thread until a coroutine is done, never for longer than its timeout.
- A bridge belongs to the process that started it. After a fork the child has no such thread:
  what the parent made says so (InterfaceError) and what the child makes gets a bridge of its own.
- The thread is a daemon, and what is still open is closed at exit: a factory that nobody closed
  keeps no program from ending.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import functools
import logging
import os
import threading
from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeVar

from eventsourcing.persistence import InterfaceError, ProgrammingError

from infra.jetstream.errors import StoreUnavailable
from infra.loop import new_loop

log = logging.getLogger(__name__)

_T = TypeVar("_T")
Closing = Callable[[], Coroutine[Any, Any, None]]

THREAD_NAME = "jetstream-loop"
END_TIMEOUT_S = 5.0
TASKS_TIMEOUT_S = 1.0


class Reply(Generic[_T]):
    """What a thread waits for and the loop gives, once: a result or an error.

    Less than a `concurrent.futures.Future`, and a good deal cheaper: this is in the way of every
    insert.
    """

    __slots__ = ("_error", "_given", "_result", "_settled", "task")

    def __init__(self) -> None:
        self.task: asyncio.Task[Any] | None = None
        """What works on it, if anything that can be cancelled does."""
        self._settled = False
        self._given = threading.Lock()
        self._given.acquire()
        self._result: _T | None = None
        self._error: BaseException | None = None

    def give(self, result: _T) -> None:
        """Lets the thread go with a result."""
        if not self._settled:
            self._settled = True
            self._result = result
            self._given.release()

    def fail(self, error: BaseException) -> None:
        """Lets the thread go with an error, which is raised there."""
        if not self._settled:
            self._settled = True
            self._error = error
            self._given.release()

    def wait(self, timeout: float) -> _T:
        """The result. Raises the error; StoreUnavailable when neither came within the timeout."""
        if not self._given.acquire(timeout=timeout):
            raise StoreUnavailable(f"no answer within {timeout:g} s; try again")
        if self._error is not None:
            raise self._error
        return self._result  # type: ignore[return-value]  # given, or there is an error


class Bridge:
    """An event loop that runs in a thread of its own. Made by `acquire`, ended by `release`."""

    _shared: Bridge | None = None
    _guard = threading.RLock()  # re-entered when the garbage collector closes something meanwhile

    def __init__(self) -> None:
        self.loop = new_loop()
        self._pid = os.getpid()
        self._users = 0
        self._at_end: list[Closing] = []
        self._waited_for: set[Reply[Any]] = set()
        self._thread = threading.Thread(target=self._serve, name=THREAD_NAME, daemon=True)
        self._thread.start()

    @classmethod
    def acquire(cls) -> Bridge:
        """The process's bridge, for as long as it is not released again."""
        with cls._guard:
            if cls._shared is None:
                cls._shared = cls()
            cls._shared._users += 1
            return cls._shared

    def release(self, last: Coroutine[Any, Any, None] | None = None, *, wait: float = 0.0) -> None:
        """Gives the bridge back, after running `last` on it.

        Waits up to `wait` seconds for that, and for the thread to end when nobody else has the
        bridge; 0 returns at once (and is all that the loop's own thread may do).
        """
        if not self.is_here:
            _discard(last)
            return
        with self._guard:
            self._users -= 1
            unused = self._users == 0
            if unused and Bridge._shared is self:
                Bridge._shared = None
        done = threading.Event()
        if not self._send(self._finish(last, done, stop=unused)):
            _discard(last)
            return
        if wait and not self.is_inside:
            done.wait(wait)
            if unused:
                self._thread.join(wait)

    def at_end(self, closing: Closing) -> None:
        """Has `closing` run on the loop when the program ends, unless it is taken back before."""
        with self._guard:
            self._at_end.append(closing)

    def not_at_end(self, closing: Closing) -> None:
        """Takes `at_end` back."""
        with self._guard:
            if closing in self._at_end:
                self._at_end.remove(closing)

    @property
    def is_here(self) -> bool:
        """Whether this is the process that the bridge was made in."""
        return os.getpid() == self._pid

    @property
    def is_inside(self) -> bool:
        """Whether the caller is on the bridge's own thread, which must not wait for itself."""
        return threading.current_thread() is self._thread

    def run(self, coroutine: Coroutine[Any, Any, _T], timeout: float) -> _T:
        """Runs a coroutine on the loop and returns its result, or raises what it raises.

        Raises StoreUnavailable when it is not done within `timeout` seconds (it is cancelled then),
        InterfaceError when the bridge is closed or belongs to another process, ProgrammingError on
        the loop itself.
        """

        def start(reply: Reply[_T]) -> None:
            reply.task = self.loop.create_task(coroutine)
            reply.task.add_done_callback(functools.partial(_hand_on, reply))

        return self.call(start, timeout, coroutine)

    def call(
        self,
        start: Callable[[Reply[_T]], None],
        timeout: float,
        unused: Coroutine[Any, Any, _T] | None = None,
    ) -> _T:
        """Calls `start` on the loop with a reply, and waits for that. Raises as `run` does.

        `unused` is closed when `start` will never be called.
        """
        reply: Reply[_T] = Reply()
        try:
            self._check_caller()
            self._waited_for.add(reply)
            self.loop.call_soon_threadsafe(start, reply)
        except BaseException as error:
            self._waited_for.discard(reply)
            _discard(unused)
            if isinstance(error, RuntimeError):
                raise InterfaceError("the factory is closed; construct a new one") from error
            raise
        try:
            return reply.wait(timeout)
        except BaseException:
            if reply.task is not None and not reply.task.done():  # timed out, or interrupted
                self._cancel(reply.task)
            raise
        finally:
            self._waited_for.discard(reply)

    def _check_caller(self) -> None:
        if not self.is_here:
            raise InterfaceError(
                "this was opened before the process forked, and its connections belong to the "
                "parent: construct the application (or factory) after forking"
            )
        if self.is_inside:
            raise ProgrammingError("a recorder cannot be used on its own event loop")

    def _cancel(self, task: asyncio.Task[Any]) -> None:
        with contextlib.suppress(RuntimeError):
            self.loop.call_soon_threadsafe(task.cancel)

    def spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """Starts a coroutine on the loop and returns at once; nothing when the bridge is closed."""
        if not self.is_here or not self._send(coroutine):
            _discard(coroutine)

    def _send(self, coroutine: Coroutine[Any, Any, None]) -> bool:
        try:
            self.loop.call_soon_threadsafe(lambda: self.loop.create_task(coroutine))
        except RuntimeError:  # the loop is closed
            _discard(coroutine)
            return False
        return True

    async def _finish(
        self, last: Coroutine[Any, Any, None] | None, done: threading.Event, *, stop: bool
    ) -> None:
        try:
            if last is not None:
                await last
        except Exception as error:  # noqa: BLE001 (nobody is left to be told)
            log.info("closing failed: %r", error)
        finally:
            done.set()
            if stop:
                self.loop.stop()

    def _serve(self) -> None:
        asyncio.set_event_loop(self.loop)
        try:
            self.loop.run_forever()
            self.loop.run_until_complete(_end_tasks())
            for reply in list(self._waited_for):
                reply.fail(_closed_meanwhile())
            self.loop.run_until_complete(self.loop.shutdown_asyncgens())
        finally:
            asyncio.set_event_loop(None)
            self.loop.close()

    async def _close_everything(self) -> None:
        await asyncio.gather(*(close() for close in self._at_end), return_exceptions=True)

    @classmethod
    def _at_exit(cls) -> None:
        with cls._guard:
            shared, cls._shared = cls._shared, None
        if shared is not None and shared.is_here:
            done = threading.Event()
            if shared._send(shared._finish(shared._close_everything(), done, stop=True)):
                done.wait(END_TIMEOUT_S)
                shared._thread.join(END_TIMEOUT_S)

    @classmethod
    def _after_fork(cls) -> None:
        cls._guard = threading.RLock()  # whoever held it is not here
        cls._shared = None


def _hand_on(reply: Reply[_T], task: asyncio.Task[_T]) -> None:
    """Gives what became of a task to whoever waits for it."""
    if task.cancelled():
        reply.fail(_closed_meanwhile())
    elif (error := task.exception()) is not None:
        reply.fail(error)
    else:
        reply.give(task.result())


def _closed_meanwhile() -> InterfaceError:
    return InterfaceError("the factory was closed meanwhile; construct a new one")


async def _end_tasks() -> None:
    """Cancels what is left; a task that will not end is not waited for for long."""
    left = asyncio.all_tasks() - {asyncio.current_task()}
    for task in left:
        task.cancel()
    if left:
        await asyncio.wait(left, timeout=TASKS_TIMEOUT_S)


def _discard(coroutine: Coroutine[Any, Any, Any] | None) -> None:
    if coroutine is not None:
        coroutine.close()


atexit.register(Bridge._at_exit)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=Bridge._after_fork)
