"""KV events as engines put them on their own wires, decoded into ours.

An adapter for an engine brings the messages (from a ZMQ socket, from a poll) and publishes what these return;
nothing here does I/O. Each decoder is for one data-parallel rank of one engine. Its state is what an event
leaves to be known from those before it. ``ZmqEventFeed`` adds what a publisher's reader needs: gaps, replays,
restarts, and a snapshot of what is held.

Blocks that depend on more than tokens, adapter and salt (on an image, for one) are left out, and so is all
that follows them, because their successors' parent is unknown. What is left out may cost a cache hit; a block
that is wrongly believed to be there would cost one at every request.
"""

from .tensorrt_llm import TensorRTEventDecoder
from .zmq_feed import FeedStep, ZmqEventFeed
from .zmq_frames import ZmqEventDecoder

__all__ = ["FeedStep", "TensorRTEventDecoder", "ZmqEventDecoder", "ZmqEventFeed"]
