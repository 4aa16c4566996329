"""Checkpoints in and out of jkv: Hugging Face directories <-> ``jkv.models.Decoder`` <-> converted directories."""
