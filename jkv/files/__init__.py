"""Files in and out: what ships with jkv, where a model is, small tensor files, writing whole or not at all."""
