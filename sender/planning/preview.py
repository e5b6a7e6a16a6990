"""Preview: the exact request that a campaign would make for one device, with the token shortened and no secret."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from sender.apns_ids import delivery_apns_id
from sender.audience import Segment
from sender.errors import NotFoundError
from sender.model import TOPIC_SUFFIX, CredentialKind, Environment, PushType
from sender.planning.plan import Plan
from sender.planning.prospects import FOREVER, nobody, start_missed, too_late
from sender.policy.states import AppState, CampaignState
from sender.registry.tokens import prefix
from sender.settings import Settings
from sender.store.campaigns import CampaignRow
from sender.store.database import Transaction
from sender.store.previews import DeviceSample, credential_of, sample, sample_of_user
from sender.store.segments import AudienceCount, count_audience


@dataclass(frozen=True, slots=True, kw_only=True)
class Preview:
    """One request to APNs."""

    environment: Environment
    url: str
    headers: dict[str, str]
    body: bytes
    payload: dict[str, Any]
    reachable: bool
    note: str | None  # why a push would not go there, or what is not fixed yet

    @property
    def size(self) -> int:
        """Bytes of the body."""
        return len(self.body)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rehearsal:
    """What a campaign would do: whom it would reach, and one of its requests."""

    plan: Plan
    count: AudienceCount
    preview: Preview

    @property
    def seconds(self) -> float | None:
        """How long the first sends take at least; None without a rate."""
        if self.plan.over is not None:
            return self.plan.over
        return None if self.plan.rate is None else self.count.total / self.plan.rate

    @property
    def warnings(self) -> Sequence[str]:
        """Why it will not start, reaches nobody, or cannot finish before it expires, or by its `finish_by`."""
        plan, now = self.plan, datetime.now(UTC)
        if missed := start_missed(plan.send_at, plan.grace, now=now):
            return missed
        if not self.count.total:
            return nobody(plan.key)
        start = max(plan.send_at or now, now)
        return too_late(
            self.count.total,
            start=start,
            finish=start + timedelta(seconds=min(self.seconds or 0.0, FOREVER)),
            expiration=start + timedelta(seconds=plan.expires_in) if plan.expires_in else None,
            finish_by=plan.finish_by,
            key=plan.key,
        )


def make_preview(
    transaction: Transaction, settings: Settings, campaign: CampaignRow, *, user: str | None = None
) -> Preview:
    """The request for a device of the audience, or of a user of the app."""
    push_type = PushType(campaign.push_type)
    segment = Segment.from_json(campaign.segment)
    notes: list[str] = []
    if user is None:
        device = sample(transaction, campaign.app_id, segment, push_type)
        if device is None:
            notes.append("the audience is empty: this is what a device would get")
            device = DeviceSample(
                id=0, token="", environment=Environment.PRODUCTION, state="active", in_segment=True, reachable=True
            )
    else:
        device = sample_of_user(transaction, campaign.app_id, user, segment, push_type)
        if device is None:
            raise NotFoundError("device", user, f"no device of that user is known for app {campaign.bundle_id}")
        if not device.in_segment:
            notes.append("this user's device is not in the campaign's segment")
        if not device.reachable:
            notes.append(f"this user's device cannot be reached ({device.state})")
    if campaign.expiration is None and campaign.expires_in > 0:
        notes.append("apns-expiration is fixed when the campaign starts; this assumes that it starts as planned")
    kind = credential_of(transaction, campaign.app_id, device.environment)
    host = (
        settings.apns_sandbox_url if device.environment is Environment.SANDBOX else settings.apns_production_url
    ).rstrip("/")
    return Preview(
        environment=device.environment,
        url=f"{host}/3/device/{prefix(device.token) if device.token else '<device token>'}",
        headers=_headers(campaign, push_type, device, kind),
        body=campaign.payload,
        payload=json.loads(campaign.payload),
        reachable=device.reachable and device.in_segment and bool(device.token),
        note="; ".join(notes) or None,
    )


def rehearse(transaction: Transaction, settings: Settings, plan: Plan, app_id: int) -> Rehearsal:
    """What an enqueue of the plan would do now; writes nothing."""
    count = count_audience(transaction, app_id, plan.audience, plan.encoded.push_type)
    preview = make_preview(transaction, settings, _unwritten(plan, app_id))
    return Rehearsal(plan=plan, count=count, preview=preview)


def _unwritten(plan: Plan, app_id: int) -> CampaignRow:
    return CampaignRow(
        id=0,
        app_id=app_id,
        bundle_id=plan.bundle_id,
        app_state=AppState.ACTIVE,
        app_state_reason=None,
        key=plan.key,
        state=CampaignState.DRAFT,
        state_reason=None,
        state_actor=None,
        epoch=0,
        content=plan.content,
        payload=plan.encoded.body,
        push_type=plan.encoded.push_type,
        priority=plan.encoded.priority,
        collapse_id=plan.encoded.collapse_id,
        segment=plan.content["audience"],
        rate=plan.rate,
        batch_size=plan.batch_size,
        delivery=plan.delivery,
        expires_in=plan.expires_in,
        send_at=plan.send_at,
        grace=plan.grace,
        expiration=None,
        started_on=None,
        created_at=datetime.now(UTC),
        started_at=None,
        finished_at=None,
    )


def _headers(
    campaign: CampaignRow, push_type: PushType, device: DeviceSample, kind: CredentialKind | None
) -> dict[str, str]:
    headers = {
        "apns-topic": campaign.bundle_id + TOPIC_SUFFIX[push_type],
        "apns-push-type": push_type.value,
        "apns-priority": str(campaign.priority),
        "apns-expiration": str(_expiration(campaign)),
        "apns-id": delivery_apns_id(campaign.id, device.id) if device.id and campaign.id else "<of the delivery>",
    }
    if campaign.collapse_id is not None:
        headers["apns-collapse-id"] = campaign.collapse_id
    if kind is not CredentialKind.CERTIFICATE:
        headers["authorization"] = "bearer <provider token>"
    return headers


def _expiration(campaign: CampaignRow) -> int:
    if campaign.expires_in == 0:
        return 0
    if campaign.expiration is not None:
        return int(campaign.expiration.timestamp())
    start = max(campaign.send_at or datetime.now(UTC), datetime.now(UTC))
    return int((start + timedelta(seconds=campaign.expires_in)).timestamp())
