"""Compiled without most optimisations: what is checked are values to a tolerance, and that a run goes on."""

from tests.support.compilation import quick_compilation as quick_compilation
