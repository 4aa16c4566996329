"""Formats turn a data set's row into a message and a reference answer, one file each; see ``jkv.tasks.benchmark``."""
