"""One run or one sweep, from its configuration to its files."""
