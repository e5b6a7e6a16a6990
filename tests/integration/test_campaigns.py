"""Campaigns as an application uses them, on a real PostgreSQL."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa
from kombu.connection import Connection

from sender import (
    ConflictError,
    InvalidCampaignError,
    NotFoundError,
    Payload,
    Segment,
    Sender,
    TransitionError,
)
from sender.campaigns import WaitTimeoutError
from sender.policy.states import CAMPAIGN_MOVES, CampaignState
from sender.store.database import Database
from tests.integration.campaign_rows import APP, PAYLOAD, add_app, add_device, add_devices, start


@pytest.fixture
def app(database: Database) -> int:
    with database.transaction() as transaction:
        app_id = add_app(transaction)
        add_devices(transaction, app_id, 5)
    return app_id


def keys(sender: Sender) -> list[str]:
    return [row.key for row in sender.campaigns.list()]


def test_the_same_key_and_content_is_the_same_campaign(app: int, sender: Sender) -> None:
    def again() -> Any:
        return sender.campaigns.enqueue(
            APP, key="spring", payload=PAYLOAD, audience=Segment.where(plan=["a", "b"]), rate=2000
        )

    first, second = again(), again()
    reordered = {"aps": {"alert": {"body": "20 % off today", "title": "Spring sale"}}}
    third = sender.campaigns.enqueue(
        APP, key="spring", payload=reordered, audience=Segment.where(plan=["b", "a"]), rate=2000.0
    )
    assert first.row.id == second.row.id == third.row.id
    assert keys(sender) == ["spring"]


@pytest.mark.parametrize(
    "change",
    [
        {"payload": Payload(alert="other")},
        {"audience": Segment.where(plan="pro")},
        {"rate": None},
        {"expires_in": 60},
        {"send_at": datetime(2099, 1, 1, tzinfo=UTC)},
        {"batch_size": 7},
        {"priority": 5},
        {"collapse_id": None},
        {"delivery": "at_most_once"},
    ],
)
def test_the_same_key_with_other_content_is_an_error(app: int, sender: Sender, change: dict[str, Any]) -> None:
    sender.campaigns.enqueue(APP, key="spring", payload=PAYLOAD)
    with pytest.raises(ConflictError, match="other content"):
        sender.campaigns.enqueue(APP, **({"key": "spring", "payload": PAYLOAD} | change))


def test_the_same_key_for_another_app_is_an_error(app: int, sender: Sender, database: Database) -> None:
    with database.transaction() as transaction:
        add_app(transaction, bundle_id="com.example.other")
    sender.campaigns.enqueue(APP, key="spring", payload=PAYLOAD)
    with pytest.raises(ConflictError, match="other content"):
        sender.campaigns.enqueue("com.example.other", key="spring", payload=PAYLOAD)


def test_many_at_once_with_one_key_make_one_campaign(app: int, sender: Sender) -> None:
    barrier = threading.Barrier(8)

    def enqueue(_: int) -> int:
        barrier.wait()
        return int(sender.campaigns.enqueue(APP, key="spring", payload=PAYLOAD).row.id)

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(enqueue, range(8)))) == 1
    assert keys(sender) == ["spring"]


def test_the_body_that_goes_out_is_kept_as_bytes_with_the_campaigns_key(app: int, sender: Sender) -> None:
    row = sender.campaigns.enqueue(APP, key="spring", payload=Payload(alert="Été"), expires_in=0).row
    assert row.payload == '{"aps":{"alert":"Été"},"sender":{"campaign":"spring"}}'.encode()
    assert (row.collapse_id, row.push_type, row.priority, row.expires_in) == ("spring", "alert", 10, 0)


def test_nothing_is_written_when_anything_is_wrong(app: int, sender: Sender, database: Database) -> None:
    with pytest.raises(InvalidCampaignError):
        sender.campaigns.enqueue(APP, key="spring", payload=PAYLOAD, rate=-1)
    with pytest.raises(NotFoundError, match="sender apps add"):
        sender.campaigns.enqueue("com.example.nobody", key="spring", payload=PAYLOAD)
    with pytest.raises(InvalidCampaignError, match="no campaign 'winter'"):
        sender.campaigns.enqueue(APP, key="spring", payload=PAYLOAD, audience=~Segment.not_sent("winter"))
    with database.transaction() as transaction:
        add_app(transaction, "production", bundle_id="com.example.certificate", kind="certificate")
    with pytest.raises(InvalidCampaignError, match="needs a key credential"):
        sender.campaigns.enqueue(
            "com.example.certificate", key="spring", payload={"aps": {}, "a": 1}, push_type="location"
        )
    assert keys(sender) == []


def test_enqueueing_works_while_the_broker_is_down(app: int, settings: Any) -> None:
    down = settings.model_copy(update={"broker_url": type(settings.broker_url)("redis://127.0.0.1:1/0")})
    with Sender(settings=down) as sender:
        assert sender.campaigns.enqueue(APP, key="spring", payload=PAYLOAD).state is CampaignState.SCHEDULED


def messages(settings: Any) -> int:
    with Connection(settings.broker_url.get_secret_value()) as connection:
        return int(connection.default_channel.client.llen(settings.queue("control")))


def test_an_enqueue_nudges_the_workers_after_the_commit_and_a_callers_transaction_does_not(
    app: int, sender: Sender, settings: Any
) -> None:
    sender.campaigns.enqueue(APP, key="one", payload=PAYLOAD)
    assert messages(settings) == 1
    with psycopg.connect(settings.database_url.get_secret_value()) as connection:
        sender.campaigns.enqueue(APP, key="two", payload=PAYLOAD, connection=connection)
    assert messages(settings) == 1
    sender.campaigns.create_draft(APP, key="three", payload=PAYLOAD)
    assert messages(settings) == 1


def test_an_enqueue_shares_the_fate_of_the_callers_transaction(app: int, sender: Sender, settings: Any) -> None:
    url = settings.database_url.get_secret_value()
    with psycopg.connect(url) as connection:
        sender.campaigns.enqueue(APP, key="rolled-back", payload=PAYLOAD, connection=connection)
        connection.rollback()
        sender.campaigns.enqueue(APP, key="kept", payload=PAYLOAD, connection=connection)
        assert keys(sender) == []
    engine = sa.create_engine("postgresql+psycopg://", creator=lambda: psycopg.connect(url))
    with engine.connect() as other, other.begin() as transaction:
        sender.campaigns.enqueue(APP, key="never", payload=PAYLOAD, connection=other)
        transaction.rollback()
    with engine.begin() as other:
        sender.campaigns.enqueue(APP, key="also-kept", payload=PAYLOAD, connection=other)
    engine.dispose()
    assert sorted(keys(sender)) == ["also-kept", "kept"]


def test_a_draft_waits_until_it_is_sent(app: int, sender: Sender) -> None:
    draft = sender.campaigns.create_draft(APP, key="spring", payload=PAYLOAD)
    assert draft.state is CampaignState.DRAFT
    with pytest.raises(ConflictError, match="draft"):
        draft.wait(timeout=1)
    moment = datetime(2099, 1, 1, tzinfo=UTC)
    sent = sender.campaigns.send("spring", send_at=moment)
    assert (sent.state, sent.row.send_at) == (CampaignState.SCHEDULED, moment)
    with pytest.raises(TransitionError, match="scheduled and cannot be sent; possible now: cancel"):
        sender.campaigns.send("spring")
    with pytest.raises(InvalidCampaignError, match="no time zone"):
        sender.campaigns.send("spring", send_at=datetime(2099, 1, 1))


def test_enqueueing_what_is_a_draft_releases_it_and_a_draft_of_what_runs_changes_nothing(
    app: int, sender: Sender
) -> None:
    sender.campaigns.create_draft(APP, key="spring", payload=PAYLOAD)
    assert sender.campaigns.enqueue(APP, key="spring", payload=PAYLOAD).state is CampaignState.SCHEDULED
    assert sender.campaigns.create_draft(APP, key="spring", payload=PAYLOAD).state is CampaignState.SCHEDULED


VERBS: dict[str, tuple[CampaignState, Callable[[Sender], Any]]] = {
    "send": (CampaignState.SCHEDULED, lambda sender: sender.campaigns.send("spring")),
    "pause": (CampaignState.PAUSED, lambda sender: sender.campaigns.pause("spring", reason="why")),
    "resume": (CampaignState.RUNNING, lambda sender: sender.campaigns.resume("spring")),
    "cancel": (CampaignState.CANCELLED, lambda sender: sender.campaigns.cancel("spring", reason="why")),
}


@pytest.mark.parametrize("state", list(CampaignState))
@pytest.mark.parametrize("verb", list(VERBS))
def test_every_verb_moves_only_where_the_map_allows_and_moves_the_epoch(
    app: int, sender: Sender, database: Database, verb: str, state: CampaignState
) -> None:
    before = sender.campaigns.enqueue(APP, key="spring", payload=PAYLOAD).row
    with database.transaction() as transaction:
        transaction.execute("UPDATE {s}.campaigns SET state = %s", (state.value,))
    target, act = VERBS[verb]
    allowed = target in CAMPAIGN_MOVES[state] and not (verb == "resume" and state is CampaignState.SCHEDULED)
    if allowed:
        act(sender)
    else:
        with pytest.raises(TransitionError, match="spring"):
            act(sender)
    after = sender.campaigns.load("spring")
    assert after.state is (target if allowed else state)
    assert after.epoch == before.epoch + allowed


def test_a_command_to_an_unknown_campaign_says_where_to_look(sender: Sender) -> None:
    for act in (sender.campaigns.pause, sender.campaigns.report, sender.campaigns.preview, sender.campaigns.wait):
        with pytest.raises(NotFoundError, match="campaigns list"):
            act("nobody")


def test_two_commands_at_once_resolve_by_the_state_machine(app: int, sender: Sender, database: Database) -> None:
    sender.campaigns.enqueue(APP, key="spring", payload=PAYLOAD)
    start(database, "spring")
    barrier = threading.Barrier(4)

    def command(number: int) -> bool:
        barrier.wait()
        try:
            sender.campaigns.pause("spring", reason=str(number))
        except TransitionError:
            return False
        return True

    with ThreadPoolExecutor(4) as pool:
        assert sorted(pool.map(command, range(4))) == [False, False, False, True]
    assert sender.campaigns.load("spring").epoch == 1


def test_a_cancelled_campaign_that_never_started_is_finished_at_once(app: int, sender: Sender) -> None:
    campaign = sender.campaigns.enqueue(APP, key="spring", payload=PAYLOAD, send_at=datetime(2099, 1, 1, tzinfo=UTC))
    report = campaign.cancel("mistake").wait(timeout=60)
    assert (report.state, report.state_reason, report.state_actor) == ("cancelled", "mistake", "application")
    assert report.finished_at is not None
    assert report.audience == 0


def test_waiting_ends_with_the_campaign_or_when_a_person_must_act_or_in_time(
    app: int, sender: Sender, database: Database
) -> None:
    campaign = sender.campaigns.enqueue(APP, key="spring", payload=PAYLOAD)
    start(database, "spring", audience_estimate=5)
    with pytest.raises(TimeoutError) as caught:
        campaign.wait(timeout=0.2)
    assert isinstance(caught.value, WaitTimeoutError)
    assert caught.value.report.pending == 5

    def change(statement: str) -> None:
        with database.transaction() as transaction:
            transaction.execute(statement)

    campaign.pause()
    with pytest.raises(TimeoutError):
        campaign.wait(timeout=0.1)
    change("UPDATE {s}.campaigns SET state_actor = 'system', state_reason = 'InvalidProviderToken'")
    assert campaign.wait(timeout=60).held
    campaign.resume()
    change("UPDATE {s}.apps SET state = 'paused'")
    assert campaign.wait(timeout=60).held
    change("UPDATE {s}.apps SET state = 'active'")
    threading.Timer(
        0.3, change, ["UPDATE {s}.campaigns SET state = 'completed', finished_at = now(), cut_finished = true"]
    ).start()
    assert campaign.wait(timeout=60).state is CampaignState.COMPLETED
    assert campaign.refresh().state is CampaignState.COMPLETED


def test_the_list_is_newest_first_and_narrows(app: int, sender: Sender, database: Database) -> None:
    with database.transaction() as transaction:
        add_app(transaction, bundle_id="com.example.other")
    for key in ("a", "b"):
        sender.campaigns.enqueue(APP, key=key, payload=PAYLOAD)
    sender.campaigns.create_draft("com.example.other", key="c", payload=PAYLOAD)
    assert keys(sender) == ["c", "b", "a"]
    assert [row.key for row in sender.campaigns.list(app=APP, limit=1)] == ["b"]
    assert [row.key for row in sender.campaigns.list(state="draft")] == ["c"]
    with pytest.raises(NotFoundError, match="no app 'com"):
        sender.campaigns.list(app="com.example.nobody")


def test_a_preview_is_the_exact_request_with_the_token_shortened(app: int, sender: Sender, database: Database) -> None:
    with database.transaction() as transaction:
        add_device(transaction, app, 0xABCDEF << 232, user="u-42", environment="sandbox", attributes={"plan": "pro"})
        add_device(transaction, app, 77, user="u-43", state="invalid")
    moment = datetime(2099, 1, 1, tzinfo=UTC)
    sender.campaigns.enqueue(
        APP,
        key="spring",
        payload=Payload(content_available=True, data={"a": 1}),
        audience=Segment.where(plan="pro"),
        send_at=moment,
        expires_in=timedelta(days=1),
    )
    preview = sender.campaigns.preview("spring", user="u-42")
    assert preview.environment == "sandbox"
    assert preview.url == "https://api.sandbox.push.apple.com:443/3/device/abcdef00…"
    assert preview.headers["apns-topic"] == APP
    assert preview.headers["apns-push-type"] == "background"
    assert preview.headers["apns-priority"] == "5"
    assert preview.headers["apns-collapse-id"] == "spring"
    assert preview.headers["apns-expiration"] == str(int(moment.timestamp()) + 86_400)
    assert preview.body == sender.campaigns.load("spring").payload
    assert preview.size == len(preview.body)
    assert preview.reachable
    other = sender.campaigns.preview("spring", user="u-43")
    assert not other.reachable
    assert "not in the campaign's segment" in (other.note or "")
    assert "invalid" in (other.note or "")
    with pytest.raises(NotFoundError):
        sender.campaigns.preview("spring", user="nobody")
    assert sender.campaigns.preview("spring").environment == "sandbox"


def test_a_rehearsal_tells_everything_and_writes_nothing(app: int, sender: Sender) -> None:
    rehearsal = sender.campaigns.rehearse(APP, key="spring", payload=PAYLOAD, rate=2)
    assert rehearsal.count.total == 5
    assert rehearsal.seconds == 2.5
    assert rehearsal.preview.headers["apns-topic"] == APP
    assert keys(sender) == []
    count = sender.campaigns.count(APP, audience=Segment.percentage(0))
    assert count.total == 0
