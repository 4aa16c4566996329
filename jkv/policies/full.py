"""full: nothing is evicted. The buffer is as long as the longest allowed sequence."""

import dataclasses

from jkv.policies.base import Policy


@dataclasses.dataclass(frozen=True)
class Full(Policy):
    """Every token stays. Every budget is measured against this."""

    name = "full"
    evicts = False
