"""What `python -m jkv.plan` does: compile for a TPU that isn't here, read memory and copies off the result."""
