"""Workloads that are made: the same seed makes the same one.

===============  ===================================================================================
name             what it is like
===============  ===================================================================================
shared-prompts   questions under system prompts, some of which are asked far more often than others
chats            people who talk in turns; each turn sends all that was said before
agents           programs that call tools; contexts grow fast, pauses are short or very long
unique           prompts that share nothing
===============  ===================================================================================
"""

from .making import GENERATORS, Generator, parse_generator
from .parts import Source

__all__ = ["GENERATORS", "Generator", "Source", "parse_generator"]
