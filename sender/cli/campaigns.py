"""`sender campaigns …`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from sender.campaigns import WaitTimeoutError
from sender.cli.campaign_options import (
    campaign_options,
    message_options,
    read_campaign,
    read_duration,
    read_rate,
    read_time,
    with_options,
)
from sender.cli.campaign_send import UNDER_WAY, exit_code_of, follow, release, send_now
from sender.cli.campaign_show import print_preview, print_report, print_table
from sender.cli.output import console, print_json, warn
from sender.client import Sender
from sender.errors import InvalidInputError
from sender.planning.change import KEPT
from sender.policy.states import CampaignState

app = typer.Typer(no_args_is_help=True)

Key = Annotated[str, typer.Argument(help="The campaign's key.")]
AsJson = Annotated[bool, typer.Option("--json", help="As one JSON document.")]
Watch = Annotated[bool, typer.Option("--watch", help="Show it live until it ends.")]
Wait = Annotated[
    bool,
    typer.Option(
        "--wait",
        help="Wait: exit 0 completed, 4 paused by the system or with its app, 5 cancelled, 6 failed or missed.",
    ),
]
Reason = Annotated[str | None, typer.Option(help="Why, for the record.")]


@app.command()
@with_options(campaign_options, message_options)
def create(options: dict[str, Any], as_json: AsJson = False) -> None:
    """Write a draft, which `send KEY` releases. Takes what `send` takes."""
    with Sender() as sender:
        campaign = sender.campaigns.create_draft(**read_campaign(options))
        if as_json:
            print_json(campaign.report())
            return
        warn(campaign.warnings)
        console.print(f"{campaign.key} is {campaign.state}", markup=False, highlight=False)
        if campaign.state is CampaignState.DRAFT:
            console.print(f"next: sender campaigns preview {campaign.key}; sender campaigns send {campaign.key}")


@app.command()
@with_options(campaign_options, message_options)
def send(
    options: dict[str, Any],
    *,
    draft: Annotated[str | None, typer.Argument(metavar="[KEY]", help="A draft to release.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be sent, and write nothing.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    watch: Watch = False,
    wait: Wait = False,
    as_json: AsJson = False,
) -> None:
    """Send a campaign: a draft by its KEY, or all in one step with --app and what it says."""
    if draft is not None and any(_given(options)):
        raise InvalidInputError("send", ["a draft by its key takes no content: it was given when it was created"])
    with Sender() as sender:
        if draft is not None:
            key = release(sender, draft, at=options["at"], dry_run=dry_run, yes=yes, as_json=as_json)
        else:
            key = send_now(sender, read_campaign(options), dry_run=dry_run, yes=yes, as_json=as_json)
        if key is not None:
            follow(sender, key, watch=watch, wait=wait, as_json=as_json)


@app.command()
def preview(
    key: Key,
    user: Annotated[str | None, typer.Option(help="For this user's device.")] = None,
    as_json: AsJson = False,
) -> None:
    """The exact headers and payload of a campaign, for one device."""
    with Sender() as sender:
        print_preview(sender.campaigns.preview(key, user=user), as_json=as_json)


@app.command("list")
def list_(
    app_id: Annotated[str | None, typer.Option("--app", metavar="BUNDLE_ID", help="Of this app only.")] = None,
    state: Annotated[CampaignState | None, typer.Option(help="In this state only.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=10_000)] = 50,
    as_json: AsJson = False,
) -> None:
    """Campaigns, newest first."""
    with Sender() as sender:
        print_table(sender.campaigns.list(app=app_id, state=state, limit=limit), as_json=as_json)


@app.command()
def show(key: Key, as_json: AsJson = False, watch: Watch = False) -> None:
    """How far a campaign has come; the figures add up to its audience."""
    with Sender() as sender:
        if watch and not as_json:
            follow(sender, key, watch=True, wait=False, as_json=False)
            return
        report = sender.campaigns.wait(key) if watch else sender.campaigns.report(key)
        print_report(report, as_json=as_json)


@app.command()
def pause(key: Key, reason: Reason = None, as_json: AsJson = False) -> None:
    """Stop sending until `resume`. Returns when the workers have stopped, or after a second."""
    with Sender() as sender:
        campaign = sender.campaigns.pause(key, reason=reason, actor="operator")
        print_report(campaign.report(), as_json=as_json, acknowledged=campaign.acknowledged)


@app.command()
def resume(key: Key, as_json: AsJson = False) -> None:
    """Go on with exactly those not sent."""
    with Sender() as sender:
        sender.campaigns.resume(key, actor="operator")
        print_report(sender.campaigns.report(key), as_json=as_json)


@app.command()
def cancel(key: Key, reason: Reason = None, as_json: AsJson = False) -> None:
    """End a campaign for good: what was not sent ends as cancelled."""
    with Sender() as sender:
        campaign = sender.campaigns.cancel(key, reason=reason, actor="operator")
        print_report(campaign.report(), as_json=as_json, acknowledged=campaign.acknowledged)


@app.command("set")
def set_(
    key: Key,
    *,
    rate: Annotated[str | None, typer.Option(metavar="N|unlimited", help="Pushes a second.")] = None,
    over: Annotated[str | None, typer.Option(metavar="2h", help="Spread what is left over this time from now.")] = None,
    finish_by: Annotated[
        str | None, typer.Option(metavar="TIME|none", help="When it should be done: warns when it cannot be.")
    ] = None,
    expires_in: Annotated[
        str | None, typer.Option(metavar="30d", help="From the start; once it has started only later than before.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Change the pace or the deadlines of a campaign that has not ended; workers follow within two seconds."""
    until = read_time(None if finish_by == "none" else finish_by, "--finish-by")
    with Sender() as sender:
        campaign = sender.campaigns.change(
            key,
            rate=KEPT if rate is None else read_rate(rate),
            over=read_duration(over, "--over"),
            finish_by=KEPT if finish_by is None else until,
            expires_in=read_duration(expires_in, "--expires-in"),
        )
        print_report(campaign.report(), as_json=as_json)


@app.command()
def wait(
    key: Key,
    timeout: Annotated[
        str | None, typer.Option(metavar="DURATION", help="No longer than this, such as 90s or 2h; then exit 7.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Wait for a campaign: exit 0 completed, 4 paused by the system or with its app, 5 cancelled, 6 failed or missed,
    7 under way."""
    longest = read_duration(timeout, "--timeout")
    with Sender() as sender:
        try:
            report = sender.campaigns.wait(key, timeout=longest)
            code = exit_code_of(report)
        except WaitTimeoutError as error:
            warn([str(error)])
            report, code = error.report, UNDER_WAY
        print_report(report, as_json=as_json)
    raise typer.Exit(code)


def _given(options: dict[str, Any]) -> list[str]:
    """The options that were given, beside the time."""
    return [
        name
        for name, value in options.items()
        if name != "at"
        and not (value is None or value is False or value in ([], "at_least_once"))  # --badge 0 is given
    ]
