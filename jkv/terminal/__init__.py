"""How a command meets its user: flags, the screen, signals, and the exit code and last line after a failure."""
