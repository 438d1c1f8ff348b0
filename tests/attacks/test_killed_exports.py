"""What a killed worker was writing holds data of people, and does not stay."""

import asyncio
import os
import signal
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import pytest

from app.jobs.service import scratch
from app.jobs.service.scratch import ScratchFolder, delete_abandoned_folders
from app.jobs.service.storage import ArtifactStore
from app.jobs.settings import JobsSettings

KILLED = """
import asyncio, os, signal, sys
from pathlib import Path
from uuid import uuid4
from app.jobs.service.scratch import ScratchFolder
from app.jobs.service.storage import ArtifactStore
from app.jobs.settings import JobsSettings

async def main():
    folder = ScratchFolder()
    (folder.path / "rows.xlsx").write_text("of a person")
    async with ArtifactStore(JobsSettings(), Path(sys.argv[1])).create(uuid4(), uuid4(), "account.zip") as (_, file):
        # More than the store keeps in memory.
        for _ in range(20):
            await file.write(bytes(1024 * 1024))
        os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main())
"""


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for temporary files of this test alone."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def age(path: Path, seconds: float) -> None:
    moment = time.time() - seconds
    os.utime(path, (moment, moment))


async def complete_one(store: ArtifactStore) -> None:
    async with store.create(uuid4(), uuid4(), "finished.zip") as (_, file):
        await file.write(b"published")


def test_what_a_killed_worker_leaves_is_found(tmp_path: Path, temporary: Path) -> None:
    environment = os.environ | {"TMPDIR": str(temporary)}
    killed = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], env=environment, check=False)
    assert killed.returncode == -signal.SIGKILL
    (staged,) = (tmp_path / "artifacts").rglob("account.zip#*")
    assert staged.stat().st_size > 1024 * 1024
    store = ArtifactStore(JobsSettings(), tmp_path)
    asyncio.run(complete_one(store))
    (finished,) = (tmp_path / "artifacts").rglob("finished.zip")
    age(finished, 7200)
    an_hour_ago = datetime.now(UTC) - timedelta(hours=1)
    assert asyncio.run(store.delete_unfinished(an_hour_ago)) == 0
    age(staged, 7200)
    assert asyncio.run(store.delete_unfinished(an_hour_ago)) == 1
    assert not staged.exists()
    assert finished.read_bytes() == b"published"

    (left,) = temporary.glob("onehop-export-*")
    age(left, scratch._YOUNG_SECONDS + 60)
    assert delete_abandoned_folders() == 1
    assert list(temporary.iterdir()) == []


def test_only_what_is_abandoned_is_deleted(temporary: Path, tmp_path: Path) -> None:
    used, young = ScratchFolder(), ScratchFolder()
    young._lock.close()
    age(used.path, 3600)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "kept").touch()
    link = temporary / "onehop-export-link"
    link.symlink_to(elsewhere)
    os.utime(link, (0, 0), follow_symlinks=False)
    assert delete_abandoned_folders() == 0
    assert (elsewhere / "kept").exists()
    assert used.path.exists()
    assert young.path.exists()
    used.discard()
    assert not used.path.exists()
    age(young.path, 3600)
    assert delete_abandoned_folders() == 1
    assert not young.path.exists()
