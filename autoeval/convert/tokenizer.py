"""Puts a tokenizer beside the model, so that ``AutoTokenizer.from_pretrained(directory)`` needs nothing else."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from autoeval.convert.errors import ConversionError
from autoeval.convert.pieces import rebuild
from recorder.files import write_json

_END_OF_TEXT = "<|endoftext|>"
_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "vocab.txt", "merges.txt", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "chat_template.jinja",
    "chat_template.json",
)  # fmt: skip


@dataclass(frozen=True)
class TokenizerSource:
    """``gpt2`` needs ``vocab_path`` and ``merge_path``; the others ``path`` (a ``.model`` file, or a directory)."""

    kind: Literal["gpt2", "sentencepiece", "huggingface"]
    vocab_path: Path | None = None
    merge_path: Path | None = None
    path: Path | None = None

    def files(self) -> list[Path]:
        """The files it is made of; ``ConversionError`` names one that is not there."""
        if self.kind == "gpt2":
            needed = [self.vocab_path, self.merge_path]
        elif self.kind == "huggingface" and self.path is not None:
            if not self.path.is_dir():
                raise ConversionError(f"{self.path}: expected a Hugging Face tokenizer's directory")
            needed = [self.path / name for name in _FILES if (self.path / name).is_file()]
            if not needed:
                raise ConversionError(f"{self.path}: no tokenizer in it (expected tokenizer.json or its older files)")
        else:
            needed = [self.path]
        found = [path for path in needed if path is not None]
        if len(found) != len(needed):
            raise ConversionError(f"a tokenizer of the kind {self.kind} needs its files named")
        for path in found:
            if not path.is_file():
                raise ConversionError(f"{path}: the tokenizer's file is not there")
        return found

    def fingerprint(self) -> str:
        digest = hashlib.sha256(self.kind.encode())
        for path in self.files():
            digest.update(path.name.encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
        return digest.hexdigest()


def tokenizer_source(text: str) -> TokenizerSource:
    """From the command line: ``vocab.json,merges.txt``, a directory with these two alone, a ``.model`` file, or a
    Hugging Face directory."""
    parts = [Path(part) for part in text.split(",")]
    if len(parts) == 2:
        return TokenizerSource("gpt2", vocab_path=parts[0], merge_path=parts[1])
    path = parts[0]
    if path.is_file():
        return TokenizerSource("sentencepiece", path=path)
    whole = (path / "tokenizer.json").is_file() or (path / "tokenizer_config.json").is_file()
    if (path / "vocab.json").is_file() and (path / "merges.txt").is_file() and not whole:
        return TokenizerSource("gpt2", vocab_path=path / "vocab.json", merge_path=path / "merges.txt")
    return TokenizerSource("huggingface", path=path)


def write_tokenizer(source: TokenizerSource, directory: Path, *, max_length: int) -> int:
    """Write the tokenizer's files; returns its size. ``max_length`` becomes ``model_max_length``.

    Raises ``ConversionError`` when the files are not such a tokenizer or it cannot be rebuilt exactly.
    """
    source.files()
    try:
        if source.kind == "gpt2":
            assert source.vocab_path and source.merge_path
            _save(_gpt2(source.vocab_path, source.merge_path), directory, max_length, _gpt2_specials)
        elif source.kind == "sentencepiece":
            assert source.path
            _write_sentencepiece(source.path, directory, max_length)
        else:
            _copy(source, directory, max_length)
        return _load_size(directory)
    except ConversionError:
        raise
    except Exception as error:  # the tokenizers library raises bare Exception for bad files
        named = ", ".join(str(path) for path in source.files())
        raise ConversionError(
            f"{named}: not a usable {source.kind} tokenizer: {type(error).__name__}: {error}"
        ) from error


def _gpt2(vocab_path: Path, merge_path: Path) -> Any:
    """Byte-level BPE as OpenAI's GPT-2 and Megatron's GPT2BPETokenizer do it: no prefix space."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    tokenizer = Tokenizer(models.BPE.from_file(str(vocab_path), str(merge_path)))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    if tokenizer.token_to_id(_END_OF_TEXT) is not None:
        tokenizer.add_special_tokens([AddedToken(_END_OF_TEXT, normalized=False)])
    return tokenizer


def _gpt2_specials(tokenizer: Any) -> dict[str, str]:
    if tokenizer.token_to_id(_END_OF_TEXT) is None:
        return {}
    return dict.fromkeys(("bos_token", "eos_token", "unk_token"), _END_OF_TEXT)


def _save(tokenizer: Any, directory: Path, max_length: int, specials: Any) -> None:
    from transformers import PreTrainedTokenizerFast

    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=max_length,
        clean_up_tokenization_spaces=False,
        **specials(tokenizer),
    ).save_pretrained(directory)


def _write_sentencepiece(path: Path, directory: Path, max_length: int) -> None:
    from tokenizers import Tokenizer

    rebuilt = rebuild(path.read_bytes(), str(path))
    _save(Tokenizer.from_str(rebuilt.tokenizer), directory, max_length, lambda _tokenizer: rebuilt.specials)
    shutil.copyfile(path, directory / "tokenizer.model")


def _copy(source: TokenizerSource, directory: Path, max_length: int) -> None:
    """The directory's tokenizer files, with ``model_max_length`` not above what the model can take."""
    for path in source.files():
        shutil.copyfile(path, directory / path.name)
    settings_path = directory / "tokenizer_config.json"
    settings: Any = json.loads(settings_path.read_text(encoding="utf-8")) if settings_path.is_file() else {}
    if not isinstance(settings, dict):
        raise ConversionError(f"{source.path}: tokenizer_config.json is not a mapping")
    if "auto_map" in settings:
        raise ConversionError(f"{source.path}: this tokenizer runs its own code (auto_map), which is not trusted")
    settings.setdefault("tokenizer_class", "PreTrainedTokenizerFast")
    settings["model_max_length"] = min(int(settings.get("model_max_length") or max_length), max_length)
    write_json(settings_path, settings)


def _load_size(directory: Path) -> int:
    """Load it as every later reader will, and count its ids."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(directory), local_files_only=True, trust_remote_code=False)
    return max(len(tokenizer), max(tokenizer.get_vocab().values(), default=-1) + 1)
