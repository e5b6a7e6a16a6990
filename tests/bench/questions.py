"""Every question that the command line asks of an installation with years behind it, by the name of its command."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

from sender import Segment, Sender
from sender.doctor import servers
from sender.doctor.storage import check_storage
from sender.settings import Settings
from sender.store.database import Database
from tests.bench.history import BIG, SMALL, History

Questions = Mapping[str, Callable[[], Any]]


def narrow(sender: Sender, database: Database, settings: Settings, history: History) -> Questions:
    """Those that must look at what is asked for only, however large everything else is."""
    campaigns, activity, changelog, devices = sender.campaigns, sender.activity, sender.changelog, sender.devices
    token, user = _a_device(database)
    early, last = "campaign-5", f"campaign-{history.campaigns}"
    cursor = changelog.read(limit=1).cursor
    return {
        "campaigns list": campaigns.list,
        "campaigns list --state running": lambda: campaigns.list(state="running"),
        "campaigns list --app": lambda: campaigns.list(app=BIG),
        "campaigns show, of long ago": lambda: campaigns.show(early),
        "campaigns show, open": lambda: campaigns.show(last),
        "activity": activity.read,
        "activity --all": lambda: activity.read(everything=True),
        "activity --campaign": lambda: activity.read(campaign=early),
        "activity --campaign --all": lambda: activity.read(campaign=early, everything=True),
        "activity --campaign --reason": lambda: activity.read(campaign=early, reason="BadDeviceToken"),
        "activity --reason": lambda: activity.read(reason="BadDeviceToken"),
        "activity --reason, that nobody has": lambda: activity.read(reason="PayloadTooLarge"),
        "activity --app": lambda: activity.read(app=SMALL),
        "activity --user": lambda: activity.read(user=user),
        "activity --user --all": lambda: activity.read(user=user, everything=True),
        "changelog": changelog.latest,
        "changelog --user": lambda: changelog.latest(user=user),
        "changelog --device": lambda: changelog.latest(device=token),
        "changelog --campaign": lambda: changelog.latest(campaign="campaign-11"),
        "changelog, as a feed": lambda: changelog.read(cursor, limit=100),
        "changelog, as a feed of a user": lambda: changelog.read(user=user),
        "changelog, as a feed of a device": lambda: changelog.read(device=token),
        "devices show": lambda: devices.show(token),
        "devices count, of a user": lambda: devices.count(BIG, Segment.users(user)),
        "devices export, of a user": lambda: _read(devices.export(BIG, Segment.users(user))),
        "devices quarantined": lambda: devices.quarantined(limit=100),
        "users show": lambda: sender.users.show(user),
        "campaigns count, to a user": lambda: campaigns.count(BIG, audience=Segment.users(user)),
        "apps list": sender.apps.list,
        "apps show": lambda: sender.apps.show(BIG),
        "doctor": lambda: (servers.take_snapshot(settings), list(check_storage(settings))),
    }


def wide(sender: Sender) -> Questions:
    """Those that count or read an app's devices: they look at all of that app's, and of nobody else's."""
    return {
        "apps show, its devices": lambda: sender.apps.count_devices(SMALL),
        "devices count": lambda: sender.devices.count(SMALL),
        "devices export": lambda: _read(sender.devices.export(SMALL)),
        "campaigns count": lambda: sender.campaigns.count(SMALL),
        "campaigns count --exclude-sent": lambda: sender.campaigns.count(
            SMALL, audience=Segment.not_sent("campaign-5")
        ),
    }


def huge(sender: Sender) -> Questions:
    """The same of an app that has nearly all devices: what they cost is what there is."""
    return {
        "devices count, of the large app": lambda: sender.devices.count(BIG),
        "campaigns count, of the large app": lambda: sender.campaigns.count(BIG),
    }


def _a_device(database: Database) -> tuple[str, str]:
    with database.transaction() as transaction:
        [(token, user)] = transaction.execute(
            "SELECT d.token, u.external_id FROM {s}.devices d JOIN {s}.users u ON u.id = d.user_id WHERE d.id = 1001"
        ).fetchall()
    return token, user


def _read(stream: AbstractContextManager[Any]) -> int:
    with stream as devices:
        return sum(1 for _ in devices)
