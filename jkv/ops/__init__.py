"""The array operations on the KV buffer, one folder each, and the modules that they share. See README.md here.

Import an operation from its folder: `from jkv.ops.insert import insert`. This file binds no functions, because a
function `insert` here would hide the folder `insert`.
"""
