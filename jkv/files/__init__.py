"""Files in and out: those that ship with jkv, where a model is, a run's files, small tensor files, whole writes."""
