"""One choice's stream, without I/O, against what the whole text says."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from dynamo_sdk.preprocess import Tokenizer
from dynamo_sdk.services.openai.choice import ChoiceStream, Delta
from dynamo_sdk.types import FinishReason, GenerateChunk, TokenLogprobs

from .fakes import END_ID, FOLDER, ids_of

TOKENIZER = Tokenizer.load(FOLDER)
END_IDS = frozenset({END_ID})


def chunks_of(ids: list[int], sizes: list[int], *, scored: bool, reason: FinishReason) -> list[GenerateChunk]:
    chunks: list[GenerateChunk] = []
    start = 0
    for size in [*sizes, len(ids) + 1]:
        part = tuple(ids[start : start + size])
        start += size
        chunks.append(
            GenerateChunk(
                token_ids=part,
                logprobs=tuple(TokenLogprobs(-float(i)) for i in part) if scored else None,
                finish_reason=reason if start >= len(ids) else None,
            )
        )
        if start >= len(ids):
            break
    return chunks


def play(stream: ChoiceStream, chunks: list[GenerateChunk]) -> list[Delta]:
    deltas: list[Delta] = []
    for chunk in chunks:
        deltas.append(stream.push(chunk))
        if deltas[-1].finish_reason is not None:
            break
    return deltas


_texts = st.text(alphabet="ab STOP.🙂é\n", max_size=30)
_sizes = st.lists(st.integers(0, 4), max_size=15)
_stops = st.lists(st.sampled_from(["STOP", "ST", "🙂", "a b", ".", "é\n"]), max_size=4)


@given(text=_texts, sizes=_sizes, stops=_stops, scored=st.booleans(), ends=st.booleans())
def test_the_text_ends_before_the_first_complete_stop_string(
    text: str, sizes: list[int], stops: list[str], scored: bool, ends: bool
) -> None:
    ids = ids_of(text) + ([END_ID] if ends else [])
    reason = FinishReason.STOP if ends else FinishReason.LENGTH
    stream = ChoiceStream(TOKENIZER.detokenizer(), end_ids=END_IDS, stops=stops)
    deltas = play(stream, chunks_of(ids, sizes, scored=scored, reason=reason))

    ends_at = [end for end in range(len(text) + 1) if any(text[:end].endswith(stop) for stop in stops)]
    expected, finish = text, reason.value
    if ends_at:
        hit = max((stop for stop in stops if text[: ends_at[0]].endswith(stop)), key=len)
        expected, finish = text[: ends_at[0] - len(hit)], "stop"
    assert "".join(delta.text for delta in deltas) == expected
    assert [delta.finish_reason for delta in deltas[:-1]] == [None] * (len(deltas) - 1)
    assert deltas[-1].finish_reason == finish


@given(text=_texts, sizes=_sizes, stops=_stops)
def test_logprobs_never_run_ahead_of_the_text(text: str, sizes: list[int], stops: list[str]) -> None:
    ids = ids_of(text)
    stream = ChoiceStream(TOKENIZER.detokenizer(), end_ids=END_IDS, stops=stops)
    shown, scored = "", []
    for delta in play(stream, chunks_of(ids, sizes, scored=True, reason=FinishReason.LENGTH)):
        shown += delta.text
        scored += delta.scored
        spelt = b"".join(TOKENIZER.token_bytes(token.token_id) for token in scored)
        assert shown.encode().startswith(spelt[: len(shown.encode())])
        assert len(spelt.decode("utf-8", "ignore")) <= len(shown)
    if not stops:
        assert [token.token_id for token in scored] == ids
        assert [token.scores.logprob for token in scored] == [-float(i) for i in ids]
    assert [token.token_id for token in scored] == ids[: len(scored)]


def test_text_offsets_count_characters() -> None:
    ids = ids_of("é block is")
    stream = ChoiceStream(TOKENIZER.detokenizer(), end_ids=END_IDS)
    (delta,) = play(stream, chunks_of(ids, [], scored=True, reason=FinishReason.LENGTH))
    for token in delta.scored:
        piece = TOKENIZER.token_bytes(token.token_id).decode("utf-8", "ignore")
        assert delta.text[token.text_offset :].startswith(piece)


def test_a_token_is_dropped_only_where_the_engine_stopped_at_it() -> None:
    word = ids_of(" block")
    stopped = ChoiceStream(TOKENIZER.detokenizer(), end_ids=frozenset(word))
    assert (
        stopped.push(GenerateChunk(token_ids=tuple(word * 2), finish_reason=FinishReason.STOP)).text
        == " block"
    )
    cut = ChoiceStream(TOKENIZER.detokenizer(), end_ids=frozenset(word))
    assert cut.push(GenerateChunk(token_ids=tuple(word), finish_reason=FinishReason.LENGTH)).text == " block"
    assert (stopped.num_tokens, cut.num_tokens) == (2, 1)
