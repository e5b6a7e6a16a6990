"""Files that hold whole tokens: only their owner may read them."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import TextIO

_MODE = 0o600


def open_private(path: Path, *, errors: str = "strict") -> TextIO:
    """Open a text file to be written anew, of mode 0600 also when it is there already with another.

    What is no file, such as a pipe, is written to as it is. Raises `OSError`, before anything in the file is lost.
    """
    handle = os.open(path, os.O_WRONLY | os.O_CREAT, _MODE)
    try:
        mode = os.fstat(handle).st_mode
        if stat.S_ISREG(mode):
            if stat.S_IMODE(mode) != _MODE:
                os.fchmod(handle, _MODE)
            os.ftruncate(handle, 0)
        return os.fdopen(handle, "w", encoding="utf-8", errors=errors, newline="")
    except BaseException:
        os.close(handle)
        raise
