"""The benchmarks that hold our checkpoints against other libraries, in their small form."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import batch_invariance, parity

pytest.importorskip("transformers")


def test_parity_writes_its_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = tmp_path / "d.md"
    kept = "| HuBERT BASE | fairseq | 94 M | 1.0e-06 | 1 |"
    document.write_text(
        "before\n<!-- benchmarks.parity -->\nold\n"
        f"{kept}\n| WavLM BASE | torchaudio | 1 M | 1.0 | 1 |\n| gone | fairseq | 1 M | 1.0 | 1 |\n"
        "<!-- end -->\nafter\n"
    )
    families = ["WavLM BASE", "w2v-BERT 2.0"]
    assert parity.main(["--tiny", "--write", str(document), "--only", *families]) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| W") or "BERT" in line]
    assert [row.split(" | ")[1] for row in rows] == ["transformers", "transformers", "torchaudio"]
    text = document.read_text()
    assert text.startswith("before\n") and text.endswith("<!-- end -->\nafter\n") and "old" not in text
    assert text.splitlines()[4:-2] == [*rows, kept]
    document.write_text("no marks")
    with pytest.raises(ValueError, match="to put the table between"):
        parity.update_table(document, [])
    with pytest.raises(SystemExit):
        parity.main(["--sources", "fairseq"])
    assert "needs --fairseq PYTHON" in capsys.readouterr().err


def test_parity_tells_what_differs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parity, "rows", lambda *_: [parity.Row("f", "s", 1, 2e-4, 1.0)])
    assert parity.main([]) == 1


def test_batch_invariance_is_ours_alone_with_a_group_norm(capsys: pytest.CaptureFixture[str]) -> None:
    assert batch_invariance.main(["--tiny", "--sizes", "base"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
    changes = {" ".join(row[1:-2]): float(row[-2]) for row in rows}
    assert changes.pop("ours") <= 1e-4
    assert len(changes) == 3 and min(changes.values()) > 0.01
