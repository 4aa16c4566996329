"""Measurements of speed. Machines drift, so what `jkv.bench` compares takes turns within one run.

versus.py     `python -m jkv.bench`: jkv beside transformers' `generate`
policies.py   `python -m jkv.bench --policies`: what each policy costs, beside the full cache
gpu.py        `python -m jkv.benchmark.gpu`: everything there is to measure on one GPU, with the modules below
gpu_ops.py    each op against its reference; bandwidth of a copy; decode attention alone
gpu_decode.py tokens/s of the decode program
gpu_rival.py  tokens/s of transformers, in a process of its own
record.py     the JSON file of such a measurement, which another call continues
r1.py         the models that are measured
"""
