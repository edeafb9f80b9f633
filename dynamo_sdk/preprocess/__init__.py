"""Between text and token ids: tokenizer, chat template, incremental detokenizing, stop strings."""

from .chat_template import MAX_MESSAGES, ChatTemplate, Message
from .detokenizer import Detokenizer
from .pipeline import ModelPipeline
from .stop_strings import StopStringMatcher
from .tokenizer import Tokenizer, printable

__all__ = [
    "MAX_MESSAGES",
    "ChatTemplate",
    "Detokenizer",
    "Message",
    "ModelPipeline",
    "StopStringMatcher",
    "Tokenizer",
    "printable",
]
