from jkv.ops.key_similarity.api import key_similarity as key_similarity
