"""Breaks of ops, models and converters."""

from tests.breaks.spec import Break

OPS = (
    Break(
        "causal-mask-missing",
        "ops",
        (("dot_product_attention(q, k, v, is_causal=True)", "dot_product_attention(q, k, v, is_causal=False)"),),
        ("test_prefill_attention::test_no_token_looks_ahead[xla]",),
    ),
    Break(
        "splash-kernel-not-scaled",
        "ops",
        (("(q.astype(jnp.float32) * dim**-0.5).astype(q.dtype)", "q"),),
        ("test_prefill_attention::test_matches_the_reference[pallas-5-7-64-float32]",),
    ),
    Break(
        "attention-scale-is-not-root",
        "ops",
        (("scale = dim**-0.5 if scale is None else scale", "scale = dim**-1.0 if scale is None else scale"),),
        ("test_parity::test_logits_and_200_greedy_tokens_equal_transformers[llama3-g4]",),
    ),
    Break(
        "query-heads-read-the-wrong-kv-head",
        "ops",
        (
            (
                "heads // kv_heads, dim) * jnp.float32(scale)\n        if isinstance(k, Int8KV)",
                "heads // kv_heads, dim)[:, ::-1] * jnp.float32(scale)\n        if isinstance(k, Int8KV)",
            ),
        ),
        ("test_decode_attention::test_matches_the_definition",),
    ),
    Break(
        "query-sees-one-slot-too-many",
        "ops",
        (
            (
                "return (slot[None, :] < length[:, None])[:, None, None, :]",
                "return (slot[None, :] <= length[:, None])[:, None, None, :]",
            ),
        ),
        ("test_decode_attention::test_matches_the_definition",),
    ),
    Break(
        "online-softmax-forgets-to-shrink",
        "ops",
        (("total = total * shrink + row_sum(weight)", "total = total + row_sum(weight)"),),
        ("test_decode_attention::test_int8_matches_the_reference_of_what_it_stands_for",),
    ),
    Break(
        "overlapping-block-counts-twice",
        "ops",
        (("dtype=jnp.int32) >= i * block", "dtype=jnp.int32) >= 0"),),
        ("test_decode_attention::test_int8_matches_the_reference_of_what_it_stands_for",),
    ),
    Break(
        "int8-scale-dropped",
        "ops",
        (("(self.values.astype(jnp.float32) * jnp.swapaxes(self.scale, 2, 3))", "self.values.astype(jnp.float32)"),),
        ("test_quantized_kv::test_each_number_is_at_most_half_a_step_off",),
    ),
    Break(
        "int8-bytes-without-scales",
        "ops",
        (("else head_dim + SCALE_BYTES", "else head_dim"),),
        ("test_quantized_kv::test_bytes_are_counted_with_scales",),
    ),
    Break(
        "key-in-the-next-slot",
        "ops",
        (("jnp.where(slot < 0, slots, slot)", "jnp.where(slot < 0, slots, slot + 1)"),),
        ("test_insert::test_matches_the_reference_and_leaves_the_rest",),
    ),
    Break(
        "values-stay-when-keys-move",
        "ops",
        (("return next_row(b), _move(k, b, kept), _move(v, b, kept)", "return next_row(b), _move(k, b, kept), v"),),
        ("test_evict::test_matches_the_reference_and_a_hand_count",),
    ),
    Break(
        "int8-scales-stay-when-integers-move",
        "ops",
        (
            (
                "(b, head, kept) if axis == 2 else (b, head, zero, kept)",
                "(b, head, kept) if axis == 2 else (b, head, zero, jnp.arange(kept.shape[1])[None])",
            ),
        ),
        ("test_evict::test_every_bit_of_int8_arrives_and_scales_go_along",),
    ),
    Break(
        "tpu-compaction-loses-a-byte",
        "ops",
        (("for shift in (0, 8, 16, 24) if block_ref.dtype", "for shift in (8, 16, 24) if block_ref.dtype"),),
        ("test_evict::test_every_bit_arrives[300-299-64-float32-True-evicting2-pallas_tpu]",),
    ),
    Break(
        "kept-slots-not-ascending",
        "ops",
        (("jnp.int32(retain))[..., :retain]", "jnp.int32(retain))[..., :retain][..., ::-1]"),),
        ("test_select::test_is_what_a_sort_says",),
    ),
    Break(
        "among-equal-scores-the-oldest-stays",
        "ops",
        (("((in_order(score), 32), (position, 32),", "((in_order(score), 32), (-position, 32),"),),
        ("test_select::test_is_what_a_sort_says",),
    ),
    Break(
        "tpu-select-keeps-the-oldest-of-equals",
        "ops",
        (("(position_ref[...], 32)", "(-position_ref[...], 32)"),),
        ("test_select::test_is_what_a_sort_says",),
    ),
    Break(
        "minus-zero-below-zero",
        "ops",
        (("jnp.where(zero, jnp.float32(0), scores)", "scores"),),
        ("test_select::test_ties_infinities_and_zeros_in_any_order",),
    ),
    Break(
        "a-key-resembles-itself",
        "ops",
        (("jnp.where(itself[None, None], 0.0, similarity)", "similarity"),),
        ("test_key_similarity::test_matches_the_reference[xla-lengths4-2-127-64-float32]",),
    ),
    Break(
        "newest-of-a-cluster-not-spared",
        "ops",
        (("jnp.where(newest, 0.0, similarity)", "similarity"),),
        ("test_score_parts::test_redundancy_is_what_three_loops_say",),
    ),
    Break(
        "last-group-of-rows-too-small",
        "ops",
        (("edges[-2] -= MIN_ROWS", "edges[-2] -= 0"),),
        ("test_rows::test_projections_of_more_rows_than_a_group_keep_each_rows_bits",),
    ),
    Break(
        "feed-forward-whole-on-every-device",
        "ops",
        (('"F": MODEL, "V": MODEL}', '"F": DATA, "V": MODEL}'),),
        ("test_mesh::test_every_weight_has_its_place",),
    ),
)

MODELS = (
    Break(
        "rope-turns-the-other-way",
        "models",
        (
            (
                "first * cos - second * sin, second * cos + first * sin",
                "first * cos + second * sin, second * cos - first * sin",
            ),
        ),
        ("test_parity::test_logits_and_back[qwen2]",),
    ),
    Break(
        "rope-halves-swapped",
        "models",
        (("first, second = jnp.split(x.astype", "second, first = jnp.split(x.astype"),),
        ("test_parity::test_logits_and_back[qwen2]",),
    ),
    Break(
        "yarn-factor-ignored",
        "models",
        (("return jnp.cos(angle) * factor, jnp.sin(angle) * factor", "return jnp.cos(angle), jnp.sin(angle)"),),
        ("test_parity::test_logits_and_back[qwen2-tied-yarn]",),
    ),
    Break(
        "llama3-blend-reversed",
        "models",
        (
            (
                "(1 - blend) * plain / scaling.factor + blend * plain",
                "blend * plain / scaling.factor + (1 - blend) * plain",
            ),
        ),
        ("test_rope::test_published_llama3_scaling_to_float32_precision",),
    ),
    Break(
        "projection-bias-dropped",
        "models",
        (("return out if self.bias is None else out + <<like>>(self.bias[...], out)", "return out"),),
        ("test_parity::test_logits_and_back[qwen2]",),
    ),
    Break(
        "keys-normed-with-the-queries-scale",
        "models",
        (("self.q_norm(q), self.k_norm(k)", "self.q_norm(q), self.q_norm(k)"),),
        ("test_parity::test_logits_and_back[qwen3]",),
    ),
    Break(
        "gelu-instead-of-silu",
        "models",
        (("jax.nn.silu(self.gate(x))", "jax.nn.gelu(self.gate(x))"),),
        ("test_parity::test_logits_and_back[qwen2]",),
    ),
    Break(
        "residual-of-the-feed-forward-dropped",
        "models",
        (("return x + self.mlp(self.mlp_norm(x)), ", "return self.mlp(self.mlp_norm(x)), "),),
        ("test_parity::test_logits_and_back[qwen2]",),
    ),
    Break(
        "kv-bytes-of-keys-alone",
        "models",
        (("self.n_kv_heads * slots * 2 * slot_bytes(", "self.n_kv_heads * slots * slot_bytes("),),
        ("test_engine::test_long_run_with_refills_is_one_compilation_and_exact_bytes",),
    ),
    Break(
        "int8-embedding-without-its-scale",
        "models",
        (("(table.qvalue[tokens].astype(jnp.float32) * table.scale[tokens])", "table.qvalue[tokens]"),),
        ("test_quantized::test_rows_of_an_embedding",),
    ),
    Break(
        "int8-scale-along-the-wrong-axis",
        "models",
        (('"NHD": "D",', '"NHD": "NH",'),),
        ("test_quantized::test_contractions_are_those_of_the_dequantised_weight",),
    ),
    Break(
        "queries-measured-after-rope",
        "models",
        (("rotate(q.astype(jnp.float32), *self.back)", "q.astype(jnp.float32)"),),
        ("test_calibrate::test_statistics_are_those_of_transformers",),
    ),
    Break(
        "predictor-without-its-last-softplus",
        "models",
        (("jax.nn.softplus(row_dot(x, last[:, 0]))[:rows]", "row_dot(x, last[:, 0])[:rows]"),),
        ("test_predictor::test_a_predictor_among_the_models_tensors_is_set_apart",),
    ),
)

CONVERTERS = (
    Break(
        "weights-not-transposed",
        "converters",
        (
            (
                "split.transpose([letters.index(letter) for letter in wanted])",
                "split.reshape([size[letter] for letter in wanted])",
            ),
        ),
        ("test_parity::test_logits_and_back[qwen2]",),
    ),
    Break(
        "a-missing-tensor-is-accepted",
        "converters",
        (("missing = [name for name in table if name not in stored]", "missing = []"),),
        ("test_hf::test_missing_unknown_and_misshapen_are_all_listed",),
    ),
    Break(
        "an-unknown-tensor-is-accepted",
        "converters",
        (("if name not in table and not _ignorable(name, config)]", "if False]"),),
        ("test_hf::test_a_layer_too_many_is_unknown",),
    ),
    Break(
        "weights-that-are-nan-are-accepted",
        "converters",
        (
            (
                "return not any(np.any((<<bits>>[i : i + ",
                "return True or not any(np.any((<<bits>>[i : i + ",
            ),
        ),
        ("test_hf::test_weights_that_are_not_finite",),
    ),
    Break(
        "tied-head-that-differs-is-accepted",
        "converters",
        (("if config.tied_head and HEAD in stored:", "if False:"),),
        ("test_hf::test_tied_head_must_equal_the_embedding",),
    ),
    Break(
        "tied-head-read-as-untied",
        "converters",
        (('tied_head=fields.boolean("tie_word_embeddings", False)', "tied_head=False"),),
        ("test_parity::test_logits_and_back[qwen2-tied-yarn]",),
    ),
    Break(
        "qkv-bias-of-qwen2-not-read",
        "converters",
        (("qkv_bias=qwen2 or attention_bias", "qkv_bias=attention_bias"),),
        ("test_parity::test_logits_and_back[qwen2]",),
    ),
    Break(
        "end-of-sequence-of-the-generation-config-ignored",
        "converters",
        (('if generation.present("eos_token_id"):', "if False:"),),
        ("test_config::test_end_of_sequence_ids",),
    ),
    Break(
        "sliding-window-is-accepted",
        "converters",
        (('if fields.present("use_sliding_window") and fields.boolean', "if False and fields.boolean"),),
        ("test_config::test_refused",),
    ),
    Break(
        "checksums-not-compared",
        "converters",
        (("if found.get(name, value) != value]", "if False]"),),
        ("test_orbax::test_damaged_weights",),
    ),
    Break(
        "stale-shards-stay",
        "converters",
        (("if old.name not in fresh:", "if False:"),),
        (
            "test_hf::TestShards::test_writing_again_leaves_no_stale_weights"
            " | test_hf::test_writing_again_leaves_no_stale_weights",
        ),
    ),
    Break(
        "yarn-mscale-without-its-weight",
        "converters",
        (("0.1 * weight * math.log(factor) + 1.0", "0.1 * math.log(factor) + 1.0"),),
        ("test_parity::test_logits_and_back[qwen2-yarn-mscale]",),
    ),
)

BREAKS = (*OPS, *MODELS, *CONVERTERS)
