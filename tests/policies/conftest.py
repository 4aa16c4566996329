"""The command's fixtures, for policies that are tested through it."""

from tests.command.conftest import run as run
from tests.command.conftest import task as task
from tests.command.conftest import tiny as tiny
