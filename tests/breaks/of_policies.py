"""Breaks of policies."""

from tests.breaks.spec import Break

_ORACLE = "test_oracle::test_kept_positions_and_tokens_equal_the_oracle"
_LONG = "test_oracle::test_prompts_longer_than_the_budget_equal_the_oracle"
_KEPT = "test_properties::test_never_more_than_the_budget_and_exactly_what_the_rule_keeps"
_NOTHING_LEFT = "test_properties::test_nothing_survives_from_one_request_to_the_next"

BREAKS = (
    Break(
        "window-off-by-one",
        "policies",
        (
            (
                "safe = position > (self.newest - self.rule.window)[:",
                "safe = position > (self.newest - self.rule.window + 1)[:",
            ),
        ),
        (_KEPT + "[dynts-bulk-shared]",),
    ),
    Break(
        "sinks-unprotected",
        "policies",
        (("safe |= position < self.rule.sinks", "safe |= position < 0"),),
        ("test_engine::test_evictions_of_a_trace_are_what_each_rule_says",),
    ),
    Break(
        "prompt-not-pinned",
        "policies",
        (("if self.rule.pin_prompt:\n            safe |=", "if False:\n            safe |="),),
        (_KEPT + "[dynts-bulk-shared]",),
    ),
    Break(
        "ratio-of-the-whole-budget",
        "policies",
        (("window + math.floor(ratio * max(budget - window, 0))", "window + math.floor(ratio * budget)"),),
        ("test_base::test_the_papers_ratio",),
    ),
    Break(
        "one-out-also-of-two",
        "policies",
        (("return self.retain == self.budget - 1", "return self.retain >= self.budget - 8"),),
        (_KEPT + "[window-bulk-shared]",),
    ),
    Break(
        "a-prompt-that-leaves-nothing-to-evict-is-accepted",
        "policies",
        (("if self.retain < self.budget and protected > self.retain:", "if False:"),),
        ("test_base::test_prompts_that_cannot_be_protected_are_refused",),
    ),
    Break(
        "h2o-takes-the-groups-maximum",
        "policies",
        (
            (
                'return state + jnp.sum(received(new, "mean"), axis=1)',
                'return state + jnp.sum(received(new, "max"), axis=1)',
            ),
        ),
        (_ORACLE + "[h2o-head-bulk-qwen2-g7]",),
    ),
    Break(
        "h2o-window-is-all-that-is-kept",
        "policies",
        (("return retain // 2", "return retain"),),
        ("test_score_parts::test_half_of_what_h2o_keeps_is_its_window",),
    ),
    Break(
        "lazy-remembers-the-last-gap-not-the-longest",
        "policies",
        (("jnp.maximum(longest, now - last), longest)", "now - last, longest)"),),
        (_LONG + "[lazy-head-bulk]",),
    ),
    Break(
        "pool-shifted-by-one",
        "policies",
        (("((width - 1) // 2, width // 2))", "((width - 1) // 2 + 1, width // 2 - 1))"),),
        ("test_score_parts::test_pool_goes_over_neighbours_in_order_of_position",),
    ),
    Break(
        "rkv-rewards-redundancy",
        "policies",
        (("self.lam * importance - (1 - self.lam) * alike", "self.lam * importance + (1 - self.lam) * alike"),),
        (_LONG + "[rkv-shared-bulk]",),
    ),
    Break(
        "gkv-adds-up-what-it-saw",
        "policies",
        (("jnp.maximum(self.decay * state, seen)", "self.decay * state + seen"),),
        ("test_score_parts::test_gkv_remembers_the_larger_of_what_it_saw_and_sees",),
    ),
    Break(
        "random-draws-alike-for-all-heads",
        "policies",
        (("jax.random.fold_in(jax.random.fold_in(key, keep_set), position)", "jax.random.fold_in(key, position)"),),
        ("test_base::test_random_draws_anew_for_each_layer_and_head",),
    ),
    Break(
        "random-draws-by-slot",
        "policies",
        (
            (
                "(slots.rng, keep_sets, slots.positions)",
                "(slots.rng, keep_sets, jnp.cumsum(jnp.ones_like(slots.positions), axis=-1))",
            ),
        ),
        ("test_base::test_random_draws_by_position_not_by_slot",),
    ),
    Break(
        "keydiff-keeps-what-is-alike",
        "policies",
        (
            (
                'return -jnp.einsum("BKSH,BKH->BKS", unit, _normalised(anchor))',
                'return jnp.einsum("BKSH,BKH->BKS", unit, _normalised(anchor))',
            ),
        ),
        (_ORACLE + "[keydiff-shared-bulk-qwen3-g1]",),
    ),
    Break(
        "expected-attention-without-covariance",
        "policies",
        (("k, covariance), k) / (2 * h)", "k, covariance), k) * 0"),),
        (_ORACLE + "[expected_attention-head-one-out-llama3-g4]",),
    ),
    Break(
        "dynts-evicts-the-answer",
        "policies",
        (("score = jnp.where(past & written, jnp.inf, score)", "score = jnp.where(past & written, score, score)"),),
        (_ORACLE + "[dynts-bottom-head-bulk-qwen2-g7]",),
    ),
    Break(
        "vase-spares-half-the-budget-for-wide-values",
        "policies",
        (("slots.rule.budget // 4, slots)", "slots.rule.budget // 2, slots)"),),
        (_ORACLE + "[vase-attnv-shared-one-out-qwen2-g7]",),
    ),
    Break(
        "sepllm-keeps-separators-last",
        "policies",
        (("jnp.where(separator, 0.0, _OTHERS)", "jnp.where(separator, _OTHERS, 0.0)"),),
        (_ORACLE + "[sepllm-shared-bulk-llama3-g4]",),
    ),
    Break(
        "an-unknown-option-is-ignored",
        "policies",
        (("if option not in known:\n", "if option not in known:\n            continue\n        if False:\n"),),
        ("test_own_policy::test_options",),
    ),
    Break(
        "a-policys-code-may-change",
        "policies",
        (("return sha.hexdigest()[:16]\n\n\ndef _plain", 'return "same"\n\n\ndef _plain'),),
        ("test_api::test_a_sweep_over_a_policy_of_ones_own",),
    ),
)
