"""A small language that a small model can learn in two minutes, and the questions that show whether it has.

Everything comes from one seed: the world (people and what is true of them), the corpus that tells of it, and the
questions. A question never stands in the corpus word for word:

- a *fact* (``we know Mira lives in Tolgrad``) is told in all wordings of its relation but one; the question uses that
  one, and that wording is learned from other people's facts;
- a *pattern* (copy a list of words, take its last, count on) is asked about lists that were kept out of the corpus.

The corpus also has bracket strings with their closing brackets, which is the kind of text that HELM's ``dyck_language``
scenario asks for. They are generated here, from another distribution than HELM's.

``python demos/quickstart/language.py OUTPUT_DIR`` writes ``corpus.txt`` (one document a line block, separated by
``<|endoftext|>``), the tokenizer (``vocab.json``, ``merges.txt``), ``facts_ppl.jsonl``, ``patterns_gen.jsonl`` and
``helm_mcqa.jsonl``.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[2]
if str(_ROOT) not in sys.path:  # as a script, from any directory
    sys.path.insert(0, str(_ROOT))

from recorder.files import write_atomic  # noqa: E402

END_OF_TEXT = "<|endoftext|>"
VOCABULARY_SIZE = 640
SEED = 20261121

TOWNS = ("Tolgrad", "Vesport", "Amberley", "Kirnau", "Lodmere", "Sunfell", "Ostrava", "Pellworth")
COLOURS = ("red", "blue", "green", "yellow", "purple", "orange", "white", "black")
PETS = ("cat", "dog", "parrot", "rabbit", "turtle", "hamster", "goose", "pony")
JOBS = ("baker", "doctor", "painter", "sailor", "teacher", "farmer", "tailor", "miner")
MUSIC = ("violin", "piano", "trumpet", "drum", "harp", "flute", "guitar", "organ")
WORDS = ("apple", "stone", "river", "candle", "bridge", "feather", "button", "window", "garden", "lantern")
BRACKETS = (("(", ")"), ("[", "]"))

# relation -> (the values it can take, its wordings; in every wording the value comes last, so that it can be ranked)
RELATIONS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "town": (TOWNS, ("we know {} lives in", "here {} has a house in", "the home of {} is in", "go and see {} in")),
    "colour": (COLOURS, ("they say {} likes", "today {} paints it", "the coat of {} is", "the favourite of {} is")),
    "pet": (PETS, ("we know {} owns a", "they say {} walks a", "the pet of {} is a", "at home {} feeds a")),
    "job": (JOBS, ("today {} works as a", "here {} earns money as a", "the job of {} is", "people know {} as a")),
    "music": (
        MUSIC,
        ("here {} plays the", "they say {} practises the", "the music of {} is the", "you hear {} on the"),
    ),
}
HELM_RELATION = "music"  # asked through HELM's scenario custom_mcqa, the others through OpenICL
PEOPLE_COUNT = 52
CHOICES = 4


@dataclass(frozen=True)
class Fact:
    """One truth. ``wording`` is the index of the only wording in which the corpus does not tell it."""

    person: str
    relation: str
    value: str
    wording: int

    def sentence(self, wording: int) -> str:
        return f"{self.prompt(wording)} {self.value} ."

    def prompt(self, wording: int) -> str:
        return RELATIONS[self.relation][1][wording].format(self.person)


@dataclass(frozen=True)
class FactQuestion:
    """Ranked by likelihood: which of ``choices`` continues ``prompt``; ``answer`` is the index of the right one."""

    fact: Fact
    prompt: str
    choices: tuple[str, ...]
    answer: int


@dataclass(frozen=True)
class PatternQuestion:
    """Generated: the model is to write ``answer`` after ``prompt``, then end the line."""

    prompt: str
    answer: str


def people(seed: int = SEED) -> tuple[str, ...]:
    """Invented names of two syllables, all different."""
    heads = ("Mi", "Ta", "Ro", "Lu", "Se", "Ka", "Ne", "Jo", "Vi", "Da")
    tails = ("ra", "lin", "mo", "vek", "sha", "bel", "tus", "nor")
    names = [head + tail for head in heads for tail in tails]
    random.Random(f"{seed}:people").shuffle(names)
    return tuple(names[:PEOPLE_COUNT])


def facts(seed: int = SEED) -> tuple[Fact, ...]:
    rng = random.Random(f"{seed}:facts")
    return tuple(
        Fact(person, relation, rng.choice(values), rng.randrange(len(wordings)))
        for person in people(seed)
        for relation, (values, wordings) in RELATIONS.items()
    )


def fact_questions(seed: int = SEED) -> tuple[FactQuestion, ...]:
    """One question a fact, in the wording that the corpus keeps from it."""
    rng = random.Random(f"{seed}:fact questions")
    questions = []
    for fact in facts(seed):
        wrong = rng.sample([value for value in RELATIONS[fact.relation][0] if value != fact.value], CHOICES - 1)
        choices = [fact.value, *wrong]
        rng.shuffle(choices)
        questions.append(FactQuestion(fact, fact.prompt(fact.wording), tuple(choices), choices.index(fact.value)))
    return tuple(questions)


def all_patterns() -> Iterator[PatternQuestion]:
    """Every pattern of the language."""
    for a in WORDS:
        for b in WORDS:
            yield PatternQuestion(f"Copy : {a} {b} ->", f"{a} {b}")
            for c in WORDS:
                yield PatternQuestion(f"First : {a} {b} {c} ->", a)
                yield PatternQuestion(f"Last : {a} {b} {c} ->", c)
    for start in range(90):
        yield PatternQuestion(f"Count : {start} {start + 1} {start + 2} ->", f"{start + 3}")


def split_patterns(seed: int = SEED) -> tuple[tuple[PatternQuestion, ...], tuple[PatternQuestion, ...]]:
    """The patterns that the corpus may show, and 160 others that are asked (40 of each kind, counting 20)."""
    rng = random.Random(f"{seed}:patterns")
    shown: list[PatternQuestion] = []
    asked: list[PatternQuestion] = []
    for kind, held_out in (("Copy", 40), ("First", 50), ("Last", 50), ("Count", 20)):
        patterns = [pattern for pattern in all_patterns() if pattern.prompt.startswith(kind)]
        rng.shuffle(patterns)
        asked += patterns[:held_out]
        shown += patterns[held_out:]
    rng.shuffle(asked)
    return tuple(shown), tuple(asked)


def bracket_line(rng: random.Random) -> str:
    """``Input: ( [ ] ) ( )``: brackets of two kinds that are all closed, half of the lines short."""
    shortest = rng.randint(3, 50) if rng.random() < 0.5 else rng.randint(1, 12)
    written: list[str] = []
    open_brackets: list[str] = []
    while open_brackets or len(written) < shortest:
        if not open_brackets or (len(written) + len(open_brackets) < 100 and rng.random() < 0.47):
            left, right = rng.choice(BRACKETS)
            written.append(left)
            open_brackets.append(right)
        else:
            written.append(open_brackets.pop())
    return f"Input: {' '.join(written)}"


def documents(count: int, seed: int = SEED) -> Iterator[str]:
    """``count`` documents: what is said about a few people, a few patterns, or a list of bracket strings."""
    rng = random.Random(f"{seed}:corpus")
    truths = facts(seed)
    shown, _ = split_patterns(seed)
    by_kind: dict[str, list[PatternQuestion]] = {}
    for pattern in shown:
        by_kind.setdefault(pattern.prompt.split()[0], []).append(pattern)
    kinds = sorted(by_kind)
    for _ in range(count):
        draw = rng.random()
        if draw < 0.36:
            yield "\n".join(_told(rng, rng.choice(truths)) for _ in range(10)) + "\n"
        elif draw < 0.78:
            chosen = [rng.choice(by_kind[rng.choice(kinds)]) for _ in range(8)]
            yield "\n".join(f"{pattern.prompt} {pattern.answer}" for pattern in chosen) + "\n"
        else:
            yield "\n\n".join(bracket_line(rng) for _ in range(4)) + "\n"


def _told(rng: random.Random, fact: Fact) -> str:
    wordings = [index for index in range(len(RELATIONS[fact.relation][1])) if index != fact.wording]
    return fact.sentence(rng.choice(wordings))


def helm_instance(question: FactQuestion) -> dict[str, object]:
    """One line of the file that HELM's ``custom_mcqa`` reads: an ``Instance`` of HELM as JSON."""
    references = [
        {"output": {"text": choice}, "tags": ["correct"] if index == question.answer else []}
        for index, choice in enumerate(question.choices)
    ]
    return {"input": {"text": question.prompt}, "references": references, "split": "test"}


def train_tokenizer(texts: Sequence[str], output: Path) -> None:
    """Byte-level BPE in GPT-2's two files, ``vocab.json`` and ``merges.txt``, in the directory ``output``."""
    from tokenizers import ByteLevelBPETokenizer

    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(
        texts, vocab_size=VOCABULARY_SIZE, min_frequency=2, special_tokens=[END_OF_TEXT], show_progress=False
    )
    tokenizer.save_model(str(output))


def write_language(output: Path, *, count: int = 16_000, seed: int = SEED) -> None:
    """Write the corpus, the tokenizer and both sets of questions into ``output``; the same bytes for the same seed."""
    output.mkdir(parents=True, exist_ok=True)
    texts = list(documents(count, seed))
    write_atomic(output / "corpus.txt", END_OF_TEXT.join(texts))
    train_tokenizer(texts[:2000], output)
    questions = fact_questions(seed)
    fact_rows: list[dict[str, object]] = [
        {"prompt": q.prompt, **dict(zip("ABCD", q.choices, strict=True)), "answer": "ABCD"[q.answer]}
        for q in questions
        if q.fact.relation != HELM_RELATION
    ]
    pattern_rows: list[dict[str, object]] = [{"prompt": q.prompt, "answer": q.answer} for q in split_patterns(seed)[1]]
    helm_rows = [helm_instance(q) for q in questions if q.fact.relation == HELM_RELATION]
    for name, rows in (
        ("facts_ppl.jsonl", fact_rows),
        ("patterns_gen.jsonl", pattern_rows),
        ("helm_mcqa.jsonl", helm_rows),
    ):
        write_atomic(output / name, "".join(json.dumps(row) + "\n" for row in rows))


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Write the demo's corpus, tokenizer and questions.")
    parser.add_argument("output", type=Path, help="directory to write to")
    parser.add_argument("--documents", type=int, default=16_000)
    parser.add_argument("--seed", type=int, default=SEED)
    arguments = parser.parse_args(argv)
    write_language(arguments.output, count=arguments.documents, seed=arguments.seed)
    print(f"corpus, tokenizer and questions written to {arguments.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
