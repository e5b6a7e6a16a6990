"""`python -P -m sender.stack.run_celery worker …` is `celery -A tasks worker …` with *our* `tasks` and `config`.

Both are common names: a project's own packages of these names may come first on the path. Ours are loaded from beside
the `sender` package whatever the path says, and the process refuses to run when that is not possible.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
import threading
from importlib.machinery import PathFinder
from importlib.util import module_from_spec
from pathlib import Path

#: The descriptor of a pipe that only `sender up` holds the other end of: its end of file says that it is gone.
PARENT_PIPE = "SENDER_PARENT_PIPE"
OURS = ("config", "tasks")


def root() -> Path:
    """Where `sender`, `tasks` and `config` are."""
    return Path(__file__).resolve().parent.parent.parent


def load_ours(name: str) -> None:
    """Import a top-level package of ours, before anybody can import another of its name. Exits when it is missing."""
    spec = PathFinder.find_spec(name, [str(root())])
    if spec is None or spec.loader is None:
        sys.exit(f"error: the package {name!r} of apns-campaign-sender is missing in {root()}: install it again")
    loaded = sys.modules.get(name)
    if loaded is not None and getattr(loaded, "__file__", None) != spec.origin:
        sys.exit(
            f"error: {name!r} is {getattr(loaded, '__file__', None)}, not the one of apns-campaign-sender: something "
            "imports it when Python starts (a .pth file or sitecustomize?); run the sender in an environment of its own"
        )
    if loaded is None:
        module = module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)


def end_with_parent(descriptor: int) -> None:
    """Drain, as on SIGTERM, when `sender up` is gone without having stopped us."""

    def watch() -> None:
        while os.read(descriptor, 1):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()


def main() -> None:
    """Run Celery's command line on our app."""
    if descriptor := os.environ.pop(PARENT_PIPE, ""):
        end_with_parent(int(descriptor))
    for name in OURS:
        load_ours(name)
    sys.argv = ["celery", "-A", "tasks", *sys.argv[1:]]
    sys.exit(importlib.import_module("celery.__main__").main())


if __name__ == "__main__":
    main()
