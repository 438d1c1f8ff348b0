"""Files in S3: the same promises as in a local directory, against a local S3 server."""

import os
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import httpx
import pytest
from moto.server import ThreadedMotoServer
from pydantic import SecretStr

from app.jobs.service.storage import ArtifactStore, store_problem
from app.jobs.settings import JobsSettings


class CutOffError(Exception):
    """The run ends in the middle of its file."""


@pytest.fixture(scope="module")
def s3() -> Iterator[JobsSettings]:
    """Settings of an empty bucket."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    httpx.put(f"{endpoint}/files").raise_for_status()
    yield JobsSettings(
        artifact_url="s3://files/onehop",
        artifact_s3_endpoint=endpoint,
        artifact_s3_key_id="key",
        artifact_s3_secret=SecretStr("secret"),
    )
    server.stop()


@pytest.fixture(params=["s3", "directory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ArtifactStore:
    settings = request.getfixturevalue("s3") if request.param == "s3" else JobsSettings()
    return ArtifactStore(settings, tmp_path)


async def read(store: ArtifactStore, key: str, start: int, end: int) -> bytes:
    return b"".join([chunk async for chunk in await store.open(key, start, end)])


async def test_a_large_file_is_written_and_read_in_parts(store: ArtifactStore) -> None:
    content = os.urandom(20 * 1024 * 1024)
    async with store.create(uuid4(), uuid4(), "large.bin") as (key, file):
        for start in range(0, len(content), 1_000_000):
            await file.write(content[start : start + 1_000_000])
    assert file.size == len(content)
    assert await read(store, key, 0, len(content)) == content
    assert await read(store, key, 9_999_990, 10_000_010) == content[9_999_990:10_000_010]
    assert await store.read_all(key) == content


async def test_the_data_folder_may_have_any_name(tmp_path: Path) -> None:
    folder = tmp_path / "50% of #1? ü"
    async with ArtifactStore(JobsSettings(), folder).create(uuid4(), uuid4(), "one.txt") as (key, file):
        await file.write(b"1")
    assert (folder / "artifacts" / key).read_bytes() == b"1"


async def test_a_file_that_was_not_finished_does_not_exist(store: ArtifactStore) -> None:
    async def write_and_fail() -> str:
        async with store.create(uuid4(), uuid4(), "half.bin") as (key, file):
            keys.append(key)
            await file.write(b"x" * 20_000_000)
            raise CutOffError

    keys: list[str] = []
    with pytest.raises(CutOffError):
        await write_and_fail()
    with pytest.raises(FileNotFoundError):
        await store.open(keys[0], 0, 1)


async def test_files_are_listed_by_age_and_deleted(store: ArtifactStore) -> None:
    async with store.create(uuid4(), uuid4(), "a.txt") as (key, file):
        await file.write(b"a")
    later, earlier = datetime.now(UTC) + timedelta(minutes=1), datetime.now(UTC) - timedelta(minutes=1)
    assert key in [found async for batch in store.list_before(later) for found in batch]
    assert key not in [found async for batch in store.list_before(earlier) for found in batch]
    await store.delete([key, key])
    with pytest.raises(FileNotFoundError):
        await store.open(key, 0, 1)


async def test_what_is_wrong_with_a_store_is_told_before_a_job_waits_for_it(s3: JobsSettings, tmp_path: Path) -> None:
    assert await store_problem(JobsSettings(), tmp_path) is None
    assert await store_problem(s3, tmp_path) is None
    no_bucket = await store_problem(s3.model_copy(update={"artifact_url": "s3://nowhere/onehop"}), tmp_path)
    assert no_bucket is not None
    assert "NoSuchBucket" in no_bucket or "404" in no_bucket or "not found" in no_bucket.lower(), no_bucket
    in_the_way = tmp_path / "file"
    in_the_way.touch()
    not_a_folder = await store_problem(JobsSettings(artifact_url=f"file://{in_the_way}"), tmp_path)
    assert not_a_folder is not None
    assert [path.name for path in (tmp_path / "artifacts").rglob("*") if path.is_file()] == []
