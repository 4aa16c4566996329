"""Prompts in, tokens out, on the device, within the KV budget."""
