"""Checkpoints in and out of jkv: Hugging Face directories <-> ``jkv.models.Decoder`` <-> converted directories.

A converted directory holds the same weights in the Decoder's own layout, so that loading them takes no rearranging.

config.py    config.json <-> ModelConfig; fields.py and rope.py are parts of it
tables.py    which tensor of a Hugging Face file is which leaf of the Decoder
hf.py        Hugging Face directories; shards.py and ranges.py read and write their safetensors files
orbax_io.py  converted directories
fill.py      arrays into a Decoder
sharded.py   a leaf spread over devices, each of which reads its part
progress.py  a progress bar
files.py     JSON files
"""
