"""How a row of a data set becomes a prompt and a reference answer. One file a format; jkv.tasks.benchmark explains."""
