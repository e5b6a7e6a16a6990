"""The tables, as SQLModel definitions: what Alembic's migrations must add up to (a test compares them).

The statements of the hot paths are written out in the modules beside this one; these definitions carry names, types
and indexes, and build the dynamic SQL of segments. No schema is named here: SENDER_DATABASE_SCHEMA is put in when a
statement runs (`sender.store.database`).
"""

from __future__ import annotations

from datetime import date, datetime
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql as pg
from sqlalchemy.orm import registry
from sqlmodel import Field, SQLModel

TIMESTAMP = sa.TIMESTAMP(timezone=True)
NOW = sa.text("now()")

#: Of our own: an application's SQLModel classes and their metadata stay apart.
metadata = sa.MetaData(
    naming_convention={
        "pk": "%(table_name)s_pkey",
        "uq": "%(table_name)s_%(column_0_N_name)s_key",
        "fk": "%(table_name)s_%(column_0_name)s_fkey",
    }
)


class Xid8(sa.types.UserDefinedType[int]):
    """PostgreSQL's 64-bit transaction id, which never wraps around."""

    cache_ok = True

    def get_col_spec(self, **_: Any) -> str:
        return "xid8"


class Table(SQLModel, registry=registry(metadata=metadata)):
    """Base of the tables."""


def _identity(**extra: Any) -> Any:
    return Field(default=None, sa_column=sa.Column(sa.BigInteger, sa.Identity(always=False), primary_key=True, **extra))


def _column(type_: Any, *args: Any, nullable: bool = False, **options: Any) -> Any:
    return Field(default=None, sa_column=sa.Column(type_, *args, nullable=nullable, **options))


class App(Table, table=True):
    """An application: a bundle id."""

    __tablename__ = "apps"

    id: int = _identity()
    bundle_id: str = _column(sa.Text, unique=True)
    state: str = _column(sa.Text, server_default="active")  # policy.states.AppState
    state_reason: str | None = _column(sa.Text, nullable=True)
    state_changed_at: datetime = _column(TIMESTAMP, server_default=NOW)
    epoch: int = _column(sa.BigInteger, server_default="0")  # moved by whatever workers must notice at once
    rate: float | None = _column(sa.Double, nullable=True)  # pushes a second; null: unlimited
    healing: bool = _column(sa.Boolean, server_default=sa.false())  # BadDeviceToken is tried in the other environment
    paced_at: datetime | None = _column(TIMESTAMP, nullable=True)  # its rate was set, or it was paused or resumed
    created_at: datetime = _column(TIMESTAMP, server_default=NOW)


class Credential(Table, table=True):
    """Where an app's credential for one environment is kept: a file, and the name of a variable. Never a secret."""

    __tablename__ = "credentials"
    __table_args__ = (sa.PrimaryKeyConstraint("app_id", "environment"),)

    app_id: int = _column(sa.BigInteger, sa.ForeignKey("apps.id", ondelete="CASCADE"))
    environment: str = _column(sa.Text)
    kind: str = _column(sa.Text)
    file: str = _column(sa.Text)
    team_id: str | None = _column(sa.Text, nullable=True)
    key_id: str | None = _column(sa.Text, nullable=True)
    passphrase_env: str | None = _column(sa.Text, nullable=True)
    created_at: datetime = _column(TIMESTAMP, server_default=NOW)


class User(Table, table=True):
    """The application's own user. Other tables hold the surrogate id only, so that a person can be forgotten."""

    __tablename__ = "users"

    id: int = _identity()
    external_id: str | None = _column(sa.Text, nullable=True, unique=True)
    created_at: datetime = _column(TIMESTAMP, server_default=NOW)


class Device(Table, table=True):
    """A token of an app, and what is known of it."""

    __tablename__ = "devices"
    __table_args__ = (
        sa.UniqueConstraint("token", "app_id"),  # in this order it serves look-ups by a token's beginning too
        sa.Index("devices_app_id_id_idx", "app_id", "id"),  # the cut's keyset
        sa.Index("devices_user_id_idx", "user_id"),
        sa.Index(
            "devices_quarantined_idx",
            "app_id",
            "state_changed_at",
            "id",
            postgresql_where=sa.text("state = 'quarantined'"),
        ),
        {"postgresql_with": {"fillfactor": "90"}},
    )

    id: int = _identity()
    app_id: int = _column(sa.BigInteger, sa.ForeignKey("apps.id"))
    token: str = _column(sa.Text(collation="C"))  # lower-case hex
    environment: str = _column(sa.Text)
    user_id: int | None = _column(sa.BigInteger, sa.ForeignKey("users.id"), nullable=True)
    locale: str | None = _column(sa.Text, nullable=True)
    timezone: str | None = _column(sa.Text, nullable=True)
    attributes: dict[str, Any] = _column(pg.JSONB, server_default=sa.text("'{}'::jsonb"))
    authorization: str = _column(sa.Text, server_default="unknown")
    state: str = _column(sa.Text, server_default="active")  # policy.states.DeviceState
    state_reason: str | None = _column(sa.Text, nullable=True)
    state_changed_at: datetime = _column(TIMESTAMP, server_default=NOW)
    state_campaign_id: int | None = _column(sa.BigInteger, nullable=True)  # the campaign that moved it there
    blocklisted_until: datetime | None = _column(TIMESTAMP, nullable=True)
    blocklisted_times: int = _column(sa.SmallInteger, server_default="0")  # in a row; a success ends the row
    stale_410_campaign_id: int | None = _column(sa.BigInteger, nullable=True)  # an older-than-registration 410's
    registered_at: datetime | None = _column(TIMESTAMP, nullable=True)  # null: unknown, older than any 410
    last_seen_at: datetime | None = _column(TIMESTAMP, nullable=True)
    created_at: datetime = _column(TIMESTAMP, server_default=NOW)


class Change(Table, table=True):
    """One row of the push changelog: append only, surrogate ids only, partitioned by month of `at`.

    (transaction_id, id) is the feed's order: a reader goes no further than the oldest transaction still open, so that
    a row which commits late is never passed over.
    """

    __tablename__ = "changelog"
    __table_args__ = (
        sa.PrimaryKeyConstraint("at", "id"),
        sa.Index("changelog_feed_idx", "transaction_id", "id"),
        sa.Index("changelog_device_id_idx", "device_id", "id"),
        sa.Index("changelog_user_ids_idx", "user_id", "id"),
        sa.Index("changelog_campaign_id_idx", "campaign_id", "id", postgresql_where=sa.text("campaign_id IS NOT NULL")),
        {"postgresql_partition_by": "RANGE (at)"},
    )

    at: datetime = _column(TIMESTAMP, server_default=NOW)
    id: int = _column(sa.BigInteger, server_default=sa.text("nextval('changelog_id_seq')"))  # no identity: partitions
    transaction_id: Any = _column(Xid8, server_default=sa.text("pg_current_xact_id()"))
    app_id: int | None = _column(sa.BigInteger, nullable=True)
    device_id: int | None = _column(sa.BigInteger, nullable=True)
    user_id: int | None = _column(sa.BigInteger, nullable=True)  # whose changelog this row belongs to
    kind: str = _column(sa.Text)  # model of changes: store/changelog.py
    old: dict[str, Any] | None = _column(pg.JSONB, nullable=True)
    new: dict[str, Any] | None = _column(pg.JSONB, nullable=True)
    reason: str | None = _column(sa.Text, nullable=True)  # APNs's reason, or the asker's
    campaign_id: int | None = _column(sa.BigInteger, nullable=True)
    apns_id: UUID | None = _column(sa.Uuid, nullable=True)
    actor: str = _column(sa.Text)  # apns, application, import, operator, sender


class Campaign(Table, table=True):
    """What is sent to whom, when and how fast; and how far it has come."""

    __tablename__ = "campaigns"
    __table_args__ = (
        sa.Index(
            "campaigns_open_idx",
            "state",
            "send_at",
            postgresql_where=sa.text("state IN ('scheduled', 'running', 'paused')"),
        ),
        sa.Index("campaigns_unfinished_idx", "id", postgresql_where=sa.text("finished_at IS NULL")),
        sa.Index("campaigns_app_id_idx", "app_id", "id"),
        sa.Index(
            "campaigns_retained_idx",
            "started_on",
            postgresql_where=sa.text("started_on IS NOT NULL AND sent_removed_at IS NULL"),
        ),
    )

    id: int = _identity()
    app_id: int = _column(sa.BigInteger, sa.ForeignKey("apps.id"))
    key: str = _column(sa.Text, unique=True)
    state: str = _column(sa.Text, server_default="draft")  # policy.states.CampaignState
    state_reason: str | None = _column(sa.Text, nullable=True)
    state_actor: str | None = _column(sa.Text, nullable=True)  # operator, application, system
    epoch: int = _column(sa.BigInteger, server_default="0")  # moved by pause, resume, cancel, changes of rate
    content: dict[str, Any] = _column(pg.JSONB)  # what was asked for, canonical: compared on a repeat of the key
    payload: bytes = _column(sa.LargeBinary)  # the body that goes out, encoded once
    push_type: str = _column(sa.Text)
    priority: int = _column(sa.SmallInteger)
    collapse_id: str | None = _column(sa.Text, nullable=True)
    segment: dict[str, Any] = _column(pg.JSONB)
    rate: float | None = _column(sa.Double, nullable=True)  # pushes a second; null: unlimited
    batch_size: int = _column(sa.Integer)
    delivery: str = _column(sa.Text, server_default="at_least_once")  # or at_most_once
    expires_in: float = _column(sa.Double)  # seconds from the start; 0: one attempt, never stored
    send_at: datetime | None = _column(TIMESTAMP, nullable=True)
    grace: float = _column(sa.Double)  # seconds by which the start may be late
    expiration: datetime | None = _column(TIMESTAMP, nullable=True)  # fixed at the start
    started_on: date | None = _column(sa.Date, nullable=True)  # the ledger's partition key, fixed at the start (UTC)
    created_at: datetime = _column(TIMESTAMP, server_default=NOW)
    started_at: datetime | None = _column(TIMESTAMP, nullable=True)
    finished_at: datetime | None = _column(TIMESTAMP, nullable=True)
    audience_estimate: int = _column(sa.BigInteger, server_default="0")  # counted when it was enqueued or started
    exclusions: dict[str, Any] = _column(pg.JSONB, server_default=sa.text("'{}'::jsonb"))  # cause -> devices
    cut_cursor: int = _column(sa.BigInteger, server_default="0")  # the last device id that was looked at
    cut_limit: int | None = _column(sa.BigInteger, nullable=True)  # the highest device id when it started
    cut_finished: bool = _column(sa.Boolean, server_default=sa.false())
    cut_devices: int = _column(sa.BigInteger, server_default="0")  # devices in first-send batches so far
    low_batch_id: int = _column(sa.BigInteger, server_default="0")  # every batch up to here is done
    fanout_until: datetime | None = _column(TIMESTAMP, nullable=True)  # a fan-out is at it until then
    over: float | None = _column(sa.Double, nullable=True)  # seconds to spread it over: its start makes a rate of it
    finish_by: datetime | None = _column(TIMESTAMP, nullable=True)  # its own deadline: warned of, never enforced
    paced_at: datetime | None = _column(TIMESTAMP, nullable=True)  # its rate was set, or it was paused or resumed
    canary: dict[str, Any] | None = _column(pg.JSONB, nullable=True)  # {"share" or "count", "hold", "thresholds"}
    canary_state: str | None = _column(sa.Text, nullable=True)  # policy.states.CanaryState
    retested: int = _column(sa.BigInteger, server_default="0")  # quarantined devices that were cut into it
    totals: dict[str, Any] | None = _column(pg.JSONB, nullable=True)  # its counts, once its batch rows are removed
    sent_removed_at: datetime | None = _column(TIMESTAMP, nullable=True)  # when retention took its `sent` rows


class Batch(Table, table=True):
    """Devices that are claimed, sent and recorded together. The audience *is* what the batches hold.

    No index on the state: it would end HOT updates. Open batches are found by campaign.
    """

    __tablename__ = "batches"
    __table_args__ = (
        sa.Index("batches_campaign_id_idx", "campaign_id", "id"),
        {"postgresql_with": {"fillfactor": "70"}},
    )

    id: int = _identity()
    campaign_id: int = _column(sa.BigInteger, sa.ForeignKey("campaigns.id"))
    kind: str = _column(sa.Text, server_default="first")  # first, retry, retest (of quarantined devices)
    wave: int = _column(sa.SmallInteger, server_default="0")  # room for local-time waves
    device_ids: list[int] = _column(pg.ARRAY(sa.BigInteger))
    size: int = _column(sa.Integer)
    state: str = _column(sa.Text, server_default="open")  # policy.states.BatchState
    epoch: int = _column(sa.Integer, server_default="0")  # claims so far
    owner: UUID | None = _column(sa.Uuid, nullable=True)  # fresh for every claim
    beats: int = _column(sa.BigInteger, server_default="0")  # the claim's heartbeat: a counter, not a time
    due_at: datetime | None = _column(TIMESTAMP, nullable=True)  # not before; null: now
    setbacks: int = _column(sa.SmallInteger, server_default="0")  # times in a row that nothing of it could be issued
    published_at: datetime | None = _column(TIMESTAMP, nullable=True)  # a hint, never proof
    created_at: datetime = _column(TIMESTAMP, server_default=NOW)
    finished_at: datetime | None = _column(TIMESTAMP, nullable=True)
    sent: int = _column(sa.Integer, server_default="0")
    rejected: int = _column(sa.Integer, server_default="0")
    skipped: int = _column(sa.Integer, server_default="0")
    expired: int = _column(sa.Integer, server_default="0")
    unknown: int = _column(sa.Integer, server_default="0")
    cancelled: int = _column(sa.Integer, server_default="0")
    failed: int = _column(sa.Integer, server_default="0")
    reasons: dict[str, Any] = _column(pg.JSONB, server_default=sa.text("'{}'::jsonb"))  # reason -> final deliveries
    failures: int = _column(sa.SmallInteger, server_default="0")  # errors of our own, and workers that died with it
    error: str | None = _column(sa.Text, nullable=True)  # the last of those errors
    halted: bool = _column(sa.Boolean, server_default=sa.false())  # its owner has seen that it must issue no more


class Retry(Table, table=True):
    """A delivery that waits for its next attempt. Its row goes when the delivery is final."""

    __tablename__ = "retries"
    __table_args__ = (
        sa.PrimaryKeyConstraint("campaign_id", "device_id"),
        sa.Index("retries_due_idx", "campaign_id", "due_at", postgresql_where=sa.text("batch_id IS NULL")),
    )

    campaign_id: int = _column(sa.BigInteger, sa.ForeignKey("campaigns.id"))
    device_id: int = _column(sa.BigInteger)
    due_at: datetime = _column(TIMESTAMP)
    attempts: int = _column(sa.SmallInteger, server_default="0")  # charged so far
    reason: str = _column(sa.Text)  # of the last attempt
    status: int | None = _column(sa.SmallInteger, nullable=True)
    batch_id: int | None = _column(sa.BigInteger, nullable=True)  # the retry batch that holds it now


class Delivery(Table, table=True):
    """The ledger: one final row per campaign and device. Partitioned by the campaign's start, which is constant per
    campaign, because uniqueness on a partitioned table needs the partition key."""

    __tablename__ = "deliveries"
    __table_args__ = (
        sa.PrimaryKeyConstraint("campaign_started_on", "campaign_id", "device_id"),
        sa.Index("deliveries_reason_idx", "campaign_id", "reason", postgresql_where=sa.text("outcome <> 'sent'")),
        {"postgresql_partition_by": "RANGE (campaign_started_on)"},
    )

    campaign_started_on: date = _column(sa.Date)
    campaign_id: int = _column(sa.BigInteger)
    device_id: int = _column(sa.BigInteger)
    at: datetime = _column(TIMESTAMP, server_default=NOW)
    status: int | None = _column(sa.SmallInteger, nullable=True)  # HTTP status of the last answer
    attempts: int = _column(sa.SmallInteger, server_default="1")
    outcome: str = _column(sa.Text)  # policy.states.Outcome
    reason: str | None = _column(sa.Text, nullable=True)


class Limit(Table, table=True):
    """When the next push may go, per scope: installation, app:ID, campaign:ID, credential:IDENTITY. Unused time is not
    banked. What a campaign has had of its share of them (campaign:ID/share) is kept in the same way."""

    __tablename__ = "limits"
    __table_args__ = ({"postgresql_with": {"fillfactor": "50"}},)

    scope: str = _column(sa.Text, primary_key=True)
    free_at: datetime = _column(TIMESTAMP, server_default=NOW)


class Breaker(Table, table=True):
    """What all workers know of a credential, by its identity: (team, key or certificate, environment).

    While it is not closed nothing is sent but single probes. `pace` is the adaptive limit: lowered when APNs asks for
    less, raised while it does not, gone (null) when it has reached what it fell from.
    """

    __tablename__ = "breakers"
    __table_args__ = ({"postgresql_with": {"fillfactor": "50"}},)

    credential: str = _column(sa.Text, primary_key=True)
    state: str = _column(sa.Text, server_default="closed")  # policy.states.BreakerState
    cause: str | None = _column(sa.Text, nullable=True)  # of the last opening
    since: datetime = _column(TIMESTAMP, server_default=NOW)  # the state's
    until: datetime | None = _column(TIMESTAMP, nullable=True)  # open: no probe before; half open: the probe's time
    trips: int = _column(sa.SmallInteger, server_default="0")  # openings in a row: until it is back at full speed
    pace: float | None = _column(sa.Double, nullable=True)  # pushes a second; null: not limited by this
    pace_top: float | None = _column(sa.Double, nullable=True)  # what it fell from
    pace_cause: str | None = _column(sa.Text, nullable=True)
    paced_at: datetime | None = _column(TIMESTAMP, nullable=True)  # of the last step, down or up
    slowed_at: datetime | None = _column(TIMESTAMP, nullable=True)  # of the last step down since it closed


class Trial(Table, table=True):
    """The guard's books on one campaign in one environment: at first few pushes are outstanding, until it is judged."""

    __tablename__ = "trials"
    __table_args__ = (
        sa.PrimaryKeyConstraint("campaign_id", "environment"),
        sa.Index("trials_open_idx", "campaign_id", postgresql_where=sa.text("state = 'trial'")),
        {"postgresql_with": {"fillfactor": "50"}},
    )

    campaign_id: int = _column(sa.BigInteger, sa.ForeignKey("campaigns.id", ondelete="CASCADE"))
    environment: str = _column(sa.Text)
    state: str = _column(sa.Text, server_default="trial")  # policy.states.TrialState
    judged: int = _column(sa.BigInteger, server_default="0")  # answers of APNs that say something of the token
    accepted: int = _column(sa.BigInteger, server_default="0")
    bad_token: int = _column(sa.BigInteger, server_default="0")  # BadDeviceToken
    wrong_topic: int = _column(sa.BigInteger, server_default="0")  # DeviceTokenNotForTopic
    gone: int = _column(sa.BigInteger, server_default="0")  # 410
    probed: int = _column(sa.BigInteger, server_default="0")  # BadDeviceTokens that were tried in the other environment
    moved: int = _column(sa.BigInteger, server_default="0")  # devices that were accepted there
    judged_at: datetime | None = _column(TIMESTAMP, nullable=True)  # when it left the trial
    resumed: bool = _column(sa.Boolean, server_default=sa.false())  # by a person, after a trip


class Reservation(Table, table=True):
    """Pushes of a trial that a claim may have outstanding. Void when the claim's epoch is not the batch's any more."""

    __tablename__ = "reservations"
    __table_args__ = (sa.PrimaryKeyConstraint("campaign_id", "environment", "batch_id"),)

    campaign_id: int = _column(sa.BigInteger, sa.ForeignKey("campaigns.id", ondelete="CASCADE"))
    environment: str = _column(sa.Text)
    batch_id: int = _column(sa.BigInteger)
    epoch: int = _column(sa.Integer)
    pushes: int = _column(sa.Integer)


class Staged(Table, table=True):
    """A 410 of a trial: its invalidation waits until the trial was judged, and is dropped when the guard trips."""

    __tablename__ = "staged"
    __table_args__ = (sa.PrimaryKeyConstraint("campaign_id", "device_id"),)

    campaign_id: int = _column(sa.BigInteger, sa.ForeignKey("campaigns.id", ondelete="CASCADE"))
    environment: str = _column(sa.Text)
    device_id: int = _column(sa.BigInteger)
    token: str = _column(sa.Text)  # as it was sent to
    registered_at: datetime | None = _column(TIMESTAMP, nullable=True)  # as it was loaded
    gone_at: datetime = _column(TIMESTAMP)  # APNs's timestamp, or when the row was loaded
    reason: str = _column(sa.Text)
    apns_id: UUID = _column(sa.Uuid)


class Baseline(Table, table=True):
    """What is usual for an app in an environment: counts of answers that fade, so that old ones weigh less."""

    __tablename__ = "baselines"
    __table_args__ = (
        sa.PrimaryKeyConstraint("app_id", "environment"),
        {"postgresql_with": {"fillfactor": "50"}},
    )

    app_id: int = _column(sa.BigInteger, sa.ForeignKey("apps.id", ondelete="CASCADE"))
    environment: str = _column(sa.Text)
    judged: float = _column(sa.Double, server_default="0")
    accepted: float = _column(sa.Double, server_default="0")
    bad_token: float = _column(sa.Double, server_default="0")
    wrong_topic: float = _column(sa.Double, server_default="0")
    gone: float = _column(sa.Double, server_default="0")
    updated_at: datetime = _column(TIMESTAMP, server_default=NOW)


class Intent(Table, table=True):
    """A push of an at-most-once campaign that is about to be made: written before it, gone when its answer is known."""

    __tablename__ = "intents"
    __table_args__ = (sa.PrimaryKeyConstraint("campaign_id", "device_id"),)

    campaign_id: int = _column(sa.BigInteger)  # no foreign key: it would be checked for every push
    device_id: int = _column(sa.BigInteger)
    batch_id: int = _column(sa.BigInteger)
    epoch: int = _column(sa.Integer)  # of the claim that made it


class Worker(Table, table=True):
    """A process that works or beats: health checks read these rows."""

    __tablename__ = "workers"
    __table_args__ = ({"postgresql_with": {"fillfactor": "50"}},)

    id: UUID = _column(sa.Uuid, primary_key=True)
    role: str = _column(sa.Text)  # campaign, priority, control, beat
    host: str = _column(sa.Text)
    pid: int = _column(sa.Integer)
    version: str = _column(sa.Text)
    beats: int = _column(sa.BigInteger, server_default="0")
    started_at: datetime = _column(TIMESTAMP, server_default=NOW)
    seen_at: datetime = _column(TIMESTAMP, server_default=NOW)
    clock: datetime | None = _column(TIMESTAMP, nullable=True)  # the host's own clock at seen_at
    credentials: dict[str, Any] = _column(pg.JSONB, server_default=sa.text("'{}'::jsonb"))  # identity -> fault or null


class Pulse(Table, table=True):
    """When a periodic job last ran: tick, sweep."""

    __tablename__ = "pulses"
    __table_args__ = ({"postgresql_with": {"fillfactor": "50"}},)

    name: str = _column(sa.Text, primary_key=True)
    at: datetime = _column(TIMESTAMP, server_default=NOW)
