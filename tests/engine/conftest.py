"""How its programs are compiled; a test of bits or of the program itself asks for ``as_users_do``."""

from tests.support.compilation import as_users_do as as_users_do
from tests.support.compilation import quick_compilation as quick_compilation
