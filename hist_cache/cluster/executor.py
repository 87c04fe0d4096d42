"""Tasks done by processes on a cluster; their own side is `hist_cache.cluster.processes`.

A process that dies costs no task more than a try, and none where it went down with its machine. So a task is only
given to a process that has answered, and what a death means is decided once it is known whether the machine is there.
"""

from __future__ import annotations

import logging
import pickle
import time
from collections.abc import Iterable
from typing import Any, Generic, TypeVar

from hist_cache.cluster.checks import own_versions, version_difference
from hist_cache.cluster.facts import LostProcessError, ProcessPlace, command_place, why_never_began
from hist_cache.cluster.inbox import Inbox
from hist_cache.cluster.processes import TaskProcess
from hist_cache.cluster.ray_cluster import Cluster, answer, call, end_process, first_done, start_process
from hist_cache.cluster.room import Size, check_workers_room
from hist_cache.cluster.seats import Death, Seat, SharedArrays
from hist_cache.errors import HistError
from hist_cache.executor import TICK_S, Events, Failure, Worker
from hist_cache.processes import STOPPING, STOPPING_NOW, failure_of
from hist_cache.stopping import GracefulStop
from hist_cache.task_queue import TaskQueue

log = logging.getLogger(__name__)
_T = TypeVar("_T")
_R = TypeVar("_R")

ROOM_S = 10.0  # a worker that has no room by then is said to wait
NONE_LEFT_S = 60.0  # with all others refused, no worker waits longer for room
START_TRIES = 3  # processes that a worker may lose while they start
AGAIN_S = 10.0  # after a process that could not be set up, the next one is tried


class RayExecutor:
    """Does tasks in processes on a cluster.

    Args:
        cluster: It.
        workers: How many processes; None for as many as there is room for when it begins.
        cpus_per_worker: Cores that each takes, which is also how many threads it computes with.
        gpus_per_worker: GPUs that each takes; where it takes one, its cores are not counted.

    Raises:
        InputError: Ray of this machine alone has no room for one.
    """

    def __init__(
        self, cluster: Cluster, workers: int | None = None, cpus_per_worker: int = 1, gpus_per_worker: int = 0
    ) -> None:
        self._cluster, self._size = cluster, Size(cpus_per_worker, gpus_per_worker)
        check_workers_room(cluster, self._size)
        self.workers = workers or max(self._size.places(cluster.nodes()), 1)

    def run(self, tasks: Iterable[_T | None], worker: Worker[_T, _R], events: Events[_T, _R]) -> list[Failure[_T]]:
        """Do all tasks and return those that failed; see `hist_cache.executor.Executor.run`.

        Raises:
            HistError: No worker can do any task, or the cluster's head is gone.
            WriteError: A worker cannot write.
        """
        crew = _Crew(self._cluster, self._size, tasks, worker, events)
        ends_at = float("inf")
        with GracefulStop(STOPPING if worker.stop_s is None else STOPPING_NOW) as stop:
            try:
                crew.open(self.workers)
                while crew.going(stop.requested > 0) and time.monotonic() < ends_at:
                    if not stop.requested:
                        crew.hand_out()
                    elif worker.stop_s is not None:
                        ends_at = min(ends_at, time.monotonic() + worker.stop_s)
                    crew.hear(stop.requested > 0)
                    events.on_tick()
            finally:
                crew.close()
        if stop.requested:
            raise stop.interrupt()
        return crew.failures


class _Crew(Generic[_T, _R]):
    """The workers and tasks of one call of `RayExecutor.run`."""

    def __init__(
        self,
        cluster: Cluster,
        size: Size,
        tasks: Iterable[_T | None],
        worker: Worker[_T, _R],
        events: Events[_T, _R],
    ) -> None:
        self._cluster, self._size, self._worker, self._events = cluster, size, worker, events
        self._pickled = pickle.dumps(worker)
        self._queue: TaskQueue[_T] = TaskQueue(tasks, worker.tries)
        self._shared = SharedArrays(cluster)
        self._seats: list[Seat[_T]] = []
        self._deaths: list[Death[_T]] = []
        self._resting: list[Seat[_T]] = []  # whose processes could not be set up
        self._again_at = 0.0  # when one of them tries again
        self._vain = 0  # tries that came to nothing, one after the other
        self._said: set[str] = set()
        self._keys: dict[int, str | None] = {}  # of the arrays of tasks under way, by number
        self._began: set[int] = set()  # numbers of tasks that processes have begun
        self._given = 0
        self._taken = time.monotonic()  # when messages were taken
        self._waiting_was_said = False
        self._inbox: Inbox | None = None
        self._own = own_versions()
        self.failures: list[Failure[_T]] = []

    def open(self, workers: int) -> None:
        """Ask for the processes."""
        self._inbox = Inbox()
        for number in range(workers):
            process = self._new_process()
            self._seats.append(Seat(number, process, call(process, "hello")))

    def _new_process(self) -> Any:
        assert self._inbox is not None, "open comes first"
        options = {"cpus": self._size.counted_cpus, "gpus": self._size.gpus, "threads": self._worker.at_once}
        given = self._inbox.mailbox, self._pickled, self._size.cpus, command_place()
        return start_process(TaskProcess, *given, **options)

    def _reopen(self, seat: Seat[_T]) -> None:
        """Have another process take the place of a dead one."""
        end_process(seat.process)
        seat.process, seat.place, seat.since = self._new_process(), None, time.monotonic()
        seat.opening = call(seat.process, "hello")

    def going(self, stopping: bool) -> bool:
        """Whether there is anything to wait for.

        Raises:
            HistError: There are tasks, and no worker to do them.
        """
        if any(seat.running for seat in self._seats):
            return True
        if stopping or not (self._queue.open or self._deaths):
            return False
        if all(seat.refused or self._is_hopeless(seat) for seat in self._seats):
            raise HistError("no worker is left for what is to be done; the lines above say why each was left out")
        return True

    def _is_hopeless(self, seat: Seat[_T]) -> bool:
        anybody_refused = any(other.refused for other in self._seats)
        return anybody_refused and seat.waits_for_room and time.monotonic() - seat.since > NONE_LEFT_S

    def hand_out(self) -> None:
        """Give tasks to the workers that have room for one, those with the fewest first."""
        ready = [seat for seat in self._seats if seat.ready]
        while ready:
            seat = min(ready, key=lambda seat: len(seat.running))
            busy = [handed for _, handed in seat.running.values()]
            handed = self._queue.next_for(busy, self._worker.at_once)
            if handed is None:
                ready.remove(seat)
                continue
            shared = self._events.shared(handed.task)
            arrays: dict[str, Any] | None = {}
            if shared is not None:
                arrays = self._shared.provide(shared, {key for key in self._keys.values() if key is not None})
            if arrays is None:
                self._queue.give_back([handed])
                return
            self._given += 1
            key = self._keys[self._given] = shared.key if shared else None
            doing = call(seat.process, "do", self._given, pickle.dumps(handed.task), key, arrays)
            seat.running[doing] = self._given, handed

    def hear(self, stopping: bool) -> None:
        """Wait for answers for a while, and act on them; then on deaths, and on what is wanted for long."""
        openings = {seat.opening: seat for seat in self._seats if seat.opening is not None}
        calls = openings | {doing: seat for seat in self._seats for doing in seat.running}
        done = first_done(list(calls), TICK_S)
        if done or time.monotonic() - self._taken > TICK_S:
            self._take_messages(stopping)
        for waited in done:
            seat = calls[waited]
            if waited is not seat.opening and waited not in seat.running:
                continue  # its process has died, as another answer has told
            try:
                content = answer(waited)
            except LostProcessError as error:
                self._lost(seat, error)
            except HistError as error:  # of the cluster, not of the task
                self._answered(seat, waited, ("failed", str(error)), stopping)
            else:
                self._answered(seat, waited, content, stopping)
        self._judge_deaths()
        self._try_again()
        self._say_who_waits()
        self._cluster.check_head()

    def _take_messages(self, stopping: bool) -> None:
        assert self._inbox is not None, "open comes first"
        tasks = {number: handed.task for seat in self._seats for number, handed in seat.running.values()}
        for kind, number, content in self._inbox.take(stopping):
            if kind == "began":
                self._began.add(number)
            elif kind == "warning":
                self._warn(content)
            elif number in tasks:
                self._events.on_message(tasks[number], content)
        self._taken = time.monotonic()

    def _answered(self, seat: Seat[_T], waited: Any, content: Any, stopping: bool) -> None:
        if waited is seat.opening:
            seat.opening = None
            if isinstance(content, ProcessPlace):
                seat.place = content
                if seat.trying:
                    seat.trying, self._vain, self._again_at = False, 0, 0.0
                different = version_difference(self._own, content.versions)
                if different:
                    self._refuse(seat, different)
                else:
                    seat.opening = call(seat.process, "start")
            elif content[0] == "ready":
                seat.lost = 0
            else:
                self._refuse(seat, content[1] if content[0] != "unexpected" else content[1][0])
            return
        kind, more = content
        number, handed = seat.running.pop(waited)
        self._forget(number)
        if kind == "result":
            self._events.on_result(handed.task, more)
        elif kind == "cannot write":
            raise more  # others could not write either
        elif kind == "stopped" and not stopping:  # its machine is being taken away
            self._queue.give_back([handed])
            self._lost(seat, LostProcessError("stopped", preempted=True))
        elif not stopping:
            self._fail(failure_of(handed.task, kind, more))

    def _fail(self, failure: Failure[_T]) -> None:
        self.failures.append(failure)
        self._events.on_failure(failure)

    def _warn(self, text: str) -> None:
        """Show a warning, once."""
        if text not in self._said:
            self._said.add(text)
            log.warning(text)

    def _refuse(self, seat: Seat[_T], why: str) -> None:
        """Do without a worker. Its process keeps its room, so that no other one of this command begins there."""
        seat.refused, seat.opening, seat.trying = True, None, False
        log.warning(f"{seat.host}: {why}; this worker is left out")

    def _forget(self, number: int) -> None:
        del self._keys[number]
        self._began.discard(number)

    def _lost(self, seat: Seat[_T], error: LostProcessError) -> None:
        if error.never_began:
            self._rest(seat, why_never_began(error, self._cluster.nodes()))
            return
        self._queue.give_back(handed for number, handed in seat.running.values() if number not in self._began)
        begun = [handed for number, handed in seat.running.values() if number in self._began]
        for number, _ in seat.running.values():
            self._forget(number)
        seat.running.clear()
        self._deaths.append(Death(seat, seat.place, begun, seat.opening is not None, error.preempted))
        self._reopen(seat)

    def _rest(self, seat: Seat[_T], why: str) -> None:
        """Have a worker wait whose process could not be set up: all others would be lost in the room that it left."""
        self._warn(f"{why}; its workers are tried again")
        self._vain += seat.trying
        seat.opening, seat.trying = None, False
        self._resting.append(seat)
        self._again_at = time.monotonic() + AGAIN_S

    def _try_again(self) -> None:
        """Have one resting worker after the other try whether there is room where it can be set up."""
        if not self._resting or time.monotonic() < self._again_at or any(seat.trying for seat in self._seats):
            return
        others = [seat for seat in self._seats if not seat.refused and seat not in self._resting]
        if self._vain >= START_TRIES and not others:
            for seat in self._resting:
                seat.refused = True
            self._resting.clear()
            return
        seat = self._resting.pop(0)
        seat.trying = True
        self._reopen(seat)

    def _judge_deaths(self) -> None:
        """Count deaths whose machines live; tasks whose machines have gone, or were taken away, are just done again."""
        due = [death for death in self._deaths if time.monotonic() > death.due]
        if not due or self._cluster.head_is_silent:
            return
        lives = {key: self._cluster.lives(key) for key in {death.place.node for death in due if death.place}}
        for death in due:
            self._deaths.remove(death)
            place = death.place
            if death.preempted or (place is not None and not lives[place.node]):
                self._queue.give_back(death.tasks)
            elif death.tasks:
                assert place is not None, "who has tasks has said where it is"
                how = f"{self._worker.tries} times, last on {place.host}" if self._worker.tries > 1 else place.host
                for task in self._queue.died(death.tasks):
                    self._fail(failure_of(task, "died", how))
            elif death.opening:
                death.seat.lost += 1
                if death.seat.lost >= START_TRIES and not death.seat.refused:
                    self._refuse(death.seat, f"its process died {START_TRIES} times while it started; out of memory?")

    def _say_who_waits(self) -> None:
        waiting = sum(s.waits_for_room and time.monotonic() - s.since > ROOM_S for s in self._seats)
        if waiting and not self._waiting_was_said:
            others = "; others work" * any(seat.ready for seat in self._seats)
            there = self._cluster.describe()
            log.info(
                f"{waiting} of {len(self._seats)} workers wait for room, {self._size} each (there: {there}){others}"
            )
            self._waiting_was_said = True

    def close(self) -> None:
        """End all processes."""
        if not self._cluster.head_is_silent:  # who ends them otherwise is the end of this process
            for seat in self._seats:
                end_process(seat.process)
            if self._inbox is not None:
                self._inbox.close()
