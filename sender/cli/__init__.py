"""The command line. `main` turns every `SenderError` into one clear line and its exit code: no traceback for a
mistake of the user's, nor for Ctrl-C at any moment: whatever takes time to import is imported under its eyes.
"""

from __future__ import annotations

import errno
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import typer

    app: typer.Typer

#: The exit code of an error that nobody foresaw (EX_SOFTWARE of sysexits.h), and that of Ctrl-C.
BUG = 70
INTERRUPTED = 130

#: What the system says when there is no room for what is written.
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def main() -> None:
    """The `sender` command."""
    try:
        _run()
    except KeyboardInterrupt:  # while modules were imported: afterwards Typer catches it
        sys.exit(INTERRUPTED)


def _run() -> None:
    from sender.errors import SenderError

    try:
        from sender.cli.root import make_app

        make_app(sys.argv[1:])()
    except SenderError as error:
        from sender.cli.output import report_error

        report_error(error)
        sys.exit(error.exit_code)
    except BrokenPipeError:
        sys.exit(0)
    except Exception as error:
        from sender.cli.output import report_bug, report_error

        if isinstance(error, OSError) and error.errno in _NO_ROOM:
            report_error(SenderError(f"cannot write {error.filename or 'what is shown'}: {error.strerror}"))
            sys.exit(1)
        report_bug(error)
        sys.exit(BUG)


def __getattr__(name: str) -> Any:
    if name == "app":
        from sender.cli.root import make_app

        globals()["app"] = made = make_app()
        return made
    raise AttributeError(name)
