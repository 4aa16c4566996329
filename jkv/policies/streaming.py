"""streaming: attention sinks plus the newest tokens (StreamingLLM, arXiv:2309.17453).

Differs from the source in one thing: positions are those of the sequence, not re-numbered within the buffer.
"""

import dataclasses

from jkv.policies.window import Window


@dataclasses.dataclass(frozen=True)
class Streaming(Window):
    """The window policy with 4 sinks by default (DynTS's comparisons: ``--sinks 10``)."""

    name = "streaming"
    sinks = 4
