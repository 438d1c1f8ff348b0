"""A data folder of the test, which the command line works on."""

import os
from pathlib import Path

import pytest

from tests.fixtures.application import free_port
from tests.fixtures.servers import AddCluster


@pytest.fixture
def environment(server_room: Path) -> dict[str, str]:
    """Nothing set but a data folder and a free port."""
    return os.environ | {"APP_DATA_DIR": str(server_room / "data"), "PORT": str(free_port())}


@pytest.fixture
def cluster(environment: dict[str, str], add_cluster: AddCluster) -> None:
    """The data folder has an empty cluster; that `dev` makes one is tested where it starts everything."""
    add_cluster(Path(environment["APP_DATA_DIR"]))
