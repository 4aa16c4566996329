"""Breaks of report, planning, predictor_training, api, demo and benchmark."""

from tests.breaks.spec import Break

REPORT = (
    Break(
        "pass-at-k-with-replacement",
        "report",
        (("1 - math.comb(wrong, k) / math.comb(n, k)", "1 - (wrong / n) ** k"),),
        ("test_statistics::test_pass_at_k_is_unbiased",),
    ),
    Break(
        "bootstrap-not-clustered",
        "report",
        (
            (
                "    means = np.array([np.mean(samples) for samples in correct])\n",
                "    means = np.array([x for samples in correct for x in samples])\n",
            ),
        ),
        ("test_statistics::test_interval_equals_scipys_percentile_bootstrap_of_clusters",),
    ),
    Break(
        "intervals-of-90-percent",
        "report",
        (("np.percentile(resampled, [2.5, 97.5])", "np.percentile(resampled, [5, 95])"),),
        ("test_statistics::test_the_interval_covers_the_truth_as_often_as_it_says",),
    ),
    Break(
        "paired-difference-the-wrong-way-round",
        "report",
        (
            (
                "np.mean(a) - np.mean(b) for a, b in zip(ours, theirs, strict=True)",
                "np.mean(b) - np.mean(a) for a, b in zip(ours, theirs, strict=True)",
            ),
        ),
        ("test_results::test_a_gap_that_is_the_same_everywhere_is_certain",),
    ),
    Break(
        "differences-not-paired",
        "report",
        (
            (
                "<<a>>.append([<<b>>.correct[id] for id in <<both>>])\n    if len(",
                "<<a>>.append([<<b>>.correct[id] for id in reversed(<<both>>)])\n    if len(",
            ),
            (
                "theirs.append([b.correct[id] for id in both])",
                "theirs.append([b.correct[id] for id in reversed(both)])",
            ),
        ),
        ("test_results::test_pairs_are_of_the_same_problem | test_results::test_files",),
    ),
    Break(
        "no-answer-may-win-the-vote",
        "report",
        (("collections.Counter(answer for answer in given if answer is not None)", "collections.Counter(given)"),),
        ("test_statistics::test_majority",),
    ),
    Break(
        "ungraded-samples-count-as-wrong",
        "report",
        (
            (
                'graded = [row for row in rows if row["correct"] is not None]',
                'graded = [{**row, "correct": bool(row["correct"])} for row in rows]',
            ),
        ),
        ("test_accuracy::test_ungraded_samples_are_left_out",),
    ),
    Break(
        "the-average-weighs-tasks-by-their-size",
        "report",
        (("np.mean([values.mean() for values in tasks])", "np.mean(np.concatenate(tasks))"),),
        ("test_results::test_the_average_weighs_tasks_equally_and_waits_for_all",),
    ),
    Break(
        "compared-with-random-at-another-budget",
        "report",
        (("is_baseline(other) and other.budget == result.budget", "is_baseline(other)"),),
        ("test_results::test_compared_is_with_pinned_random_at_the_same_budget | test_results::test_files",),
    ),
    Break(
        "random-unpinned-is-the-baseline",
        "report",
        (('s["policy"] == "random" and bool(s["pin_prompt"])', 's["policy"] == "random"'),),
        ("test_results::test_compared_is_with_pinned_random_at_the_same_budget | test_results::test_files",),
    ),
    Break(
        "a-column-of-the-results-is-missing",
        "report",
        (
            (
                '"maj_at_k_low", "maj_at_k_high", "truncation_rate", "mean_tokens",',
                '"maj_at_k_low", "maj_at_k_high", "mean_tokens",',
            ),
        ),
        ("test_results::test_columns | test_results::test_files",),
    ),
    Break(
        "figures-carry-the-date",
        "report",
        (
            ("metadata={date: None} if date else None", "metadata=None"),
            ('format=kind, dpi=200, metadata={"Date": None} if kind == "svg" else None', "format=kind, dpi=200"),
        ),
        ("test_figure::test_the_same_results_give_the_same_bytes",),
    ),
    Break(
        "a-token-counts-as-gone-one-eviction-early",
        "report",
        (("fate[last < now.count] = GONE", "fate[last <= now.count] = GONE"),),
        ("test_history::test_fates_of_a_small_trace",),
    ),
    Break(
        "view-takes-back-what-was-dropped",
        "report",
        (("if (after & ~before).any():", "if False:"),),
        ("test_history::test_damage_is_named",),
    ),
    Break(
        "model-text-is-markup",
        "report",
        ((".translate(_UNSAFE)", ""),),
        ("test_command::test_model_text_is_data",),
    ),
    Break(
        "recall-bins-overlap",
        "report",
        (("(self.between >= low) & (self.between <= high)", "self.between >= low"),),
        ("test_probe::test_table_and_picture",),
        slow=True,
    ),
)

PLANNING = (
    Break(
        "occupancy-without-the-new-token",
        "planning",
        (("(rule.retain + 1 + rule.budget) / 2", "(rule.retain + rule.budget) / 2"),),
        ("test_plan::test_step_bytes_by_hand",),
    ),
    Break(
        "attention-of-a-policy-costs-nothing",
        "planning",
        (("* rule.budget * 4 if needs.attention else 0", "* rule.budget * 4 if False else 0"),),
        ("test_plan::test_a_policy_pays_for_what_it_asks",),
    ),
    Break(
        "copies-of-the-buffer-not-seen",
        "planning",
        (("any(math.prod(dims) >= size and", "any(math.prod(dims) > size and"),),
        ("test_hlo::test_what_makes_another_buffer_is_found",),
    ),
    Break(
        "kernels-taken-for-writing-in-place",
        "planning",
        (('if i.op == "custom-call" and "output_to_operand_aliasing" in i.rest:', 'if i.op == "custom-call":'),),
        ("test_hlo::test_what_makes_another_buffer_is_found",),
    ),
    Break(
        "dry-run-counts-one-sample-a-problem",
        "planning",
        (("count * cell.config.samples", "count"),),
        ("test_sweep::test_a_dry_run_of_local_files",),
    ),
    Break(
        "dry-run-compiles-every-task",
        "planning",
        (("figures = known.get(key) or plan(target)", "figures = plan(target)"),),
        ("test_dry_run::test_what_differs_in_its_task_alone_is_compiled_once",),
    ),
    Break(
        "largest-batch-may-not-fit",
        "planning",
        (
            (
                "for n, peak in peaks.items() if peak <= usable), default=0)",
                "for n, peak in peaks.items() if peak <= 1.2 * usable), default=0)",
            ),
        ),
        ("test_plan::test_the_largest_batch_is_found_with_few_compilations",),
    ),
)

TRAINING = (
    Break(
        "a-token-attends-to-itself",
        "predictor_training",
        (("cut(answering), later > 0)", "cut(answering), later >= 0)"),),
        ("test_labels::test_labels_are_those_of_the_whole_attention_matrix",),
    ),
    Break(
        "horizon-off-by-one",
        "predictor_training",
        (("later > self.horizon", "later >= self.horizon"),),
        ("test_labels::test_labels_are_those_of_the_whole_attention_matrix",),
    ),
    Break(
        "the-thoughts-end-counts-as-answer",
        "predictor_training",
        (
            (
                "answering = (position > think_end[:, None]) & inside",
                "answering = (position >= think_end[:, None]) & inside",
            ),
        ),
        ("test_labels::test_labels_are_those_of_the_whole_attention_matrix",),
    ),
    Break(
        "labels-of-qwen-not-scaled",
        "predictor_training",
        (("wide**self.exponent / self.exponent", "wide**self.exponent"),),
        ("test_targets::test_the_published_scalings",),
    ),
    Break(
        "band-weighs-nothing",
        "predictor_training",
        (("jnp.where(inside, jnp.float32(self.band_weight), jnp.float32(1.0))", "jnp.ones_like(target)"),),
        ("test_targets::test_the_published_scalings",),
    ),
    Break(
        "ranking-wants-the-reverse",
        "predictor_training",
        (("jax.nn.softplus(-above * (predicted", "jax.nn.softplus(above * (predicted"),),
        ("test_targets::test_ranking_is_what_loops_say",),
    ),
    Break(
        "spearman-ranks-ties-last",
        "predictor_training",
        (("(last - (counts - 1) / 2)[place]", "last.astype(float)[place]"),),
        ("test_metrics::test_spearman_is_scipys_with_ties_too",),
    ),
    Break(
        "a-problem-on-both-sides-of-the-split",
        "predictor_training",
        (
            (
                "[i for i, trace in enumerate(traces) if (trace.id in held) == side]",
                "[i for i, trace in enumerate(traces) if (ids[i % len(ids)] in held) == side]",
            ),
        ),
        ("test_traces::test_the_split_is_by_problem_and_by_seed_alone",),
    ),
    Break(
        "wrong-completions-are-learned-from",
        "predictor_training",
        (('if not row["correct"]:', "if False:"),),
        ("test_traces::test_what_is_no_trace_is_counted_by_its_reason",),
    ),
    Break(
        "every-epoch-in-the-same-order",
        "predictor_training",
        (("np.random.default_rng([self.seed, 0, epoch])", "np.random.default_rng([self.seed, 0, 0])"),),
        ("test_training::test_every_trace_is_seen_once_an_epoch",),
    ),
    Break(
        "a-resumed-training-repeats-a-step",
        "predictor_training",
        (("for step in range(done, steps):", "for step in range(max(0, done - 1), steps):"),),
        ("test_training::test_a_killed_run_goes_on_bit_for_bit[1]",),
    ),
    Break(
        "padding-is-learned-from",
        "predictor_training",
        (("error = jnp.where(valid, predicted - target, 0.0)", "error = predicted - target"),),
        ("test_targets::test_squared_error_is_weighted_and_blind_to_padding",),
    ),
)

API = (
    Break(
        "samples-in-the-order-of-their-text",
        "api",
        (("[int(part) if part.isdecimal() else part for part in", "[part for part in"),),
        ("test_api::test_a_run_is_a_sequence_of_its_samples",),
    ),
    Break(
        "a-loaded-model-takes-another-dtype",
        "api",
        (
            (
                "if <<a>>.get(name) is not None:\n                raise UserError",
                "if False:\n                raise UserError",
            ),
        ),
        ("test_api::test_what_is_refused",),
    ),
    Break(
        "scratch-directories-stay",
        "api",
        (("weakref.finalize(decoded, shutil.rmtree, scratch, ignore_errors=True)", "pass"),),
        ("test_api::test_what_is_refused",),
    ),
    Break(
        "importing-jkv-imports-jax",
        "api",
        (
            (
                "import importlib\nfrom typing import Any\n\n__version__",
                "import importlib\nfrom typing import Any\n\nimport jax\n\n__version__",
            ),
        ),
        ("test_api::test_importing_is_cheap_and_shows_what_there_is",),
    ),
)

DEMO = (
    Break(
        "differences-not-modulo-10",
        "demo",
        (("return (x - y) % 10", "return abs(x - y)"),),
        ("test_task::test_thought_is_sound",),
    ),
    Break(
        "evaluation-draws-the-training-problems",
        "demo",
        (("EVALUATION, TRAINING = 0, 1", "EVALUATION, TRAINING = 0, 0"),),
        ("test_task::test_no_block_begins_with_an_evaluation_problem | test_task::test_streams_differ",),
    ),
    Break(
        "any-text-with-the-answer-is-right",
        "demo",
        (('<<a>>.rstrip().removesuffix("<eos>").split() == self.answer.split()', "self.answer in <<a>>"),),
        ("test_task::test_grade",),
    ),
    Break(
        "training-attention-looks-ahead",
        "demo",
        (("np.where(np.tri(t, dtype=bool), np.float32(0),", "np.where(np.ones((t, t), bool), np.float32(0),"),),
        ("test_batches::test_rows_attend_like_rows_apart",),
        slow=True,
    ),
    Break(
        "filler-counts-like-work",
        "demo",
        (("[FILLER_WEIGHT if is_filler else 1.0]", "[1.0]"),),
        ("test_batches::test_encode",),
    ),
    Break(
        "think-is-a-special-token",
        "demo",
        (("special=text in SPECIAL[:4]", "special=text in SPECIAL"),),
        ("test_tokenizer::test_round_trip",),
    ),
    Break(
        "the-training-state-of-another-run-is-taken",
        "demo",
        (('if str(arrays.get("run")) != run:', "if False:"),),
        ("test_train::test_resume_of_another_run",),
        slow=True,
    ),
)

BREAKS = (*REPORT, *PLANNING, *TRAINING, *API, *DEMO)
