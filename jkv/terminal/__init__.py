"""How a command talks: flags, screen, signals, and what a failure looks like."""
