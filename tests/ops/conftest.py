"""How its programs are compiled."""

from tests.support.compilation import quick_compilation as quick_compilation
