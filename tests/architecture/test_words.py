"""One word for one thing: words that the code has given up for the terms of the field do not come back."""

import re

import pytest

from tests.architecture.source import ROOT

# The retired word, as a whole identifier or word, and what is said instead (docs/glossary.md).
RETIRED = {
    "Loan": "ConnectionLease",
    "Lender": "LeaseOwner",
    "loan": "lease",
    "loans": "leases",
    "lend": "lease",
    "lent": "leased",
    "Stalls": "SyncStandbyMonitor",
    "_settle_alone": "_run_after_commit_detached",
    "_follow_up": "_run_after_commit",
    "note_commit": "remember_commit",
    "note_failure": "record_failure",
    "auditing": "audit_log",
    "throttling": "login_throttle",
    "issuing": "token_issuer",
    "Gate": "Limiter",
    "seat": "queue",
    "seats": "queue",
    "has_seat": "can_queue",
    "take_place": "acquire_slot",
    "leave_place": "release_slot",
    "hold_place": "assign_slot",
    "is_pressed": "is_saturated",
    "_feel_pressure": "_mark_saturated",
    "recall": "cached_principal",
    "lies_in_memory": "is_cached",
    "remembered_cost": "cached_cost",
    "Remembered": "Edge",
    "Outbox": "RefusalQueue",
    "bell": "wakeup",
    "bells": "wakeups",
    "rings": "servers",
    "_ring_of": "_server_of",
    "_ring_again": "_notify_later",
    "_is_deaf": "_is_rejecting",
    "_say_goodbye": "_half_close",
    "is_overrun": "is_over_hard_cap",
    "guard_of": "manager_of",
    "nobody": "no user, no client, no request",
    "Nobody": "no user, no client, no request",
    "somebody": "a user, a client, a process",
    "Somebody": "a user, a client, a process",
    "anybody": "every user, every client",
    "Anybody": "every user, every client",
    "whoever": "the client, the operator, the process that",
    "Whoever": "the client, the operator, the process that",
    "visitors": "clients",
    "Visitors": "KeepaliveClients",
    "page_of": "paginate_in_memory",
    "_is_nowhere": "_is_unknown_path",
    "Beat": "Heartbeat",
    "Listeners": "WebhookSubscribers",
    "listeners": "webhook_subscribers",
    "Positions": "WalPositions",
    "Postman": "MailOutbox",
    "postman": "outbox",
    "patience": "timeout",
    "doubt": "unknown_outcome",
    "doubtful": "unknown_outcome",
    "_mark_doubtful": "_mark_unknown_outcome",
    "Refusal": "PreparedProblem",
    "_Exchange": "_ResponseTracker",
    "Lane": "Queue",
    "lane": "queue",
    "lanes": "queues",
    "LANES": "QUEUES",
    "LaneBoard": "QueueBacklogs",
    "LaneDepth": "QueueDepth",
    "LaneShare": "QueueShare",
    "lane_not_found": "queue_not_found",
}
# A column keeps its name, because processes of the release before read it during an update.
_COLUMN = "the table `jobs.lanes` or the column `lane`"
_SYSTEM_USER = "the user `nobody` of the system"
_WIRE = "a name in Redis that processes of the release before read during an update"
# Where a retired word is meant literally, or is a record of the past: the file, the word, and why.
EXCEPTIONS: dict[tuple[str, str], str] = {
    ("app/dev/embedded/privileges.py", "nobody"): _SYSTEM_USER,
    ("app/identity/service/token_refresh.py", "doubt"): _WIRE,
    ("app/kernel/webhook_subscribers.py", "listeners"): _WIRE,
    ("tests/dev/test_embedded_users.py", "nobody"): _SYSTEM_USER,
    ("tests/jobs/test_documents.py", "bell"): "the control character BEL",
    ("tests/jobs/test_invoices.py", "bell"): "the control character BEL",
    ("tests/kernel/test_text.py", "bell"): "the control character BEL",
    ("app/jobs/__init__.py", "lanes"): _COLUMN,
    ("app/jobs/queries/administration.py", "lane"): _COLUMN,
    ("app/jobs/queries/administration.py", "lanes"): _COLUMN,
    ("app/jobs/queries/execution.py", "lane"): _COLUMN,
    ("app/jobs/queries/execution.py", "lanes"): _COLUMN,
    ("app/jobs/queries/relay.py", "lane"): _COLUMN,
    ("app/jobs/queries/relay.py", "lanes"): _COLUMN,
    ("app/jobs/queries/searching.py", "lane"): _COLUMN,
    ("app/jobs/queries/submitting.py", "lane"): _COLUMN,
    ("benchmarks/bounds.py", "lanes"): _COLUMN,
    ("benchmarks/data.py", "lane"): _COLUMN,
    ("benchmarks/growth.py", "lane"): _COLUMN,
    ("docs/benchmarks/README.md", "lane"): _COLUMN,
    ("docs/benchmarks/bounds.md", "lanes"): _COLUMN,
    ("docs/glossary.md", "lane"): _COLUMN,
    ("docs/operations.md", "nobody"): _SYSTEM_USER,
    ("tests/attacks/jobs/test_backlogs.py", "lane"): _COLUMN,
    ("tests/attacks/jobs/test_heavy_data.py", "lanes"): _COLUMN,
    ("tests/attacks/jobs/test_starvation.py", "lane"): _COLUMN,
    ("tests/attacks/jobs/test_starvation.py", "lanes"): _COLUMN,
    ("tests/attacks/test_bounded_reads.py", "lane"): _COLUMN,
    ("tests/attacks/test_mail_limits.py", "lane"): _COLUMN,
    ("tests/attacks/test_personal_data.py", "lane"): _COLUMN,
    ("tests/attacks/test_personal_data.py", "lanes"): _COLUMN,
    ("tests/jobs/rows.py", "lane"): _COLUMN,
    ("tests/jobs/test_admin.py", "lane"): _COLUMN,
    ("tests/jobs/test_bulk.py", "lane"): _COLUMN,
    ("tests/jobs/test_bulk.py", "lanes"): _COLUMN,
    ("tests/jobs/test_deliveries.py", "lane"): _COLUMN,
    ("tests/jobs/test_deliveries.py", "lanes"): _COLUMN,
    ("tests/jobs/test_admin.py", "lanes"): _COLUMN,
    ("tests/jobs/test_api.py", "lane"): _COLUMN,
    ("tests/jobs/test_cleaning.py", "lane"): _COLUMN,
    ("tests/jobs/test_cli.py", "lane"): _COLUMN,
    ("tests/jobs/test_queue.py", "lane"): _COLUMN,
    ("tests/jobs/test_queue_servers.py", "lane"): _COLUMN,
    ("tests/jobs/test_queue_servers.py", "lanes"): _COLUMN,
    ("tests/jobs/test_queues.py", "lane"): _COLUMN,
    ("tests/jobs/test_queues.py", "lanes"): _COLUMN,
    ("tests/jobs/test_webhook_events.py", "lane"): _COLUMN,
    ("tests/jobs/test_weekly_report.py", "lane"): _COLUMN,
    ("tests/jobs/test_weekly_report.py", "lanes"): _COLUMN,
}
FOLDERS = ("app", "tests", "benchmarks", "docs")
ENDINGS = {".py", ".md", ".html"}
WORD = re.compile(r"\w+")


def retired_words(text: str) -> list[tuple[int, str]]:
    """The retired words of a text, each with its line."""
    return [
        (number, word)
        for number, line in enumerate(text.splitlines(), 1)
        for word in WORD.findall(line)
        if word in RETIRED
    ]


def test_no_retired_word_is_used() -> None:
    """Decisions are a record of their time, and this file has the list."""
    found, needed = [], set()
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*")):
            name = path.relative_to(ROOT).as_posix()
            if (
                path.suffix not in ENDINGS
                # Packages of others that `make install-clients` puts there.
                or "node_modules" in path.parts
                or name.startswith("docs/decisions/")
                or name == "tests/architecture/test_words.py"
            ):
                continue
            for number, word in retired_words(name + "\n" + path.read_text(encoding="utf-8")):
                if (name, word) in EXCEPTIONS:
                    needed.add((name, word))
                else:
                    found.append(f"{name}:{number - 1}: {word}, say {RETIRED[word]}")
    assert found == []
    assert set(EXCEPTIONS) == needed


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("class Gate:", [(1, "Gate")]),
        ("ok\nself._ring_of(ref)  # rings", [(2, "_ring_of"), (2, "rings")]),
        ("The Gateway is delegated; earrings and talent stay.", []),
    ],
)
def test_retired_words_are_found_as_whole_words(text: str, words: list[tuple[int, str]]) -> None:
    assert retired_words(text) == words
