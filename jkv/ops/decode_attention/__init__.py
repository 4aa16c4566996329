from jkv.ops.decode_attention.api import attention_weights as attention_weights
from jkv.ops.decode_attention.api import decode_attention as decode_attention
