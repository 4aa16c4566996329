"""Decoding on the device: requests go in, tokens come out, within the KV budget. README.md is a map of the files."""
