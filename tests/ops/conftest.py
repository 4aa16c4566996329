"""How its programs are compiled."""

from tests.compilation import quick_compilation as quick_compilation
