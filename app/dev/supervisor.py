"""Child processes for `dev`: started, watched, restarted with growing pauses, and stopped in order.

Each child leads its own session, so that a Ctrl-C in the terminal reaches the supervisor alone, and asks the
kernel to be told when the supervisor dies, so that even kill -9 leaves no orphans (Linux).

Children read the terminal all the same, for `breakpoint()`: job control stops readers in the background of a terminal's
own session, and these are of another one.
"""

import os
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from types import FrameType, TracebackType
from typing import Any, Self

from app.dev.embedded.privileges import become
from app.kernel.errors import EXIT_CONFIG

_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_HEALTHY_SECONDS = 30.0
_LONGEST_PAUSE_SECONDS = 10.0
_WORST_START = 3


class ProgramFailed(Exception):
    """A program could not do its work; the message is for the person at the terminal, `code` for the exit."""

    def __init__(self, message: str, code: int = 1) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, slots=True)
class Program:
    """What to run. `stop_seconds`: how long it may take to end by itself after SIGTERM."""

    name: str
    command: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    stop_seconds: float = 4.0


@dataclass(frozen=True, slots=True)
class _Task:
    """A program that ends by itself."""

    program: Program
    process: "subprocess.Popen[bytes]"


@dataclass(slots=True)
class _Child:
    program: Program
    process: "subprocess.Popen[bytes] | None" = None
    started_at: float = 0.0
    failures: int = 0
    start_again_at: float | None = None


class Supervisor:
    """Runs programs until the process is told to stop. Use it from the main thread, as a context manager.

    Inside the block SIGINT, SIGTERM and SIGHUP only count; leaving it tells all children to stop, and waits for them in
    the order in which they were given. A second signal shortens their time to one more moment.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._children: list[_Child] = []
        self._tasks: list[_Task] = []
        self._was_ready = False
        self._stop_requests = 0
        self._wake_read, self._wake_write = os.pipe()
        self._before: dict[signal.Signals, object] = {}
        self._wake_before = -1
        self._terminal: list[Any] | None = None

    @property
    def is_stopping(self) -> bool:
        return self._stop_requests > 0

    def __enter__(self) -> Self:
        # It is None where the parent process has closed it.
        if sys.stdin is not None and sys.stdin.isatty():
            self._terminal = termios.tcgetattr(sys.stdin)
        for descriptor in (self._wake_read, self._wake_write):
            os.set_blocking(descriptor, False)
        # Every signal writes a byte there, which ends a wait at once; also the end of a child.
        self._wake_before = signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        for number in _STOP_SIGNALS:
            self._before[number] = signal.signal(number, self._count)
        self._before[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]  # typeshed lets it be given back only after a check
        signal.set_wakeup_fd(self._wake_before)
        os.close(self._wake_read)
        os.close(self._wake_write)
        self._restore_terminal()

    def _restore_terminal(self) -> None:
        """A debugger that was ended at its prompt leaves the terminal without echo."""
        # In the background, a change of the terminal would stop this process.
        with suppress(OSError, termios.error):
            if self._terminal is not None and os.tcgetpgrp(sys.stdin.fileno()) == os.getpgrp():
                termios.tcsetattr(sys.stdin, termios.TCSADRAIN, self._terminal)

    def run_to_end(self, program: Program) -> bool:
        """Run a program that ends by itself. False if the stop came first; ProgramFailed if it fails."""
        self.begin(program)
        return self.finish()

    def begin(self, program: Program) -> None:
        """Start a program that ends by itself, to be waited for with `finish`. Its failure ends every wait."""
        self._tasks.append(_Task(program, _spawn(program)))

    def finish(self) -> bool:
        """Wait for the end of all that were begun, as `run_to_end`; the other children are watched meanwhile."""
        while not self.is_stopping:
            self._watch()
            if not self._tasks:
                return True
            self._wait(0.5)
        return False

    def start(self, program: Program) -> None:
        """Start a program that is to run until the stop."""
        child = _Child(program)
        self._children.append(child)
        self._start(child)

    def wait_until(self, is_ready: Callable[[], bool], *, seconds: float) -> bool:
        """Watch the children until `is_ready`. False if the stop came first.

        Raises ProgramFailed if it takes too long, if a child keeps dying before it was ever ready, or if a program that
        ends by itself fails.
        """
        deadline = time.monotonic() + seconds
        while not self.is_stopping:
            if is_ready():
                self._was_ready = True
                return True
            if time.monotonic() > deadline:
                raise ProgramFailed(f"not ready after {seconds:.0f} s; the lines above may say why")
            self._watch()
            self._wait(0.05)
        return False

    def watch(self) -> None:
        """Watch the children until the process is told to stop."""
        while not self.is_stopping:
            self._watch()
            self._wait(0.5)

    def _count(self, _number: int, _frame: FrameType | None) -> None:
        self._stop_requests += 1

    def _wait(self, seconds: float) -> None:
        if select.select([self._wake_read], [], [], seconds)[0]:
            with suppress(BlockingIOError):
                os.read(self._wake_read, 4096)

    def _start(self, child: _Child) -> None:
        child.process = _spawn(child.program, reads_terminal=self._terminal is not None)
        child.started_at = time.monotonic()
        child.start_again_at = None

    def _watch(self) -> None:
        for task in [task for task in self._tasks if task.process.poll() is not None]:
            self._tasks.remove(task)
            if code := task.process.returncode:
                raise _failure(task.program, f"failed ({_ending(code)})", code)
        now = time.monotonic()
        for child in self._children:
            if child.start_again_at is not None:
                if now >= child.start_again_at:
                    self._start(child)
            elif child.process is not None and child.process.poll() is not None:
                # What it started itself must not outlive it: it may hold the port.
                _kill(child.process)
                child.failures = 1 if now - child.started_at > _HEALTHY_SECONDS else child.failures + 1
                ending = _ending(child.process.returncode)
                if child.process.returncode == EXIT_CONFIG:
                    raise _failure(child.program, "", EXIT_CONFIG)
                if not self._was_ready and child.failures >= _WORST_START:
                    raise ProgramFailed(f"{child.program.name} ended {child.failures} times while starting ({ending})")
                pause = min(0.25 * 2**child.failures, _LONGEST_PAUSE_SECONDS)
                child.start_again_at = now + pause
                self._say(f"{child.program.name} ended unexpectedly ({ending}); starting it again in {pause:.1f} s")

    def stop(self) -> None:
        """Stop all children at the same time, so that the slowest bounds it. Does nothing the second time."""
        children, self._children = self._children, []
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.process.terminate()
        # The signal that brought us here does not count as impatience.
        requests_needed = min(self._stop_requests, 1)
        started = time.monotonic()
        alive = [
            (child, process) for child in children if (process := child.process) is not None and process.poll() is None
        ]
        for _, process in alive:
            process.terminate()
        for child, process in alive:
            while process.poll() is None and time.monotonic() - started < child.program.stop_seconds:
                if self._stop_requests > requests_needed:
                    break
                self._wait(0.1)
            forced = process.poll() is None
            _kill(process)
            how = "killed" if forced else "stopped"
            self._say(f"{child.program.name} {how} ({time.monotonic() - started:.1f} s)")
        for task in tasks:
            with suppress(subprocess.TimeoutExpired):
                task.process.wait(task.program.stop_seconds)
            _kill(task.process)


def _failure(program: Program, what: str, code: int) -> ProgramFailed:
    if code == EXIT_CONFIG:
        return ProgramFailed(f"{program.name} cannot work with these settings; the lines above say why", EXIT_CONFIG)
    return ProgramFailed(f"{program.name} {what}")


def _spawn(program: Program, *, reads_terminal: bool = False) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        list(program.command),
        env={**os.environ, **program.environment},
        stdin=None if reads_terminal else subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=become(None, death_signal=signal.SIGTERM),  # noqa: PLW1509 - system calls alone take no lock
    )


def _kill(process: "subprocess.Popen[bytes]") -> None:
    """End the child and whatever is left of its session at once."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _ending(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"
