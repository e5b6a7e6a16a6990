"""Writing a campaign: what must be checked in the database first, and the row."""

from __future__ import annotations

from sender.audience import Segment
from sender.errors import ConflictError, NotFoundError
from sender.model import CredentialKind, PushType
from sender.planning.plan import InvalidCampaignError, Plan
from sender.policy.states import CAMPAIGN_MOVES, CampaignState
from sender.store import campaigns as store
from sender.store import references
from sender.store.campaigns import CampaignRow, NewCampaign
from sender.store.database import Transaction


def write(transaction: Transaction, plan: Plan, *, draft: bool) -> CampaignRow:
    app_id = check(transaction, plan)
    row, new = store.insert(
        transaction,
        NewCampaign(
            app_id=app_id,
            key=plan.key,
            state=CampaignState.DRAFT if draft else CampaignState.SCHEDULED,
            content=plan.content,
            payload=plan.encoded.body,
            push_type=plan.encoded.push_type.value,
            priority=plan.encoded.priority,
            collapse_id=plan.encoded.collapse_id,
            segment=plan.content["audience"],
            rate=plan.rate,
            batch_size=plan.batch_size,
            delivery=plan.delivery,
            canary=plan.canary.to_json() if plan.canary else None,
            over=plan.over,
            finish_by=plan.finish_by,
            expires_in=plan.expires_in,
            send_at=plan.send_at,
            grace=plan.grace,
        ),
    )
    if not new and not draft and row.state is CampaignState.DRAFT:
        return store.schedule(transaction, plan.key, actor="application")
    return row


def check(transaction: Transaction, plan: Plan) -> int:
    """Check what needs the database; returns the app's id."""
    app_id = app_id_of(transaction, plan.bundle_id)
    _check_credentials(transaction, app_id, plan)
    check_references(transaction, plan.audience, enqueued=plan.key)
    _check_excluded(transaction, plan)
    return app_id


def app_id_of(transaction: Transaction, bundle_id: str) -> int:
    row = transaction.row("SELECT id FROM {s}.apps WHERE bundle_id = %s", (bundle_id,))
    if row is None:
        raise NotFoundError("app", bundle_id, "add it with `sender apps add`")
    return int(row["id"])


def _check_credentials(transaction: Transaction, app_id: int, plan: Plan) -> None:
    kinds = {row["kind"] for row in transaction.rows("SELECT kind FROM {s}.credentials WHERE app_id = %s", (app_id,))}
    if not kinds:
        fault = f"app {plan.bundle_id!r} has no credential: add one with `sender apps set-credential`"
    elif plan.encoded.push_type is PushType.LOCATION and CredentialKind.KEY.value not in kinds:
        fault = "push type location needs a key credential (.p8): APNs refuses it with a certificate"
    else:
        return
    raise InvalidCampaignError("campaign", [fault])


def _check_excluded(transaction: Transaction, plan: Plan) -> None:
    """Whom a campaign was sent to is known when it has ended: until then it may yet be sent to them."""
    if plan.exclude_sent and not store.known_keys(transaction, [plan.key]):
        for row in (store.load(transaction, key) for key in plan.exclude_sent):
            if CAMPAIGN_MOVES[row.state]:
                raise ConflictError(
                    f"campaign {row.key!r} is {row.state}: whom it was sent to can be left out when it has ended; "
                    f"cancel it first (sender campaigns cancel {row.key})"
                )


def check_references(transaction: Transaction, segment: Segment, *, enqueued: str | None = None) -> None:
    """Check the campaigns that a segment refers to. `enqueued`: the key of the campaign that is written with it; a
    repeat of one that is there asks nothing new of them."""
    if enqueued is not None and segment.campaign_keys() and store.known_keys(transaction, [enqueued]):
        return
    if faults := references.faults(transaction, segment, hold=enqueued is not None):
        raise InvalidCampaignError("audience", faults)
