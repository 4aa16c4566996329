from jkv.ops.select.api import select as select
