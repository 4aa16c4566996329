"""Several devices and several hosts: meshes, where weights lie on them, and the processes that share a run."""
