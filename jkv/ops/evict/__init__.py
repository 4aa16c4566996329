from jkv.ops.evict.api import compact as compact
