"""The configuration of each command: a frozen dataclass whose fields are its flags and its YAML keys."""
