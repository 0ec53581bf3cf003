"""python -m speech_ssl.evaluation.labels FOLDER: rebuild a study's report from its trials."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from speech_ssl.evaluation.labels.report import write_report


def main(arguments: Sequence[str]) -> int:
    if len(arguments) != 1:
        print("usage: python -m speech_ssl.evaluation.labels FOLDER", file=sys.stderr)
        return 2
    try:
        print(write_report(Path(arguments[0])))
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
