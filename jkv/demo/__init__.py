"""The demo: a task that needs memory, and two small models trained on it. README.md describes both."""
