"""The supervisor of `dev`: order of ending, restarts, deadlines, and no orphans. Each case runs in its own process."""

import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from tests.fixtures.embedded import is_alive
from tests.fixtures.waiting import scaled

ROOT = Path(__file__).resolve().parents[2]

PRELUDE = """
import sys, time
from pathlib import Path
from app.dev.supervisor import Program, ProgramFailed, Supervisor

def say(text):
    print(text, flush=True)

def program(name, code, **options):
    return Program(name, [sys.executable, "-c", code], **options)

SLEEPS = "import time; time.sleep(3600)"
DEAF = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(3600)"
"""


class Story:
    """A supervisor in a process of its own, and what it said so far."""

    def __init__(self, code: str, *arguments: str) -> None:
        self.lines: list[str] = []
        self.process = subprocess.Popen(
            [sys.executable, "-c", PRELUDE + textwrap.dedent(code), *arguments],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def read_until(self, text: str) -> str:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.rstrip("\n"))
            if text in line:
                return self.lines[-1]
        raise AssertionError(f"{text!r} was never said: {self.lines}")

    def finish(self) -> int:
        rest, _ = self.process.communicate(timeout=scaled(30))
        self.lines += rest.splitlines()
        return self.process.returncode

    def children(self) -> list[psutil.Process]:
        return list(psutil.Process(self.process.pid).children(recursive=True))


@pytest.fixture
def tell() -> Iterator[Callable[..., Story]]:
    stories: list[Story] = []

    def start(code: str, *arguments: str) -> Story:
        stories.append(Story(code, *arguments))
        return stories[-1]

    yield start
    for story in stories:
        if story.process.poll() is None:
            for process in [*story.children(), story.process]:
                process.kill()
        story.process.communicate()


def _wait_until(condition: Callable[[], bool], seconds: float = scaled(20)) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


TWO = """
with Supervisor(say) as supervisor:
    supervisor.start(program("first", SLEEPS))
    supervisor.start(program("second", SLEEPS))
    assert supervisor.wait_until(lambda: True, seconds=60)
    say("up")
    supervisor.watch()
say("end")
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_children_end_in_the_order_in_which_they_were_given(tell: Callable[..., Story], number: signal.Signals) -> None:
    story = tell(TWO)
    story.read_until("up")
    children = story.children()
    assert len(children) == 2
    story.process.send_signal(number)
    assert story.finish() == 0
    said = [line.partition(" (")[0] for line in story.lines]
    assert said == ["up", "first stopped", "second stopped", "end"]
    assert not any(child.is_running() for child in children)


def test_no_child_waits_for_another_to_be_told(tell: Callable[..., Story], tmp_path: Path) -> None:
    """The first ends only after the second has, which therefore must have been told as well."""
    # The two share one pipe: `print` would write text and line end apart where the interpreter does not buffer.
    story = tell(
        """
        told = "import os, pathlib, signal, sys, time; t = []; signal.signal(signal.SIGTERM, lambda *_: t.append(1)); "
        told += f"f = pathlib.Path({sys.argv[1]!r}); os.write(1, b'listens\\\\n'); "
        waits = told + "[time.sleep(0.01) for _ in iter(f.exists, True)]"
        touches = told + "[time.sleep(0.01) for _ in iter(lambda: len(t), 1)]; f.touch()"
        with Supervisor(say) as supervisor:
            supervisor.start(program("first", waits, stop_seconds=600))
            supervisor.start(program("second", touches, stop_seconds=600))
            supervisor.watch()
        """,
        str(tmp_path / "ended"),
    )
    for _ in range(2):
        story.read_until("listens")
    story.process.terminate()
    assert story.finish() == 0
    assert [line.partition(" (")[0] for line in story.lines[2:]] == ["first stopped", "second stopped"]


def test_children_are_out_of_reach_of_the_terminal(tell: Callable[..., Story]) -> None:
    story = tell(TWO)
    story.read_until("up")
    sessions = {os.getsid(child.pid) for child in story.children()}
    assert len(sessions) == 2
    assert os.getsid(story.process.pid) not in sessions


def test_kill_of_the_supervisor_leaves_no_orphans(tell: Callable[..., Story]) -> None:
    story = tell(TWO)
    story.read_until("up")
    children = story.children()
    story.process.kill()
    story.process.wait()
    _wait_until(lambda: not any(is_alive(child) for child in children))


def test_a_child_that_dies_is_started_again(tell: Callable[..., Story]) -> None:
    story = tell(TWO)
    story.read_until("up")
    before = story.children()
    before[0].kill()
    name, _, said = story.read_until("unexpectedly").partition(" ")
    assert (name in {"first", "second"}, said) == (True, "ended unexpectedly (SIGKILL); starting it again in 0.5 s")
    _wait_until(lambda: len([child for child in story.children() if is_alive(child)]) == 2)
    story.process.terminate()
    assert story.finish() == 0


def test_pauses_between_restarts_grow(tell: Callable[..., Story]) -> None:
    story = tell("""
        with Supervisor(say) as supervisor:
            supervisor.wait_until(lambda: True, seconds=60)
            supervisor.start(program("broken", "raise SystemExit(4)"))
            supervisor.watch()
    """)
    assert [story.read_until("unexpectedly") for _ in range(3)] == [
        f"broken ended unexpectedly (exit code 4); starting it again in {pause} s" for pause in ("0.5", "1.0", "2.0")
    ]
    story.process.terminate()
    assert story.finish() == 0


def test_a_child_that_never_starts_ends_the_attempt(tell: Callable[..., Story]) -> None:
    story = tell("""
        try:
            with Supervisor(say) as supervisor:
                supervisor.start(program("good", SLEEPS))
                supervisor.start(program("broken", "raise SystemExit(4)"))
                supervisor.wait_until(lambda: False, seconds=600)
        except ProgramFailed as error:
            say(f"failed: {error}")
    """)
    assert story.finish() == 0
    assert story.lines[-1] == "failed: broken ended 3 times while starting (exit code 4)"
    assert any(line.startswith("good stopped") for line in story.lines)


def test_not_ready_in_time(tell: Callable[..., Story]) -> None:
    story = tell("""
        try:
            with Supervisor(say) as supervisor:
                supervisor.start(program("slow", SLEEPS))
                supervisor.wait_until(lambda: False, seconds=0.3)
        except ProgramFailed as error:
            say(f"failed: {error}")
    """)
    assert story.finish() == 0
    assert story.lines[-1].startswith("failed: not ready after 0 s")


def test_a_deaf_child_is_killed_at_its_deadline(tell: Callable[..., Story]) -> None:
    story = tell("""
        with Supervisor(say) as supervisor:
            supervisor.start(program("deaf", DEAF, stop_seconds=0.5))
            supervisor.watch()
    """)
    story.read_until("deaf")
    started = time.monotonic()
    story.process.terminate()
    assert story.finish() == 0
    assert time.monotonic() - started > 0.4
    said = re.fullmatch(r"deaf killed \((\d+\.\d) s\)", story.lines[-1])
    assert said is not None
    assert float(said[1]) >= 0.5


def test_a_second_signal_hastens(tell: Callable[..., Story]) -> None:
    story = tell("""
        with Supervisor(say) as supervisor:
            supervisor.start(program("deaf", DEAF, stop_seconds=3600))
            supervisor.watch()
            say("stopping")
    """)
    story.read_until("deaf")
    story.process.send_signal(signal.SIGINT)
    story.read_until("stopping")
    story.process.send_signal(signal.SIGINT)
    assert story.finish() == 0
    assert story.lines[-1].startswith("deaf killed")


def test_a_program_that_ends_by_itself(tell: Callable[..., Story]) -> None:
    story = tell("""
        with Supervisor(say) as supervisor:
            say(supervisor.run_to_end(program("good", "print('did', flush=True)")))
            try:
                supervisor.run_to_end(program("bad", "raise SystemExit(4)"))
            except ProgramFailed as error:
                say(error)
    """)
    assert story.finish() == 0
    assert story.lines == ["did", "True", "bad failed (exit code 4)"]


def test_a_program_that_fails_ends_the_wait_for_others(tell: Callable[..., Story]) -> None:
    story = tell("""
        try:
            with Supervisor(say) as supervisor:
                supervisor.start(program("good", SLEEPS))
                supervisor.begin(program("bad", "raise SystemExit(4)"))
                supervisor.wait_until(lambda: False, seconds=600)
        except ProgramFailed as error:
            say(f"{error}, {error.code}")
    """)
    assert story.finish() == 0
    assert story.lines[0].startswith("good stopped")
    assert story.lines[1:] == ["bad failed (exit code 4), 1"]


@pytest.mark.parametrize("kind", ["start", "begin"])
def test_wrong_settings_are_not_tried_again(tell: Callable[..., Story], kind: str) -> None:
    story = tell(
        """
        try:
            with Supervisor(say) as supervisor:
                getattr(supervisor, sys.argv[1])(program("API", "raise SystemExit(78)"))
                supervisor.wait_until(lambda: False, seconds=600)
        except ProgramFailed as error:
            say(f"{error}, {error.code}")
        """,
        kind,
    )
    assert story.finish() == 0
    assert story.lines == ["API cannot work with these settings; the lines above say why, 78"]


def test_a_stop_ends_a_program_that_would_end_by_itself(tell: Callable[..., Story]) -> None:
    story = tell("""
        with Supervisor(say) as supervisor:
            say(supervisor.run_to_end(program("slow", "print('begun', flush=True); " + SLEEPS)))
            say(supervisor.wait_until(lambda: True, seconds=60))
    """)
    story.read_until("begun")
    story.process.terminate()
    assert story.finish() == 0
    assert story.lines == ["begun", "False", "False"]


def test_grandchildren_that_hold_on_are_ended(tell: Callable[..., Story], tmp_path: Path) -> None:
    story = tell(
        """
        child = (
            "import subprocess, sys, pathlib;"
            "p = subprocess.Popen([sys.executable, '-c', " + repr(DEAF) + "]);"
            "pathlib.Path(sys.argv[1]).write_text(str(p.pid)); p.wait()"
        )
        with Supervisor(say) as supervisor:
            supervisor.start(Program("parent", [sys.executable, "-c", child, sys.argv[1]], stop_seconds=2))
            supervisor.watch()
        """,
        str(tmp_path / "pid"),
    )
    story.read_until("deaf")
    _wait_until(lambda: (tmp_path / "pid").exists() and bool((tmp_path / "pid").read_text(encoding="ascii")))
    grandchild = psutil.Process(int((tmp_path / "pid").read_text(encoding="ascii")))
    story.process.terminate()
    assert story.finish() == 0
    _wait_until(lambda: not is_alive(grandchild))
