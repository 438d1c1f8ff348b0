"""Every stage of the ladder keeps one contract, and stage 0 has the story's faults and no more."""

from pathlib import Path

import pytest

from benchmarks.ladder.measures import canonical_order, canonical_overview, count_overview, order_request
from benchmarks.ladder.services import NAMES
from benchmarks.ladder.stages import STAGES, make_tables, outside, started
from benchmarks.product import Bench

READERS, CUSTOMER = (1, 2, 3), 4


@pytest.mark.slow
async def test_every_stage_answers_the_same_bytes(tmp_path: Path) -> None:
    async with Bench(tmp_path) as bench:
        await bench.fill(people=20, events=12)
        tokens = {number: bench.token(number) for number in (*READERS, CUSTOMER)}
        await make_tables(bench, tokens)
        overviews, orders, costs = [], [], {}
        async with outside(bench) as world:
            for stage in STAGES:
                async with started(stage, bench, world) as group:
                    overviews.append([await canonical_overview(group, tokens[number]) for number in READERS])
                    costs[stage.number] = await count_overview(group, bench, [tokens[number] for number in READERS])
                    number = f"SAME-{stage.number if stage.is_product else 0}"
                    answer = await canonical_order(group, order_request(tokens[CUSTOMER], number))
                    orders.append(answer.replace(number.encode(), b"SAME"))
                    assert len(group.members) == stage.services
    assert overviews == [overviews[0]] * len(STAGES)
    assert len(set(overviews[0])) == len(READERS)
    assert orders == [orders[0]] * len(STAGES)
    # Statements and calls between services of one overview: without a cache, then with it.
    assert costs == {0: (14, 9), 1: (14, 0), 2: (14, 0), 3: (14, 0), 4: (2, 0), 5: (0, 0), 6: (0, 0)}


def test_the_story_has_fourteen_services() -> None:
    assert len(set(NAMES)) == 14
