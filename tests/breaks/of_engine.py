"""Breaks of engine and distributed."""

from tests.breaks.spec import Break

_ORACLE = "test_oracle::test_kept_positions_and_tokens_equal_the_oracle"
_LONG = "test_oracle::test_prompts_longer_than_the_budget_equal_the_oracle"
_KEPT = "test_properties::test_never_more_than_the_budget_and_exactly_what_the_rule_keeps"
_NOTHING_LEFT = "test_properties::test_nothing_survives_from_one_request_to_the_next"

ENGINE = (
    Break(
        "retain-off-by-one",
        "engine",
        (
            (
                "length = jnp.where(rows, setup.rule.retain, cache.length)",
                "length = jnp.where(rows, setup.rule.retain - 1, cache.length)",
            ),
            (
                "length = jnp.where(rows, program.rule.retain, cache.length)",
                "length = jnp.where(rows, program.rule.retain - 1, cache.length)",
            ),
        ),
        (_KEPT + "[window-bulk-shared]",),
    ),
    Break(
        "policy-state-stays-when-slots-move",
        "engine",
        (('policy=jax.tree.map(<<move>>, <<changed>>["policy"])', 'policy=<<changed>>["policy"]'),),
        ("test_engine::test_what_a_policy_asks_for_follows_its_slots[24]",),
    ),
    Break(
        "token-ids-stay-when-slots-move",
        "engine",
        (
            (
                "slot_tokens=None if state.slot_tokens is None else <<move>>(state.slot_tokens)",
                "slot_tokens=state.slot_tokens",
            ),
        ),
        ("test_engine::test_what_a_policy_asks_for_follows_its_slots[24]",),
    ),
    Break(
        "position-starts-anew-at-an-eviction",
        "engine",
        (
            (
                "        evictions=state.evictions + rows.astype(jnp.int32),\n    )",
                "        evictions=state.evictions + rows.astype(jnp.int32),\n"
                "        position=jnp.where(rows, length, state.position),\n    )",
            ),
        ),
        ("test_engine::test_evictions_of_a_trace_are_what_each_rule_says",),
    ),
    Break(
        "evictions-not-counted",
        "engine",
        (("evictions=state.evictions + evicted.astype(jnp.int32)", "evictions=state.evictions"),),
        (_KEPT + "[random-one-out-head]",),
    ),
    Break(
        "refilled-row-keeps-the-old-policy-state",
        "engine",
        (
            (
                "batch = jax.tree.map(put, batch, metadata)",
                "batch = dataclasses.replace(jax.tree.map(put, batch, metadata), policy=state.policy)",
            ),
            (
                "batch = jax.tree.map(put, batch, books)",
                "batch = dataclasses.replace(jax.tree.map(put, batch, books), policy=state.policy)",
            ),
        ),
        (_NOTHING_LEFT + "[dynts-bulk-shared]",),
    ),
    Break(
        "request-key-without-the-sample",
        "engine",
        (('f"{seed}\\0{problem_id}\\0{sample}"', 'f"{seed}\\0{problem_id}"'),),
        ("test_engine::test_samples_of_a_problem_differ | test_contract::test_samples",),
    ),
    Break(
        "request-key-without-the-seed",
        "engine",
        (('f"{seed}\\0{problem_id}\\0{sample}"', 'f"{problem_id}\\0{sample}"'),),
        (_LONG + "[random-head-bulk]",),
    ),
    Break(
        "every-token-drawn-with-the-same-key",
        "engine",
        (("row_keys(state.key, SAMPLING, state.position + 1)", "row_keys(state.key, SAMPLING, 0 * state.position)"),),
        ("test_contract::test_samples",),
    ),
    Break(
        "evictions-draw-from-the-samplers-stream",
        "engine",
        (("SAMPLING, EVICTION = 0, 1", "SAMPLING, EVICTION = 1, 0"),),
        (_LONG + "[random-head-bulk]",),
    ),
    Break(
        "prefill-bucket-too-small",
        "engine",
        (("if size >= length)", "if size >= length - 1)"),),
        ("test_engine::test_every_prompt_fits_its_bucket | " + _KEPT + "[window-bulk-shared]",),
    ),
    Break(
        "first-token-from-the-last-but-one",
        "engine",
        (
            (
                "dynamic_slice_in_dim(hidden, length - 1, 1, axis=1)",
                "dynamic_slice_in_dim(hidden, length - 2, 1, axis=1)",
            ),
        ),
        ("test_parity::test_logits_and_200_greedy_tokens_equal_transformers[llama3-g4]",),
    ),
    Break(
        "end-of-sequence-ignored",
        "engine",
        (("ended |= token == eos", "ended |= token == -7"),),
        ("test_engine::test_eos_ends_a_row_and_the_next_request_takes_it",),
    ),
    Break(
        "one-token-too-many",
        "engine",
        (("ended = generated >= state.limit", "ended = generated > state.limit"),),
        ("test_engine::test_long_run_with_refills_is_one_compilation_and_exact_bytes",),
    ),
    Break(
        "end-of-sequence-reported-as-cut-off",
        "engine",
        (('finish = "eos" if row.tokens[-1] in', 'finish = "length" if row.tokens[-1] in'),),
        ("test_engine::test_eos_ends_a_row_and_the_next_request_takes_it",),
    ),
    Break(
        "query-ring-turned-by-one",
        "engine",
        (("self.position % queries.shape[1], q)", "(self.position + 1) % queries.shape[1], q)"),),
        (_LONG + "[rkv-shared-bulk]",),
    ),
    Break(
        "ring-filled-in-the-prompts-order",
        "engine",
        (("recent = q[0][jnp.clip(position, 0)]", "recent = q[0][jnp.clip(position - 1, 0)]"),),
        (_ORACLE + "[expected_attention-head-one-out-llama3-g4]",),
    ),
    Break(
        "newest-of-equals-is-the-victim",
        "engine",
        (("(a[1] <= b[1]))", "(a[1] >= b[1]))"),),
        ("test_base::test_select_and_victim_follow_the_tie_rule",),
    ),
    Break(
        "protection-forgotten",
        "engine",
        (
            (
                "scores = jnp.where(slots.protected, jnp.inf, scores)",
                "scores = jnp.where(slots.protected, scores, scores)",
            ),
        ),
        ("test_engine::test_evictions_of_a_trace_are_what_each_rule_says",),
    ),
    Break(
        "dead-slots-stay-before-live-ones",
        "engine",
        (("return jnp.where(slots.occupied[:, None, None, :], scores, -jnp.inf)", "return scores"),),
        ("test_base::test_dead_slots_are_never_kept_before_live_ones",),
    ),
    Break(
        "nan-is-the-highest-score",
        "engine",
        (("jnp.where(jnp.isnan(scores), -_HIGHEST,", "jnp.where(jnp.isnan(scores), _HIGHEST,"),),
        ("test_base::test_infinite_and_undefined_scores_have_their_place",),
    ),
    Break(
        "shared-keep-set-follows-the-first-head",
        "engine",
        (("scores = jnp.mean(scores, axis=(1, 2), keepdims=True)", "scores = scores[:, :1, :1]"),),
        ("test_base::test_scores_per_head_are_averaged_when_the_keep_set_is_shared",),
    ),
    Break(
        "chunk-tokens-do-not-see-themselves",
        "engine",
        (("<= (self.length + token)[:, None]", "< (self.length + token)[:, None]"),),
        (_LONG + "[rkv-shared-bulk]",),
    ),
    Break(
        "slots-in-use-counted-one-too-many",
        "engine",
        (("state.slot_steps + jnp.where(active, length, 0)", "state.slot_steps + jnp.where(active, length + 1, 0)"),),
        ("test_contract::test_mean_slots | test_contract::test_summary",),
    ),
    Break(
        "top-k-before-top-p",
        "engine",
        (("p = jnp.exp(best)\n", "p = jax.nn.softmax(best, axis=-1)\n"),),
        ("test_sampling::test_top_p_comes_before_top_k",),
    ),
    Break(
        "temperature-ignored",
        "engine",
        (("logits.astype(jnp.float32) / self.temperature", "logits.astype(jnp.float32)"),),
        ("test_sampling::test_20000_draws_follow_the_exact_distribution",),
    ),
    Break(
        "nucleus-one-token-short",
        "engine",
        (("return bits >= high[:, None]", "return bits > high[:, None]"),),
        ("test_sampling::test_equal_tokens_at_the_edge_of_top_p_stand_together",),
    ),
    Break(
        "a-traced-eviction-lists-the-new-token",
        "engine",
        (
            (
                "kept, newest = self._kept(index, without=newest), newest - 1",
                "kept, newest = self._kept(index), newest - 1",
            ),
        ),
        ("test_engine::test_evictions_of_a_trace_are_what_each_rule_says",),
    ),
    Break(
        "a-run-left-half-way-goes-on",
        "engine",
        (
            (
                "self.state = dataclasses.replace(self.state, active=idle)",
                "self.state = dataclasses.replace(self.state)",
            ),
        ),
        ("test_engine::test_a_run_left_half_way_leaves_no_row_at_work",),
    ),
    Break(
        "int8-buffer-counted-without-scales",
        "engine",
        (
            (
                "return sum(x.size * x.dtype.itemsize for x in buffers)",
                "return sum(x.size * x.dtype.itemsize for x in buffers if x.shape[2] > 1)",
            ),
        ),
        ("test_int8_kv::test_tokens_and_kept_positions_are_those_of_a_rounded_cache",),
    ),
)

DISTRIBUTED = (
    Break(
        "hosts-shares-overlap",
        "distributed",
        (("work[self.replica :: self.replicas]", "work[self.replica :]"),),
        ("test_hosts::test_shares_are_all_of_the_work_once",),
    ),
    Break(
        "every-host-leads",
        "distributed",
        (("return self.replica * self.together", "return self.index"),),
        ("test_hosts::test_a_hosts_part_of_a_mesh",),
    ),
    Break(
        "mesh-not-checked-against-the-model",
        "distributed",
        (("if size % model:", "if False:"),),
        ("test_mesh::test_what_does_not_divide_is_said_with_its_numbers",),
    ),
    Break(
        "mesh-not-checked-against-the-rows",
        "distributed",
        (("if rows % data:", "if False:"),),
        ("test_mesh::test_what_does_not_divide_is_said_with_its_numbers",),
    ),
    Break(
        "rows-per-host-not-divided",
        "distributed",
        (("return batch_size // hosts.replicas", "return batch_size"),),
        ("test_hosts::test_rows_and_place",),
    ),
    Break(
        "auto-mesh-forgets-the-memory",
        "distributed",
        (("too_large = usable is not None and held > _USABLE * usable", "too_large = False"),),
        ("test_hosts::test_auto_crosses_hosts_only_where_it_must",),
    ),
    Break(
        "tied-head-counted-twice",
        "distributed",
        (("* (1 if c.tied_head else 2)", "* 2"),),
        ("test_auto_mesh::test_weights_are_counted_as_the_model_has_them | test_auto_mesh::test_published_models",),
    ),
    Break(
        "only-one-shard-writes-the-prompt",
        "distributed",
        (("here = row - jax.lax.axis_index(DATA) * rows", "here = row - 0 * jax.lax.axis_index(DATA) * rows"),),
        ("test_mesh::test_the_same_tokens_and_kept_positions",),
    ),
)

BREAKS = (*ENGINE, *DISTRIBUTED)
