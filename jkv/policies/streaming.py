"""streaming: attention sinks plus the newest tokens (StreamingLLM, arXiv:2309.17453).

Score = position, with the first ``--sinks`` tokens protected. The source re-numbers positions within the cache; here,
as for every policy, a key keeps the position that it has in its sequence.
"""

import dataclasses

from jkv.policies.window import Window


@dataclasses.dataclass(frozen=True)
class Streaming(Window):
    """The window policy with 4 sinks by default, as in the source. DynTS's comparisons use ``--sinks 10``."""

    name = "streaming"
    sinks = 4
