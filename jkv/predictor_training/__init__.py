"""How much each thinking token matters: traces, labels, and the training of the predictor (DynTS, arXiv:2601.18383).

traces.py   completions of the full cache that are right and hold one thought
labels.py   attention that each token receives later, block by block
store.py    labels and hidden states on disk, a file a trace
targets.py  labels scaled for the loss, and the losses
fit.py      optimizer, batches, the training step
training.py the training loop, its checkpoints and its log
metrics.py  rank correlation and overlap with the true top
pictures.py the loss, and one trace
"""
