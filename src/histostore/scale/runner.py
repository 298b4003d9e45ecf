"""Steps of many slides over the workers of a client: bounded in flight, counted, and each slide on its own feet."""

from __future__ import annotations

import queue
import secrets
import statistics
import time
from collections import Counter, deque
from concurrent.futures import CancelledError
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from distributed import get_worker
from distributed.client import ClosedClientError
from distributed.comm.core import CommClosedError
from distributed.scheduler import KilledWorker

from histostore.errors import DataError, HistostoreError, StorageError
from histostore.progress import Progress, Silent
from histostore.scale.checks import require_gpus, require_workers
from histostore.scale.task import Context, Task
from histostore.scale.versions import own_versions
from histostore.scale.work import perform

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from distributed import Client, Future

    from histostore.scale.task import Steps
    from histostore.store.store import Store

GONE = (CommClosedError, ClosedClientError, CancelledError)
"""What calls of a client raise when the scheduler went away."""
STARTS = "histostore-starts"
"""Topic of the events by which workers tell that a task begins."""
AHEAD = 2
"""Tasks in flight per thread of the workers: one at work, one that waits for it."""
LOOK_S = 0.5
COUNT_WORKERS_S = 5.0
ALONE_S = 60.0
"""How long a run waits for a worker when all are gone."""
SLOW_TIMES, SLOW_LEAST_S, SLOW_AFTER = 3.0, 10.0, 3
"""A straggler takes three times the median of at least three tasks, and ten seconds."""


@dataclass(slots=True)
class Tally:
    """What a run came to."""

    tasks: int = 0
    """That were answered."""
    starts: Counter[str] = field(default_factory=Counter)
    """How often each task began, by key: more than once where a worker was lost."""
    stragglers: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        again = sum(n > 1 for n in self.starts.values())
        return f"{self.tasks:,} tasks, {self.starts.total():,} starts" + (f", {again:,} started again" if again else "")


@dataclass(slots=True, eq=False)
class _Job:
    name: str
    steps: Steps[Any]
    answers: Any = None
    """Of the tasks it waits for; None before it has begun."""
    missing: int = 0


@dataclass(slots=True, eq=False)
class _Flying:
    job: _Job
    place: int
    task: Task
    future: Future
    begun: float = 0.0
    worker: str = ""
    told: bool = False


def on_worker(context: Context, task: Task, key: str) -> Any:
    """Do one task; the client is told that it begins."""
    worker = get_worker()
    worker.log_event(STARTS, {"key": key, "worker": worker.address})
    return perform(context, task, worker=worker.address)


class Runner:
    """Runs steps on a client, which stays open.

    Parameters
    ----------
    client
        A connected ``distributed.Client``.
    gpu
        Ask for one GPU per task: workers must offer the resource ``GPU`` and have a CUDA device.

    Raises
    ------
    UsageError
        There is no worker, or none with a GPU where one is demanded.
    SpecMismatchError
        A worker has other versions of what makes the bytes.
    """

    def __init__(self, client: Client, store: Store, *, gpu: bool = False, progress: Progress | None = None) -> None:
        self.tally = Tally()
        self._client = client
        self._progress = progress or Silent()
        self._token = secrets.token_hex(4)
        self._context = Context(store.uri, store.uuid, self._token, own_versions())
        self._resources = {"GPU": 1} if gpu else None
        self._done: queue.SimpleQueue[Future] = queue.SimpleQueue()
        self._open: list[_Job] = []
        self._ready: deque[tuple[_Job, int, Task]] = deque()
        self._flying: dict[str, _Flying] = {}
        self._ended: deque[tuple[str, Any]] = deque()
        self._took: list[float] = []
        self._threads, self._counted, self._seen = 1, 0.0, time.monotonic()
        try:
            require_workers(client, self._context.versions)
            if gpu:
                require_gpus(client)
        except GONE as error:
            raise self._lost() from error

    def ask(self, task: Task) -> Any:
        """Do one task on any worker and return its answer, or raise its error."""

        def steps() -> Steps[Any]:
            (answer,) = yield [task]
            return answer

        ((_, answer),) = list(self.run([("", steps())]))
        if isinstance(answer, HistostoreError):
            raise answer
        return answer

    def run(self, jobs: Iterable[tuple[str, Steps[Any]]]) -> Iterator[tuple[str, Any]]:
        """Take the steps of all slides; yield (slide, result or `HistostoreError`) as each ends.

        A failing slide does not stop the others; where a disk refuses, no further ones are begun.

        Raises
        ------
        StorageError
            The scheduler, or every worker, is gone. What was finished is kept.
        """
        more, refused = iter(jobs), False
        self._client.subscribe_topic(STARTS, self._started)
        try:
            while True:
                while not refused and len(self._ready) + len(self._flying) < self._room():
                    if (named := next(more, None)) is None:
                        refused = True
                        break
                    self._open.append(_Job(*named))
                    self._go_on(self._open[-1])
                self._submit()
                while self._ended:
                    refused = refused or isinstance(self._ended[0][1], StorageError)
                    yield self._ended.popleft()
                if refused and not self._open:
                    return
                if self._flying:
                    self._land()
        except GONE as error:
            raise self._lost() from error
        finally:
            self._leave()

    def _go_on(self, job: _Job, error: HistostoreError | None = None) -> None:
        """Take the client's part of a slide, up to its next tasks or its end."""
        while True:
            try:
                tasks = job.steps.throw(error) if error is not None else job.steps.send(job.answers)
            except StopIteration as end:
                self._end(job, end.value)
                return
            except HistostoreError as failed:
                self._end(job, failed)
                return
            job.answers, job.missing, error = [None] * len(tasks), len(tasks), None
            self._ready.extend((job, place, task) for place, task in enumerate(tasks))
            if tasks:
                return

    def _end(self, job: _Job, outcome: Any) -> None:
        self._open.remove(job)
        self._ended.append((job.name, outcome))

    def _submit(self) -> None:
        """Send what there is room for."""
        while self._ready and len(self._flying) < self._room():
            job, place, task = self._ready.popleft()
            key = f"histostore-{task.what.replace(' ', '-')}-{job.name}-{self._token}-{secrets.token_hex(4)}"
            future = self._client.submit(
                on_worker, self._context, task, key, key=key, pure=False, resources=self._resources
            )
            self._flying[key] = _Flying(job, place, task, future)
            future.add_done_callback(self._done.put)

    def _land(self) -> None:
        """Wait a moment for a task to end, and hand its answer over."""
        try:
            future = self._done.get(timeout=LOOK_S)
        except queue.Empty:
            self._look()
            return
        flown = self._flying.pop(future.key, None)
        if flown is None:
            return  # of a slide that failed meanwhile
        self._seen = time.monotonic()
        answer = self._answer(flown)
        if isinstance(answer, HistostoreError):
            self._give_up(flown.job, answer)
            return
        self.tally.tasks += 1
        if flown.begun:
            self._took.append(time.monotonic() - flown.begun)
        flown.job.answers[flown.place] = answer
        flown.job.missing -= 1
        if not flown.job.missing:
            self._go_on(flown.job)

    def _answer(self, flown: _Flying) -> Any:
        """Return what a task answered, or its error as one of ours."""
        where = f"{flown.task.what} of {flown.job.name}"
        try:
            return flown.future.result()
        except GONE as error:
            raise self._lost() from error
        except HistostoreError as error:
            return error
        except KilledWorker:  # here too where a worker died with an answer, and the task after it
            return DataError(
                f"{where}: its worker died each time it was tried; out of memory, or the decoder crashed: "
                "use a smaller read_batch, or look into the worker's log"
            )
        except Exception as error:  # noqa: BLE001  (whatever a task meets is its slide's failure alone)
            unknown = DataError(f"{where}: {type(error).__name__}: {error}")
            unknown.__cause__ = error
            return unknown

    def _lost(self) -> StorageError:
        return StorageError("the scheduler is gone; finished shards are kept, run the same command to go on")

    def _give_up(self, job: _Job, error: HistostoreError) -> None:
        """Drop the other tasks of a slide and let it fail."""
        self._ready = deque(item for item in self._ready if item[0] is not job)
        mine = [key for key, flying in self._flying.items() if flying.job is job]
        self._cancel([self._flying.pop(key).future for key in mine])
        self._go_on(job, error)

    def _look(self) -> None:
        """Look after what takes long: tasks, and a cluster without workers."""
        now = time.monotonic()
        if self._client.status != "running":
            raise self._lost()
        if self._room() and now - self._seen > ALONE_S and not self._client.nthreads():
            raise StorageError(
                "all workers are gone; finished shards are kept, start workers and run the same command to go on"
            )
        if len(self._took) < SLOW_AFTER:
            return
        usual = statistics.median(self._took)
        for flying in self._flying.values():
            took = now - flying.begun
            if flying.begun and not flying.told and took > max(SLOW_LEAST_S, SLOW_TIMES * usual):
                flying.told = True
                text = f"{flying.job.name}: {flying.task.what} runs for {took:.0f} s on {flying.worker}"
                self.tally.stragglers.append(text)
                self._progress.say(f"{text}; the median is {usual:.1f} s")

    def _started(self, event: tuple[float, dict[str, str]]) -> None:
        """Take note that a task begins; called in a thread of the client."""
        key, worker = event[1]["key"], event[1]["worker"]
        if self._token not in key:
            return  # another run on the same scheduler
        self.tally.starts[key] += 1
        if (flying := self._flying.get(key)) is not None:
            flying.begun, flying.worker = time.monotonic(), worker

    def _room(self) -> int:
        """Return how many tasks may be in flight; workers may come and go."""
        if (now := time.monotonic()) - self._counted > COUNT_WORKERS_S and self._client.status == "running":
            self._threads, self._counted = sum(self._client.nthreads().values()), now
            self._seen = now if self._threads else self._seen
        return max(1, self._threads) * AHEAD

    def _cancel(self, futures: list[Future]) -> None:
        with suppress(*GONE):
            if futures and self._client.status == "running":
                self._client.cancel(futures)

    def _leave(self) -> None:
        """Give the locks back and drop what is still under way."""
        for job in self._open:
            job.steps.close()
        self._cancel([flying.future for flying in self._flying.values()])
        self._open.clear()
        self._ready.clear()
        self._flying.clear()
        with suppress(*GONE):
            if self._client.status == "running":
                self._client.unsubscribe_topic(STARTS)
