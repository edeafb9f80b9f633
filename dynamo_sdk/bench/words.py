"""Words that are one token each, so that a prompt of n words is a prompt of about n tokens."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

from dynamo_sdk.errors import ConfigError

if TYPE_CHECKING:
    from dynamo_sdk.preprocess import Tokenizer

_TEXT = """
about above across action after again air all along also always among and animal answer any area arm
around art ask away back bad ball bank base because become bed before begin behind being best better
between big bird black blood blue board boat body book both bottom box boy bring brother brown build
business but buy call can car care carry case cause cell center change check child city class clear close
cold color come common company complete control cook copy corner cost could country course cover cross
cut dark data day deal death decide deep did different door down draw dream drive dry during each early
earth east easy eat edge education effect eight either end energy enough even event ever every example
eye face fact fall family far fast father fear feel few field fight figure fill final find fine fire
first fish five floor follow food foot for force form four free friend from front full game garden gave
general get girl give glass gold good got government grass great green ground group grow had half hand
happen hard has have head hear heart heat heavy held help her here high him his history hit hold home
horse hot hour house how human hundred idea if inside instead interest into iron island job just keep key
kind king know land language large last late law lay lead learn leave left leg less let letter level lie
life light like line list listen little live local long look lost low machine made main make man many map
mark market matter may mean measure meet member mind minute miss money month moon more morning most
mother mountain move much music must name nation near need never new next night nine north note nothing
notice now number object off office often oil old once one only open order other our out over own page
paper part party past pattern pay people perhaps period person picture piece place plan plane plant play
point police poor position possible power present press price problem process produce product program
public pull put question quick quite race rain ran reach read ready real reason record red region
remember rest result rich ride right river road rock room round rule run same save say school science sea
season second section see seem self send sense serve set seven several shape share she ship short should
show side simple since sit six size skin sleep slow small snow social some son song soon sound south
space speak special stand star start state stay step still stone stop story street strong study such
summer sun support sure surface system table take talk teach tell ten term test than that the their them
then there these they thing think third this those though thought three through time today together told
too took top total toward town trade train travel tree true try turn two type under unit until upon usual
value very view voice wait walk wall want war warm was watch water way week well went were west what
wheel when where which while white who whole why wide will wind window winter with without woman word
work world would write year yes yet young your
"""

COMMON_WORDS = tuple(_TEXT.split())
"""One token each in nearly every vocabulary of a language model."""

_MIN_WORDS = 64
_MAX_WORDS = 2048
_SPACED_WORD = re.compile(rb"^ [a-z]{2,}$")


def one_token_words(tokenizer: Tokenizer) -> tuple[str, ...]:
    """Words that add exactly one token where they follow another word. Takes part of a second.

    Raises ``ConfigError`` for a tokenizer that has too few to make distinct prompts of.
    """
    found = _kept(COMMON_WORDS, tokenizer)
    if len(found) < _MIN_WORDS:
        pieces = (tokenizer.token_bytes(token_id) for token_id in range(tokenizer.vocab_size))
        own = (piece[1:].decode() for piece in pieces if _SPACED_WORD.match(piece))
        found = _kept(own, tokenizer)
    if len(found) < _MIN_WORDS:
        raise ConfigError(
            f"the tokenizer has only {len(found)} words of one token and prompts need {_MIN_WORDS}; "
            "leave --tokenizer away: the reported counts come from the server either way"
        )
    return found


def _kept(words: Iterable[str], tokenizer: Tokenizer) -> tuple[str, ...]:
    base = len(tokenizer.encode("the", add_special_tokens=False))
    kept: list[str] = []
    for word in words:
        if len(tokenizer.encode(f"the {word}", add_special_tokens=False)) == base + 1:
            kept.append(word)
            if len(kept) == _MAX_WORDS:
                break
    return tuple(dict.fromkeys(kept))
