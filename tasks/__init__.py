"""The Celery tasks, by way of `celery -A tasks`: thin bodies around the library, each with an explicit name."""

from __future__ import annotations

import os

from config.celery import make_app
from sender.settings import load_settings

app = make_app(load_settings(), role=os.environ.get("SENDER_ROLE", ""))

from tasks import control, send  # noqa: E402, F401 (they register themselves on the app)
