"""Several server processes behind one listening socket, which belongs to the process above them.

So connections that are not accepted yet survive each of the processes. SIGHUP replaces them one by one, each only
when its successor answers; new ones read the code and the environment's `.env` anew.
"""

import os
import signal
import socket
import time
from collections.abc import Callable

import uvicorn
from prometheus_client.multiprocess import mark_process_dead
from uvicorn.supervisors import Multiprocess
from uvicorn.supervisors.multiprocess import Process as UvicornProcess

from app.kernel.errors import EXIT_CONFIG
from app.kernel.observability.telemetry import get_logger
from app.kernel.server.process import LAST_SECONDS, RETIRE, Config, Server

_logger = get_logger(__name__)
FINAL_EXITS = frozenset({uvicorn.config.STARTUP_FAILURE, EXIT_CONFIG})
"""Exit codes of a process whose successor would end in the same way."""
_TICK_SECONDS = 0.1
_START_SECONDS = 60.0
_SILENT_SECONDS = 30.0
# One that dies sooner than that after its start will probably do so again.
_SHORT_LIFE_SECONDS = 10.0
_FIRST_PAUSE_SECONDS = 0.5
_LONGEST_PAUSE_SECONDS = 30.0


class Process(UvicornProcess):
    """One server process, seen from above."""

    config: Config

    def __init__(self, config: Config, sockets: list[socket.socket]) -> None:
        super().__init__(config, sockets)
        self.began_at = time.monotonic()
        self.has_started = False
        # Seconds between the end of its predecessor and its start.
        self.pause = 0.0
        self._asked_at: float | None = None

    @property
    def server(self) -> uvicorn.Server:
        if self._server is None:
            self._server = Server(self.config)
        return self._server

    def is_running(self) -> bool:
        """Whether it lives and has answered lately. Asks without waiting for the answer."""
        if not self.process.is_alive():
            return False
        try:
            if self._asked_at is not None and self.parent_conn.poll(0):
                self.has_started = self.parent_conn.recv()
                self._asked_at = None
            if self._asked_at is None:
                self.parent_conn.send(b"ping")
                self._asked_at = time.monotonic()
        except (OSError, EOFError):
            return False
        return time.monotonic() - self._asked_at < _SILENT_SECONDS

    def tell(self, number: signal.Signals) -> None:
        """Before it has started it knows only the signals that end it."""
        if self.process.is_alive() and self.pid is not None:
            os.kill(self.pid, number if self.has_started else signal.SIGTERM)

    def dispose(self) -> None:
        """Ends what is left of it."""
        self.process.kill()
        self.join()
        self.parent_conn.close()
        self.child_conn.close()
        # Its gauges no longer count.
        mark_process_dead(self.pid)  # type: ignore[no-untyped-call]  # prometheus_client leaves it untyped


class WorkerGroup(Multiprocess):
    """uvicorn's supervisor with replacements that lose nothing, pauses between crashes, and an end in any case."""

    config: Config
    processes: list[Process]  # type: ignore[assignment]  # ours are uvicorn's

    def __init__(self, config: Config, sockets: list[socket.socket], on_started: Callable[[], None]) -> None:
        super().__init__(config, sockets)
        self._on_started: Callable[[], None] | None = on_started
        # When the slot of a process that has died is filled again.
        self._due: dict[int, float] = {}
        self._leaving: list[Process] = []

    def run(self) -> None:
        """Returns when told to stop, after the processes have ended."""
        self.processes = [self._begin() for _ in range(self.processes_num)]
        while not self.should_exit.wait(_TICK_SECONDS) and RETIRE not in self.signal_queue:
            self.handle_signals()
            self.keep_subprocess_alive()
        number = RETIRE if RETIRE in self.signal_queue else signal.SIGTERM
        for server_socket in self.sockets:
            # From now on the processes alone decide how long the port is open.
            server_socket.close()
        for process in self.processes:
            process.tell(number)
        ending = [*self.processes, *self._leaving]
        deadline = time.monotonic() + self._patience
        for process in ending:
            # They end side by side, so that this waits for the slowest of them.
            process.process.join(max(0.0, deadline - time.monotonic()))
            process.dispose()

    def keep_subprocess_alive(self) -> None:
        """Replaces processes that have died: at once, but after longer and longer pauses if they do so quickly."""
        self._dispose_of_leaving()
        now = time.monotonic()
        for slot, process in enumerate(self.processes):
            due = self._due.get(slot)
            if due is not None:
                if now >= due:
                    del self._due[slot]
                    self.processes[slot] = self._begin(pause=process.pause)
            elif not process.is_running():
                process.dispose()
                if process.exitcode in FINAL_EXITS:
                    # It would fail in the same way again.
                    self.should_exit.set()
                    return
                is_short = now - process.began_at < _SHORT_LIFE_SECONDS
                process.pause = min(max(process.pause * 2, _FIRST_PAUSE_SECONDS), _LONGEST_PAUSE_SECONDS) * is_short
                self._due[slot] = now + process.pause
                _logger.error("server.process_died", pid=process.pid, exit_code=process.exitcode, wait=process.pause)
        if self._on_started is not None and all(process.has_started for process in self.processes):
            self._on_started()
            self._on_started = None

    def restart_all(self) -> None:
        """Replaces the processes one by one; stops at the first successor that does not come up."""
        for slot, process in enumerate(self.processes):
            successor = self._begin()
            self._wait(lambda: successor.has_started or not successor.is_running(), _START_SECONDS)  # noqa: B023 - at once
            if not successor.has_started:
                _logger.error("server.replacement_failed", exit_code=successor.exitcode)
                successor.dispose()
                return
            self._due.pop(slot, None)
            self.processes[slot] = successor
            self._retire(process)
            self._wait(lambda: not process.process.is_alive(), self._patience)  # noqa: B023 - at once
            self._dispose_of_leaving()

    def handle_ttin(self) -> None:
        """One process more."""
        self.processes.append(self._begin())

    def handle_ttou(self) -> None:
        """One process less, but never none."""
        if len(self.processes) > 1:
            self._due.pop(len(self.processes) - 1, None)
            self._retire(self.processes.pop())

    def _begin(self, *, pause: float = 0.0) -> Process:
        process = Process(self.config, self.sockets)
        process.pause = pause
        process.start()
        return process

    def _retire(self, process: Process) -> None:
        process.tell(RETIRE)
        self._leaving.append(process)

    def _dispose_of_leaving(self) -> None:
        for process in [process for process in self._leaving if not process.process.is_alive()]:
            process.dispose()
            self._leaving.remove(process)

    @property
    def _patience(self) -> float:
        """How long a process may take to end."""
        return self.config.grace + LAST_SECONDS + 1

    def _wait(self, is_met: Callable[[], bool], seconds: float) -> None:
        """Until it is so, time is up, or the group is asked to stop."""
        deadline = time.monotonic() + seconds
        stops = {signal.SIGTERM, signal.SIGINT, RETIRE}
        while not is_met() and time.monotonic() < deadline and stops.isdisjoint(self.signal_queue):
            # The parent of the group has no event loop and serves no request.
            time.sleep(_TICK_SECONDS)
