"""The operations on the KV buffer, one folder each: api (dispatch), reference, one file per backend.

Import them from their folders, `from jkv.ops.insert import insert`: a function here would hide the folder of its name.
"""
