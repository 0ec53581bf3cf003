"""Convert between the tokenizers of transformers' CTC models and our vocabularies.

Texts are those of the tokenizer's own `decode`, with two differences: special units such as `<s>`, which it
spells out, are left out, and spaces at the ends and repeated spaces are dropped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from speech_ssl.checkpoints.conversion import ConversionError, field_of, read_json
from speech_ssl.model.heads.specs import CTCSpec
from speech_ssl.text import BLANK, SPACE

VOCABULARY, TOKENIZER = "vocab.json", "tokenizer_config.json"
SPECIAL, ADDED = "special_tokens_map.json", "added_tokens.json"
"""Files that older versions have beside the tokenizer's config."""
LETTERS, PHONES = "Wav2Vec2CTCTokenizer", "Wav2Vec2PhonemeCTCTokenizer"
CLASSES = (LETTERS, PHONES, "Wav2Vec2Tokenizer")
"""The last is the first one's name in older versions."""
MOST = 2**20
OF_PHONES = ("do_phonemize", "phonemizer_lang", "phonemizer_backend")
"""Options of the phonemizer, kept for export."""


@dataclass(frozen=True)
class Units:
    """A tokenizer: its symbols in our form, the blank first. blank, blank_index: its name and index there.
    spaced: as in `CTCSpec`. options: fields of the tokenizer's config, kept for export."""

    symbols: tuple[str, ...]
    blank: str
    blank_index: int
    spaced: bool = False
    options: Mapping[str, object] = field(default_factory=dict)

    def ours_first(self, rows: Tensor) -> Tensor:
        """Rows reordered to the order of our symbols."""
        index = [self.blank_index, *(i for i in range(len(self.symbols)) if i != self.blank_index)]
        return rows[index]


def theirs_first(rows: Tensor, blank_index: int) -> Tensor:
    """The inverse of `Units.ours_first`."""
    others = list(range(1, len(rows)))
    return rows[[*others[:blank_index], 0, *others[blank_index:]]]


def read_units(folder: Path, config: Mapping[str, Any]) -> Units:
    """The tokenizer of a folder with that `config.json`. Raises ConversionError if it has none, or an
    unsupported one."""
    path = folder / VOCABULARY
    if not path.is_file():
        raise ConversionError(f"{path}: missing, and without it the units have no meaning")
    options, added = _options(folder)
    kind = options.get("tokenizer_class") or config.get("tokenizer_class") or LETTERS
    if kind not in CLASSES:
        raise ConversionError(
            f"{folder / TOKENIZER}: field 'tokenizer_class' is {kind!r}; supported are {CLASSES}"
        )
    by_id = {**added, **_by_id(path, options)}
    count = field_of(config, "vocab_size", int, str(folder / "config.json"))
    if not 0 < count <= MOST:
        raise ConversionError(
            f"{folder / 'config.json'}: field 'vocab_size' is {count}: no size of a vocabulary"
        )
    names = [str(by_id.get(unit) or f"<{unit}>") for unit in range(count)]
    blank_index = _blank_index(names, options, config, folder)
    blank = names.pop(blank_index)
    spoken = _spoken(names, kind == PHONES, options)
    if len(set(spoken)) < len(spoken) or BLANK in spoken:
        twice = next((each for each in spoken if spoken.count(each) > 1), BLANK)
        raise ConversionError(f"{path}: two units of the tokenizer stand for {twice!r}")
    kept = {name: options[name] for name in OF_PHONES if kind == PHONES and name in options}
    return Units((BLANK, *spoken), blank, blank_index, kind == PHONES, kept)


def _options(folder: Path) -> tuple[dict[str, Any], dict[int, str]]:
    """The tokenizer's config with the names of special tokens, and the tokens outside the vocabulary by id.
    As in transformers, the older files are read only for configs without `added_tokens_decoder`."""
    read = {
        name: read_json(folder / name) for name in (TOKENIZER, SPECIAL, ADDED) if (folder / name).is_file()
    }
    options, added = read.get(TOKENIZER, {}), {}
    listed = options.get("added_tokens_decoder")
    if isinstance(listed, dict):
        added = {int(unit): _name(token) for unit, token in listed.items() if str(unit).isdecimal()}
    else:
        options |= read.get(SPECIAL, {})
        added = {unit: token for token, unit in read.get(ADDED, {}).items() if type(unit) is int}
    return {name: _name(value) for name, value in options.items()}, added


def _name(token: Any) -> Any:
    """A token's text; tokens are texts, or objects with one."""
    return token["content"] if isinstance(token, dict) and isinstance(token.get("content"), str) else token


def _by_id(path: Path, options: Mapping[str, Any]) -> dict[int, str]:
    ids = read_json(path)
    if any(isinstance(value, dict) for value in ids.values()):
        language = options.get("target_lang") or "eng"
        if not isinstance(ids.get(language), dict):
            raise ConversionError(f"{path}: has a vocabulary for each language, and none for {language!r}")
        ids = ids[language]
    if odd := next((symbol for symbol, unit in ids.items() if type(unit) is not int), None):
        raise ConversionError(f"{path}: the unit of {odd!r} is {ids[odd]!r}, not a whole number")
    return {unit: symbol for symbol, unit in ids.items()}


def _blank_index(
    names: Sequence[str], options: Mapping[str, Any], config: Mapping[str, Any], folder: Path
) -> int:
    """The index of the pad token, which the tokenizer uses as the blank; without one, the index in the
    model's config."""
    pad = options.get("pad_token", "<pad>")
    if pad in names:
        return names.index(pad)
    index = config.get("pad_token_id", 0)
    if type(index) is not int or not 0 <= index < len(names):
        raise ConversionError(
            f"{folder / 'config.json'}: field 'pad_token_id' is {index!r}, which is no unit"
        )
    return index


def _spoken(names: Sequence[str], phones: bool, options: Mapping[str, Any]) -> list[str]:
    """The text of each unit. Units without text get a name that never appears in texts."""
    delimiter, said, lower = options.get("word_delimiter_token"), SPACE, False
    if not phones:
        delimiter = options.get("word_delimiter_token", "|")
        said = options.get("replace_word_delimiter_char", SPACE) or f"<{delimiter}>"
        lower = options.get("do_lower_case") is True
    spoken = [said if name == delimiter else name for name in names]
    return [name.lower() for name in spoken] if lower else spoken


def written(spec: CTCSpec, training: Mapping[str, object]) -> tuple[int, dict[str, int], dict[str, Any]]:
    """The blank's index, and the contents of the tokenizer's two files. training: of the head."""
    where = training.get("blank_index", 0)
    blank_index = where if isinstance(where, int) else 0
    blank = str(training.get("blank", "<pad>"))
    # If `|` is itself a symbol, a space stands for itself: transformers 5.23 forgets any delimiter but `|`.
    delimiter = None if "|" in spec.vocabulary else "|"
    symbols = [delimiter or SPACE if symbol == SPACE else symbol for symbol in spec.vocabulary[1:]]
    symbols.insert(blank_index, blank)
    options: dict[str, Any] = {
        "tokenizer_class": LETTERS,
        "pad_token": blank,
        "unk_token": next((s for s in symbols if s.lower() in ("<unk>", "[unk]")), blank),
        "bos_token": "<s>" if "<s>" in symbols else None,
        "eos_token": "</s>" if "</s>" in symbols else None,
        "word_delimiter_token": delimiter,
        "do_lower_case": False,
    }
    if spec.spaced:
        kept = training.get("tokenizer")
        del options["do_lower_case"]
        options |= {
            "tokenizer_class": PHONES,
            "phone_delimiter_token": SPACE,
            "word_delimiter_token": delimiter if SPACE in spec.vocabulary else None,
            "do_phonemize": False,
            **(kept if isinstance(kept, dict) else {}),
        }
    return blank_index, {symbol: unit for unit, symbol in enumerate(symbols)}, options
