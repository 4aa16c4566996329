from jkv.ops.insert.api import insert as insert
