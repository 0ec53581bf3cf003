"""Our numbers beside those of the library that made a checkpoint, for each family in its published size.

    python -m benchmarks.parity [--write docs/checkpoints.md] [--sources NAME...] [--only FAMILY...] [--tiny]

A model of each family with random weights is saved by its own library, opened by `speech_ssl`, and both hear
three clips: one of a few frames, one of an odd length, and one of 2 s. Ours hears them as one padded batch,
theirs one by one, as no padding can change them. Printed is the largest difference of any value in any hidden
state (torchaudio: of any layer; for CTC: in log-probabilities), and how large such values are.
`--write` puts the rows into the table between two marks in a document, and leaves those of other sources.
Ends with status 1 if a difference is more than 1e-4.

transformers and torchaudio are in the environment of the tests. fairseq2 has one of its own:

    scripts/install-fairseq2
    .venv-fairseq2/bin/python -m benchmarks.parity --sources fairseq2 --write docs/checkpoints.md

fairseq runs on Python 3.8 and is called as another process; `--fairseq` names its interpreter:

    python3.8 -m venv fairseq && fairseq/bin/pip install 'pip<24.1'
    fairseq/bin/pip install fairseq==0.12.2 torch==2.0.1 torchaudio==2.0.2 'numpy<1.24'
    python -m benchmarks.parity --sources fairseq --fairseq fairseq/bin/python --write docs/checkpoints.md
"""

from __future__ import annotations

import argparse
import re
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.parity_models import SOURCES, Row

TOLERANCE = 1e-4
HEAD = "| family | source | parameters | largest difference | standard deviation |\n|---|---|---|---|---|"
BEGIN, END = "<!-- benchmarks.parity -->", "<!-- end -->"


def rows(options: argparse.Namespace) -> Iterator[Row]:
    for source in options.sources:
        families, of = SOURCES[source]
        for family in families:
            if options.only is None or family in options.only:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # of their libraries, about their own code
                    yield of(family, options.tiny, options.fairseq)


def update_table(document: Path, found: Sequence[Row]) -> None:
    """Between the marks: the rows found in place of their predecessors, the others as they were, in the
    order of `SOURCES`. Raises ValueError for a document without the marks."""
    text = document.read_text(encoding="utf-8")
    pattern = re.compile(f"{re.escape(BEGIN)}(.*?){re.escape(END)}", re.DOTALL)
    if (place := pattern.search(text)) is None:
        raise ValueError(f"{document}: has no {BEGIN} and {END} to put the table between")
    lines = {tuple(line.split(" | ")[:2]): line for line in place[1].splitlines()}
    lines |= {tuple(str(row).split(" | ")[:2]): str(row) for row in found}
    keys = [(f"| {family}", source) for source, (families, _) in SOURCES.items() for family in families]
    table = "\n".join([BEGIN, HEAD, *(lines[key] for key in keys if key in lines), END])
    document.write_text(pattern.sub(lambda _: table, text), encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Our numbers beside those of the library that made a model.")
    parser.add_argument("--write", type=Path, help="a document with the two marks")
    parser.add_argument("--sources", nargs="+", choices=list(SOURCES), default=["transformers", "torchaudio"])
    parser.add_argument("--only", nargs="+", choices=sorted({f for of, _ in SOURCES.values() for f in of}))
    parser.add_argument("--fairseq", type=Path, help="an interpreter that can import fairseq")
    parser.add_argument("--tiny", action="store_true", help="two narrow layers each, for tests")
    options = parser.parse_args(arguments)
    if "fairseq" in options.sources and options.fairseq is None:
        parser.error("--sources fairseq needs --fairseq PYTHON, an interpreter that can import it")
    print(HEAD)
    found = []
    for row in rows(options):
        print(row, flush=True)
        found.append(row)
    if options.write is not None:
        update_table(options.write, found)
    return 0 if max(row.difference for row in found) <= TOLERANCE else 1


if __name__ == "__main__":
    sys.exit(main())
