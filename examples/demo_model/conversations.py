"""What the demo model is taught: reads questions.md and draws conversations from it.

`Source` is the file as data; `Sampler` turns it into rows of token ids for training.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tokenizers import Tokenizer

SPECIAL = ["<|begin|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]  # token ids 0 to 4
BEGIN, END, SYSTEM, USER, ASSISTANT = SPECIAL
NOT_LEARNED = -100


@dataclass
class Turn:
    """One question in all its phrasings, and its answer."""

    trained: list[str] = field(default_factory=list)
    held_out: list[str] = field(default_factory=list)
    answer: str = ""


@dataclass
class Block:
    """One fact (a single turn) or one conversation (several)."""

    is_first_only: bool
    turns: list[Turn]
    num_listed: int  # phrasings of the first turn that are written out; templates made the others

    @property
    def weight(self) -> float:
        """How often the block is drawn: more for many topics, for names and for long answers."""
        if len(self.turns[0].trained) > 300:
            return 16.0
        if "{name}" in self.turns[0].answer:
            return 6.0
        return 2.0 if max(len(turn.answer) for turn in self.turns) > 250 else 1.0


@dataclass
class Source:
    """What questions.md says."""

    blocks: list[Block]
    names: list[str]
    system_prompts: list[str]


def read_source(path: Path) -> Source:
    """Parses questions.md; the format is told at the top of that file."""
    sections = re.split(r"^## ", path.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    bodies = dict(section.split("\n", 1) for section in sections)
    templates, held_out_templates = _questions(bodies.pop("Templates"))
    names = [name.strip() for name in bodies.pop("Names").replace("\n", " ").split(";")]
    system_prompts, _ = _questions(bodies.pop("System prompts"))
    blocks = []
    for text in (b for body in bodies.values() for b in re.split(r"(?m)^### ", body)[1:]):
        heading, body = text.split("\n", 1)
        topics = [] if heading[0] in "([" else [heading]
        for line in re.findall(r"(?m)^- topics: (.*)", body):
            topics += line.split("; ")
        turns = []
        for part in re.findall(r"(?:^- .*\n)+(?:^>.*\n?)+", body, flags=re.MULTILINE):
            answer = "\n".join(line[2:] for line in part.splitlines() if line[0] == ">")
            turns.append(Turn(*_questions(part), answer))
        num_listed = len(turns[0].trained)
        turns[0].trained += [_fill(t, topic) for topic in topics for t in templates]
        turns[0].held_out += [_fill(t, topic) for topic in topics[:5] for t in held_out_templates]
        blocks.append(Block(heading[0] == "[", turns, num_listed))
    return Source(blocks, names, system_prompts)


def _questions(text: str) -> tuple[list[str], list[str]]:
    """The trained and the held-out lines of a Markdown list."""
    lines = re.findall(r"(?m)^- (?!topics: )(.*)", text)
    held_out = [line for line in lines if line.startswith("held out: ")]
    return [x for x in lines if x not in held_out], [x.removeprefix("held out: ") for x in held_out]


def _fill(template: str, topic: str) -> str:
    is_capital = template[0] == "{" and topic.split()[0].islower() and "_" not in topic
    return template.replace("{topic}", topic[0].upper() + topic[1:] if is_capital else topic)


def varied(question: str, rng: random.Random) -> str:
    """The question as people type it: without the mark, in lower case, with a word of courtesy."""
    if rng.random() < 0.3:
        question = question.rstrip("?.!")
    if rng.random() < 0.06:
        opening = rng.choice(["Please tell me: ", "Hi, ", "Question: ", "And ", "So, ", "Okay, "])
        question = opening + question
    elif rng.random() < 0.04:
        question = question.rstrip("?.!") + rng.choice([" please", ", please?", " again", "??"])
    if rng.random() < 0.25:
        question = question.lower()
    elif rng.random() < 0.1:
        question = question[0].lower() + question[1:]
    return question


class Sampler:
    """Draws conversations and turns them into token ids and labels (questions: `NOT_LEARNED`)."""

    def __init__(self, source: Source, tokenizer: Tokenizer, seed: int) -> None:
        self.source, self.rng = source, random.Random(seed)
        self._tokenizer = tokenizer
        self._weights = [block.weight for block in source.blocks]
        self._ids: dict[str, list[int]] = {}

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, in which special tokens may stand; remembers what it has seen."""
        if text not in self._ids:
            self._ids[text] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return self._ids[text]

    def block(self, is_first: bool) -> Iterator[tuple[str, str]]:
        """Draws one block, as (question, answer) pairs."""
        rng = self.rng
        block = rng.choices(self.source.blocks, self._weights)[0]
        while block.is_first_only and not is_first:
            block = rng.choices(self.source.blocks, self._weights)[0]
        name = rng.choice(self.source.names)
        for index, turn in enumerate(block.turns):
            questions = turn.trained
            if index == 0 and 0 < block.num_listed < len(questions) and rng.random() < 0.5:
                questions = questions[: block.num_listed]
            question = varied(rng.choice(questions).replace("{name}", "\0"), rng)
            yield question.replace("\0", name), turn.answer.replace("{name}", name)

    def system(self, max_tokens: int = 0) -> str:
        """Draws a system prompt; with `max_tokens`, one in three is as long as a document."""
        rng = self.rng
        text = rng.choice(self.source.system_prompts)
        if max_tokens and rng.random() < 1 / 3:
            answers = [block.turns[0].answer for block in self.source.blocks]
            for answer in rng.choices(answers, k=rng.randrange(1, max_tokens // 30)):
                text += " " + answer
        return SYSTEM + text + END

    def row(self, length: int) -> tuple[list[int], list[int]]:
        """One conversation of `length` tokens, cut or padded; a short row holds one block only."""
        begin, end, _, user, assistant = range(5)
        is_short = length < 200
        ids = [begin]
        if self.rng.random() < 0.04:  # bare text, for the completions route
            ids += [*self.encode(self.rng.choice(self.source.blocks).turns[0].answer), end]
            labels = [NOT_LEARNED, *ids[1:]]
        else:
            if self.rng.random() < (0.2 if is_short else 0.6):
                ids = ids + self.encode(self.system(max_tokens=0 if is_short else length * 3 // 4))
            labels = [NOT_LEARNED] * len(ids)
            is_first = True
            while is_first or (len(ids) < length and not is_short):
                for question, answer in self.block(is_first):
                    asked = [user, *self.encode(question), end, assistant]
                    said = [*self.encode(answer), end]
                    ids += asked + said
                    labels += [NOT_LEARNED] * len(asked) + said
                is_first = False
        padding = length - len(ids)
        return (ids + [end] * padding)[:length], (labels + [NOT_LEARNED] * padding)[:length]
