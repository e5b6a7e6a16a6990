"""Send one batch."""

from __future__ import annotations

from config.transport import note_size
from sender.engine.delivery import send_batch
from tasks import app
from tasks.process import runtime


@app.task(name="sender.send")
def send(*, batch: int, campaign: str) -> dict[str, int | str]:
    """Send the batch, if it is still there to be sent. `campaign` is for people who search Flower."""
    return send_batch(runtime(), batch, sized=note_size)
