"""What `python -m jkv.plan` does: compile a run's programs for a TPU that isn't here, and read their memory off them.

chips.py      TPU generations, libtpu's environment, the devices of a topology
models.py     configs of models, without their weights
compile.py    a run's prefill and decode programs, compiled from shapes
hlo.py        the text of a compiled program: copies of the KV buffer, collectives, kernels
step_bytes.py bytes that a decode step has to move: the roofline
report.py     the plan: compile, search the largest batch, show the figures
dry_run.py    `python -m jkv.sweep --dry-run`: the size of every run of a sweep

JAX reads JAX_PLATFORMS when it is imported. libtpu, the TPU's compiler, reads its environment variables when it is
loaded, which is when JAX first looks for devices. `chips.prepare` sets them all and has to be called before, so
chips.py and dry_run.py import what they need of JAX inside their functions.
"""
