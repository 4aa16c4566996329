"""full: nothing is evicted. The buffer is as long as the longest allowed sequence."""

import dataclasses

from jkv.policies.base import Policy


@dataclasses.dataclass(frozen=True)
class Full(Policy):
    """Every token stays; the reference that every budget is measured against."""

    name = "full"
    evicts = False
