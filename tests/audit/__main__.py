"""`python -m tests.audit [dependencies|secrets [FILE …]]`; `secrets --accept` takes what is found for no secret."""

from __future__ import annotations

import sys

from tests.audit import dependencies, secrets


def main(words: list[str]) -> int:
    """The exit code: 1 when something was found."""
    match words:
        case []:
            return max(secrets.main([]), dependencies.main())
        case ["dependencies"]:
            return dependencies.main()
        case ["secrets", *files]:
            return secrets.main(files)
        case _:
            print(__doc__, file=sys.stderr)
            return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
