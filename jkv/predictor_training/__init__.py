"""`python -m jkv.train_predictor`: learn how much each thinking token matters to the answer (DynTS, arXiv:2601.18383).

stages.py   the three stages from a configuration to a predictor: traces, labels, training
traces.py   completions with the full cache that are right and hold one thought
labels.py   the attention that each token of a trace receives from later ones
store.py    labels and hidden states on disk, a file a trace
targets.py  labels scaled for the loss, and the losses
fit.py      optimizer, batches, the training step
training.py the training loop, its checkpoints and its log
metrics.py  rank correlation with the labels, and overlap with their top
progress.py the progress bar of a stage
pictures.py pictures of the loss and of one trace

The configuration is in jkv/config/train_predictor.py, the predictor itself in jkv/models/predictor.py.
"""
