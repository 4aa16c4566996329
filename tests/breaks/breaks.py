"""All breaks, room by room."""

from tests.breaks import of_commands, of_engine, of_models, of_policies, of_results
from tests.breaks.spec import Break

BREAKS: tuple[Break, ...] = (
    *of_models.BREAKS, *of_policies.BREAKS, *of_engine.BREAKS, *of_commands.BREAKS, *of_results.BREAKS,
)  # fmt: skip
assert len({it.name for it in BREAKS}) == len(BREAKS)
