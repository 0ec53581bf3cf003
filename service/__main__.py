"""`python -m service`: serve by the settings of the environment; see docs/settings.md."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from service import lacking

if TYPE_CHECKING:
    from service.settings import Settings


def run(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT. Raises ValueError if the address or the model cannot be used."""
    from service.server import run  # it takes seconds: after the settings have been read

    run(settings)


def main() -> int:
    if missing := lacking():
        print(f"error: {missing}", file=sys.stderr)
        return 2
    from pydantic import ValidationError

    from service.settings import PREFIX, Settings

    try:
        run(Settings())
    except ValidationError as error:
        for each in error.errors(include_url=False):
            print(f"error: {PREFIX}{'.'.join(map(str, each['loc'])).upper()}: {each['msg']}", file=sys.stderr)
        return 2
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
