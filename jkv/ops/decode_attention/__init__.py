from jkv.ops.decode_attention.api import DecodeAttention as DecodeAttention
from jkv.ops.decode_attention.api import decode_attention as decode_attention
