"""Deliberate breaks of jkv, and the test that notices each: `python -m tests.breaks`.

A test suite that passes says little until it is known what would make it fail. Each `Break` is a small change to jkv or
the converters that leaves the code running and makes it wrong. The runner makes the change in a copy of the repository
and expects the named tests to fail there.
"""
