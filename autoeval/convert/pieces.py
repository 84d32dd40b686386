"""A SentencePiece model as a fast tokenizer, seen to give the same ids before it is trusted."""

from __future__ import annotations

import functools
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from autoeval.convert.errors import ConversionError

# Beside every piece of the vocabulary and random rows of them: scripts, spaces, numbers, code, bytes no piece has.
_PROBES = (
    "Hello, world!",
    "  two  spaces and a tail ",
    "   ",
    "tabs\tand\nlines\r\n\r\n  indented\u00a0and\u3000wide\n",
    "Zürich, naïve café, œuvre, İstanbul, ﬁne ① Ａ e\u0301",
    "The year 1984: 3.14159 (pi)... 1,000,000 --- 50 % of $9.99?",
    "def f(x):\n    return {'a': x ** 2, \"b\": [1, 2]}  # <html> && ||\n",
    "Привет, мир! Γειά σου κόσμε. שלום עולם مرحبا بالعالم",
    "नमस्ते दुनिया สวัสดีชาวโลก 안녕하세요 세계",
    "我们都是人。東京は日本の首都です。「カタカナ」",
    "😀 👩‍👩‍👧 🇨🇭 \U0001f9ea ∑∫≤ \ufeff\u200b",
)
_ROWS, _ROW_LENGTH = 2000, 20


@dataclass(frozen=True)
class Rebuilt:
    """``tokenizer`` is ``tokenizers.Tokenizer.to_str()``; ``specials`` names the special tokens as transformers does."""

    tokenizer: str
    specials: dict[str, str]


@functools.lru_cache(maxsize=4)  # a worker converts one checkpoint after another with the same tokenizer
def rebuild(content: bytes, name: str) -> Rebuilt:
    """From a ``.model`` file's content. Raises ``ConversionError`` when it cannot be rebuilt to give the same ids."""
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor(model_proto=content)
    tokenizer = _rebuild(processor)
    _check_equal(tokenizer, processor, name)
    numbers = {
        "bos_token": processor.bos_id(), "eos_token": processor.eos_id(), "unk_token": processor.unk_id(),
        "pad_token": processor.pad_id(),
    }  # fmt: skip
    specials = {key: processor.id_to_piece(number) for key, number in numbers.items() if number >= 0}
    return Rebuilt(tokenizer.to_str(), specials)


def _rebuild(processor: Any) -> Any:
    """The same pieces, scores and normalisation in the tokenizers library (both of SentencePiece's algorithms)."""
    from sentencepiece import sentencepiece_model_pb2
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    # The module is made when it is imported: mypy sees nothing in it.
    described: Any = sentencepiece_model_pb2.ModelProto.FromString(processor.serialized_model_proto())  # type: ignore[attr-defined]
    pieces = [(piece.piece, piece.score) for piece in described.pieces]
    kinds = described.SentencePiece
    own = [piece.piece for piece in described.pieces if piece.type == kinds.USER_DEFINED]
    trainer, rules = described.trainer_spec, described.normalizer_spec
    if trainer.model_type == trainer.UNIGRAM:
        model: Any = models.Unigram(pieces, unk_id=processor.unk_id(), byte_fallback=trainer.byte_fallback)
    elif trainer.model_type == trainer.BPE:
        model = models.BPE(
            {piece: number for number, (piece, _) in enumerate(pieces)},
            _merges(pieces),
            unk_token=processor.id_to_piece(processor.unk_id()),
            fuse_unk=True,
            byte_fallback=trainer.byte_fallback,
            ignore_merges=bool(own),  # a user-defined piece stands alone, nothing merges into it
        )
    else:
        raise ConversionError("a SentencePiece model of words or characters: expected unigram or bpe")
    tokenizer = Tokenizer(model)
    steps: list[Any] = []
    if rules.precompiled_charsmap:
        # Precompiled takes "\r\n" for one character and would drop the second half.
        if processor.normalize("a\rb") == processor.normalize("a b"):
            steps.append(normalizers.Replace("\r", " "))
        steps.append(normalizers.Precompiled(rules.precompiled_charsmap))
    if rules.remove_extra_whitespaces:
        # Spaces only: tokenizers' own Strip would take line ends too.
        steps += [normalizers.Replace(Regex(r"\A +| +\z"), ""), normalizers.Replace(Regex(" {2,}"), " ")]
    # Prepended even to a text that begins with a space, as SentencePiece does (Metaspace would not).
    if rules.add_dummy_prefix:
        steps.append(normalizers.Prepend("▁"))
    tokenizer.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", "▁")])
    decoding: list[Any] = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if rules.add_dummy_prefix:
        decoding.append(decoders.Strip(" ", 1, 0))
    tokenizer.decoder = decoders.Sequence(decoding)
    if own:
        # Not added tokens: the text on either side would be normalised as a text of its own, with a prefix each.
        alternatives = "|".join(re.escape(piece) for piece in sorted(own, key=len, reverse=True))
        tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(alternatives), "isolated")
    tokenizer.add_special_tokens(
        [AddedToken(p.piece, normalized=False) for p in described.pieces if p.type in (kinds.CONTROL, kinds.UNKNOWN)]
    )
    return tokenizer


def _merges(pieces: list[tuple[str, float]]) -> list[tuple[str, str]]:
    """BPE merges in order: a piece is merged from two others, the piece of the highest score first."""
    scores = dict(pieces)
    ranks = {piece: rank for rank, (piece, _) in enumerate(pieces)}
    found: list[tuple[float, int, int, tuple[str, str]]] = []
    for piece, score in pieces:
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in scores and right in scores:
                found.append((-score, ranks[left], ranks[right], (left, right)))
    return [pair for *_, pair in sorted(found)]


def _check_equal(tokenizer: Any, processor: Any, name: str) -> None:
    """Encodes probes by both. Unigram models have segmentations of equal score, among which SentencePiece chooses by
    rounding errors: there another choice of the same score passes."""
    unigram = type(tokenizer.model).__name__ == "Unigram"
    texts = [*_PROBES, *_texts_of_pieces(processor)]
    if not unigram:  # there the fast tokenizer takes the text "<0x41>" for the byte 0x41: a known, rare difference
        texts.append("<0x41> is how a byte is written")
    for text, expected, encoding in zip(
        texts, processor.encode(texts), tokenizer.encode_batch(texts, add_special_tokens=False), strict=True
    ):
        found = encoding.ids
        if found != expected and not (unigram and _equally_good(found, expected, processor)):
            raise ConversionError(
                f"{name}: rebuilt as a fast tokenizer it encodes {text!r} as {found}, SentencePiece as {expected}"
            )
    for text in _PROBES:
        ids = processor.encode(text)
        if processor.unk_id() not in ids and tokenizer.decode(ids) != processor.decode(ids):
            raise ConversionError(
                f"{name}: rebuilt as a fast tokenizer it decodes {ids} as {tokenizer.decode(ids)!r}, "
                f"SentencePiece as {processor.decode(ids)!r}"
            )


def _texts_of_pieces(processor: Any) -> Iterator[str]:
    pieces = [
        processor.id_to_piece(number).replace("▁", " ")
        for number in range(processor.get_piece_size())
        if not (
            processor.is_control(number) or processor.is_unknown(number)
            or processor.is_byte(number) or processor.is_unused(number)
        )
    ]  # fmt: skip
    yield from pieces
    chosen = random.Random(0)
    for _ in range(_ROWS if pieces else 0):
        yield "".join(chosen.choices(pieces, k=_ROW_LENGTH))


def _equally_good(found: list[int], expected: list[int], processor: Any) -> bool:
    if processor.decode(found) != processor.decode(expected):
        return False
    one, other = (sum(processor.get_score(number) for number in ids) for ids in (found, expected))
    return abs(one - other) <= 1e-5 * abs(other)
