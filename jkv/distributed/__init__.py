"""Several chips and several hosts: meshes, where weights live on them, and the processes that share a run."""
