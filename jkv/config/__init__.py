"""The configuration of each command: a frozen dataclass whose fields are its flags and its YAML keys. The docstring
under a field is the help text of its flag."""
