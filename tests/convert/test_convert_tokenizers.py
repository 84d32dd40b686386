"""Each kind of tokenizer lands beside the model, loads offline, and cuts the padded vocabulary."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from handmade import legacy_checkpoint, small_tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from autoeval.convert import ConversionError, TokenizerSource, convert
from autoeval.convert.tokenizer import tokenizer_source, write_tokenizer

DATA = Path(os.environ.get("AUTOEVAL_DATA", Path(__file__).resolve().parents[3] / "shared/data")) / "tokenizers"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=f"no tokenizers at {DATA}")
TEXT = "Hello, world! It's 1984;  two spaces."


@pytest.fixture
def small_gpt2(tmp_path: Path) -> TokenizerSource:
    return small_tokenizer(tmp_path)


def test_padding_rows_are_cut_to_the_tokenizer(tmp_path: Path, small_gpt2: TokenizerSource) -> None:
    source = legacy_checkpoint(tmp_path / "iter_0000001")
    receipt = convert(source, tmp_path / "hf", tokenizer=small_gpt2)
    assert (receipt.vocab_size, receipt.padded_vocab_size) == (259, 384)
    model: Any
    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(tmp_path / "hf"),
        AutoTokenizer.from_pretrained(tmp_path / "hf"),
    )
    assert model.get_input_embeddings().weight.shape[0] == model.config.vocab_size == len(tokenizer) == 259
    assert tokenizer.model_max_length == 128
    assert model.config.eos_token_id == tokenizer.eos_token_id == 258
    assert tokenizer.decode(tokenizer(TEXT).input_ids) == TEXT


def test_a_weight_that_the_table_does_not_know_is_refused(tmp_path: Path, small_gpt2: TokenizerSource) -> None:
    source = legacy_checkpoint(tmp_path / "iter_0000001")
    file = source / "mp_rank_00/model_optim_rng.pt"
    state = torch.load(file, weights_only=False)
    state["model"]["decoder.layers.0.mlp.adapter.weight"] = torch.ones(2)
    torch.save(state, file)
    with pytest.raises(ConversionError, match=r"no place for decoder\.layers\.0\.mlp\.adapter\.weight"):
        convert(source, tmp_path / "hf", tokenizer=small_gpt2)


@needs_data
def test_a_tokenizer_larger_than_the_model_is_refused(tmp_path: Path) -> None:
    source = legacy_checkpoint(tmp_path / "iter_0000001")
    with pytest.raises(ConversionError, match="50257 tokens"):
        convert(source, tmp_path / "hf", tokenizer=tokenizer_source(str(DATA / "gpt2")))
    assert not (tmp_path / "hf").exists()


@needs_data
def test_gpt2_ids_are_the_published_ones(tmp_path: Path) -> None:
    assert write_tokenizer(tokenizer_source(str(DATA / "gpt2")), tmp_path, max_length=1024) == 50257
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer("Hello world<|endoftext|>").input_ids == [15496, 995, 50256]
    assert tokenizer.decode(tokenizer(TEXT).input_ids) == TEXT


@needs_data
def test_sentencepiece_ids_are_its_own(tmp_path: Path) -> None:
    import sentencepiece

    path = next((DATA / "sentencepiece").glob("*.model"))
    processor = sentencepiece.SentencePieceProcessor(model_file=str(path))
    assert write_tokenizer(tokenizer_source(str(path)), tmp_path, max_length=256) == processor.get_piece_size()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer(TEXT, add_special_tokens=False).input_ids == processor.encode(TEXT)
    assert tokenizer.model_max_length == 256


def test_a_sentencepiece_bpe_model_is_rebuilt_exactly(tmp_path: Path) -> None:
    """The kind that Llama 2 uses: BPE with bytes for what it does not know."""
    import sentencepiece

    text = tmp_path / "text.txt"
    text.write_text("\n".join(f"the cat number {n} sat on the mat and saw {n * 7} dogs" for n in range(300)))
    sentencepiece.SentencePieceTrainer.train(
        input=str(text), model_prefix=str(tmp_path / "bpe"), vocab_size=400, model_type="bpe", byte_fallback=True,
        normalization_rule_name="identity", remove_extra_whitespaces=False, num_threads=1, minloglevel=2,
    )  # fmt: skip
    processor = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "bpe.model"))
    (tmp_path / "hf").mkdir()
    write_tokenizer(tokenizer_source(str(tmp_path / "bpe.model")), tmp_path / "hf", max_length=256)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "hf")
    for line in (TEXT, "the cat saw 東京 and 😀"):
        assert tokenizer(line, add_special_tokens=False).input_ids == processor.encode(line)
        assert tokenizer.decode(processor.encode(line)) == line


def test_a_hugging_face_tokenizer_is_kept(tmp_path: Path, small_gpt2: TokenizerSource) -> None:
    write_tokenizer(small_gpt2, tmp_path / "one", max_length=4096)
    (tmp_path / "two").mkdir()
    write_tokenizer(TokenizerSource("huggingface", path=tmp_path / "one"), tmp_path / "two", max_length=128)
    one, two = AutoTokenizer.from_pretrained(tmp_path / "one"), AutoTokenizer.from_pretrained(tmp_path / "two")
    assert one(TEXT).input_ids == two(TEXT).input_ids and two.model_max_length == 128


def test_missing_tokenizer_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConversionError, match=r"absent\.model"):
        write_tokenizer(TokenizerSource("sentencepiece", path=tmp_path / "absent.model"), tmp_path, max_length=8)


LINES = [
    *(f"the cat number {n} sat on the mat -- and saw {n * 7} dogs, <sep> then slept\n" for n in range(200)),
    *["Привет мир, как дела", "東京は日本の首都です", "नमस्ते दुनिया", "שלום עולם", "x = {'a': [1, 2]}"] * 5,
]


def sentencepiece_model(path: Path, kind: str, rules: str, spaces: bool, prefix: bool, own: list[str]) -> Any:
    import sentencepiece

    with path.open("wb") as stream:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(LINES), model_writer=stream, vocab_size=420, model_type=kind, byte_fallback=True,
            normalization_rule_name=rules, remove_extra_whitespaces=spaces, add_dummy_prefix=prefix,
            user_defined_symbols=own, hard_vocab_limit=False, num_threads=1, minloglevel=2,
        )  # fmt: skip
    return sentencepiece.SentencePieceProcessor(model_file=str(path))


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
@pytest.mark.parametrize(
    ("rules", "spaces", "prefix", "own"),
    [
        ("nmt_nfkc", True, True, []),
        ("nmt_nfkc", False, False, ["<sep>"]),
        ("identity", True, False, []),
        ("identity", False, True, ["<sep>", "<sep><sep>"]),
    ],
)
def test_every_kind_of_sentencepiece_model(
    tmp_path: Path, kind: str, rules: str, spaces: bool, prefix: bool, own: list[str]
) -> None:
    processor = sentencepiece_model(tmp_path / "sp.model", kind, rules, spaces, prefix, own)
    (tmp_path / "hf").mkdir()
    write_tokenizer(TokenizerSource("sentencepiece", path=tmp_path / "sp.model"), tmp_path / "hf", max_length=256)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "hf")
    for text in ("<sep>the dogs\r\n\r\n  sat", " saw<sep><sep>Привет  東京 <sep> 😀\n", "{'a': 9} [1]  ", "", " "):
        ids = processor.encode(text)
        assert tokenizer(text, add_special_tokens=False).input_ids == ids, text
        assert tokenizer.decode(ids) == processor.decode(ids)


def test_a_sentencepiece_model_that_cannot_be_rebuilt_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Were the fast tokenizer to split anything else than SentencePiece does, its ids would not be the model's."""
    from autoeval.convert import pieces

    sentencepiece_model(tmp_path / "sp.model", "bpe", "identity", False, True, [])
    source = TokenizerSource("sentencepiece", path=tmp_path / "sp.model")
    right = pieces._merges
    monkeypatch.setattr(pieces, "_merges", lambda scores: right(scores)[1:])  # one merge of some two hundred is lost
    pieces.rebuild.cache_clear()
    with pytest.raises(ConversionError, match=r"sp\.model: rebuilt as a fast tokenizer it encodes"):
        write_tokenizer(source, tmp_path, max_length=8)
    monkeypatch.setattr(pieces, "_merges", right)
    assert write_tokenizer(source, tmp_path, max_length=8) == 420
    (tmp_path / "words.model").write_bytes(b"not a model")
    with pytest.raises(ConversionError, match=r"words\.model: not a usable sentencepiece tokenizer"):
        write_tokenizer(TokenizerSource("sentencepiece", path=tmp_path / "words.model"), tmp_path, max_length=8)


def test_a_second_conversion_writes_the_same_tokenizer_without_building_it(
    small_gpt2: TokenizerSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from autoeval.convert import preparation

    built = []
    monkeypatch.setattr(preparation, "write_tokenizer", lambda *a, **k: built.append(a) or write_tokenizer(*a, **k))
    monkeypatch.setattr(preparation, "_last_placed", {})
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        preparation._place(small_gpt2, tmp_path / name, 128)
    files = [{path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("one", "two")]
    assert len(built) == 1 and files[0] == files[1] and "tokenizer.json" in files[0]
    (tmp_path / "three").mkdir()
    preparation._place(small_gpt2, tmp_path / "three", 64)  # another window is written into its files
    assert len(built) == 2
