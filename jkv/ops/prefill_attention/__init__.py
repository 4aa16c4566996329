from jkv.ops.prefill_attention.api import prefill_attention as prefill_attention
