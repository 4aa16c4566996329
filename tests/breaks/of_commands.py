"""Breaks of load, config, tasks, grading and run: what stands between a command and the engine."""

from tests.breaks.spec import Break

LOAD = (
    Break(
        "a-tensor-that-is-missing-is-accepted-by-policies",
        "load",
        (
            (
                'wrong = [f"{name} is missing" for name in shapes if name not in found]',
                "wrong, shapes = [], {name: shapes[name] for name in shapes if name in found}",
            ),
        ),
        ("test_own_policy::test_gates_with_a_tensor_missing_or_too_many",),
    ),
    Break(
        "files-written-in-their-place",
        "load",
        (
            ("scratch = path.with_name(SCRATCH.format(path.name))", "scratch = path"),
            ('temporary = self.path / f".{name}.new"', "temporary = self.path / name"),
        ),
        ("test_output::test_full_disk_never_leaves_half_a_json_file",),
    ),
    Break(
        "tokenizer-of-another-model-is-accepted",
        "load",
        (("if largest >= vocab_size:", "if False:"),),
        ("test_load::test_tokenizer_of_another_model",),
    ),
    Break(
        "code-in-a-checkpoint-is-run",
        "load",
        (("trust_remote_code=False", "trust_remote_code=True"),),
        ("test_load::test_code_in_a_checkpoint_is_not_run",),
    ),
    Break(
        "pickles-are-fetched",
        "load",
        (('_HUB_FILES = ["model*.safetensors",', '_HUB_FILES = ["*.bin", "model*.safetensors",'),),
        ("test_load::test_hub_fetches_weights_and_json_only",),
    ),
    Break(
        "int8-weights-loaded-as-they-are",
        "load",
        (("quantize_weight(path, array) if weights == INT8 else array", "array"),),
        ("test_quantized::test_decoding_is_that_of_the_dequantised_model",),
    ),
)

CONFIG = (
    Break(
        "a-default-changed",
        "config",
        (('"evict"] = "refuse"', '"evict"] = "evict"'),),
        ("test_flags::test_defaults_are_the_contract",),
    ),
    Break(
        "an-unknown-yaml-key-is-accepted",
        "config",
        (
            (
                'if name not in kinds:\n            raise UserError(f"unknown key',
                'if name not in kinds:\n            continue\n            raise UserError(f"unknown key',
            ),
        ),
        ("test_flags::test_bad_yaml_is_one_line_that_names_the_file[unknown]",),
    ),
    Break(
        "a-yaml-key-may-stand-twice",
        "config",
        (("            if name in mapping:\n", "            if False:\n"),),
        ("test_flags::test_bad_yaml_is_one_line_that_names_the_file[twice]",),
    ),
    Break(
        "yaml-overrides-flags",
        "config",
        (
            (
                "strict=False)\n    return cls(**values)\n\n\ndef field_help",
                "strict=False) if name not in values else values[name]\n    return cls(**values)\n\n\ndef field_help",
            ),
            (
                "strict=False)\n    return cls(**values)\n\n\ndef from_words",
                "strict=False) if name not in values else values[name]\n    return cls(**values)\n\n\ndef from_words",
            ),
        ),
        ("test_flags::test_flags_override_yaml_overrides_defaults",),
    ),
    Break(
        "ratio-and-retain-together",
        "config",
        (("if self.ratio is not None and self.retain is not None:", "if False:"),),
        ("test_flags::test_bad_flags[ratio and retain]",),
    ),
    Break(
        "user-errors-exit-with-1",
        "config",
        (("_leave(str(error), 2)", "_leave(str(error), 1)"),),
        ("test_sweep::test_figures_and_dry_runs_refuse_what_makes_no_sense",),
    ),
    Break(
        "sigterm-breaks-off-a-write",
        "config",
        (("    if not _busy:\n        raise Terminated", "    raise Terminated"),),
        ("test_termination::test_the_write_in_hand_is_finished",),
    ),
    Break(
        "sigterm-waits-for-ever",
        "config",
        (("while time.monotonic() < deadline:", "while True:"),),
        ("test_termination::test_within_a_call_that_does_not_return",),
    ),
    Break(
        "control-characters-reach-the-terminal",
        "config",
        (
            (
                'return char if harmless else char.encode("unicode_escape"',
                'return char if True else char.encode("unicode_escape"',
            ),
        ),
        ("test_show::test_visible_keeps_text_and_shows_control",),
    ),
    Break(
        "a-models-word-beats-the-policys",
        "config",
        (("settings = {**shared, **<<a>>, **its, **own,", "settings = {**shared, **<<a>>, **own, **its,"),),
        ("test_sweep::test_models_and_the_full_cache_may_have_words_of_their_own",),
    ),
    Break(
        "two-entries-of-one-name",
        "config",
        (("if names.count(name) > 1:", "if False:"),),
        ("test_sweep::test_entries_that_say_nothing_sensible_are_refused",),
    ),
    Break(
        "retain-defaults-to-the-budget-less-a-quarter",
        "config",
        (("retain = budget - max(1, budget // 8)", "retain = budget - max(1, budget // 4)"),),
        ("test_sweep::test_what_cannot_run_is_refused_before_anything_is_decoded",),
    ),
)

TASKS = (
    Break(
        "beginning-of-sequence-twice",
        "tasks",
        (("encode(text, add_special_tokens=False)", "encode(text, add_special_tokens=True)"),),
        ("test_jsonl::test_messages_go_through_the_chat_template",),
    ),
    Break(
        "chat-without-the-generation-prompt",
        "tasks",
        (("add_generation_prompt=True", "add_generation_prompt=False"),),
        ("test_jsonl::test_messages_go_through_the_chat_template",),
    ),
    Break(
        "lines-split-at-unicode-separators",
        "tasks",
        (('encoding="utf-8-sig").split("\\n")', 'encoding="utf-8-sig").splitlines()'),),
        ("test_jsonl::test_byte_order_mark_and_line_separators",),
    ),
    Break(
        "ids-may-stand-twice",
        "tasks",
        (("if problem.id in first_line:", "if False:"),),
        ("test_jsonl::test_ids_are_unique_as_text",),
    ),
    Break(
        "another-letter-is-right",
        "tasks",
        (("string.ascii_uppercase[order.index(0)]", "string.ascii_uppercase[order[0]]"),),
        ("test_benchmarks::test_choices_are_shuffled_alike_everywhere_and_each_comes_everywhere",),
    ),
    Break(
        "data-set-not-pinned",
        "tasks",
        (("split=source.split, revision=source.revision", "split=source.split"),),
        ("test_benchmarks::test_the_hub_is_asked_for_the_pinned_revision",),
    ),
    Break(
        "limit-takes-one-too-many",
        "tasks",
        (
            (
                "for number, row in enumerate(<<rows>>[:limit], 1):",
                "for number, row in enumerate(<<rows>>[: None if limit is None else limit + 1], 1):",
            ),
        ),
        ("test_benchmarks::test_stand_ins_in_the_same_columns[math500-.jsonl]",),
    ),
)

GRADING = (
    Break(
        "the-first-box-counts",
        "grading",
        (("start = box.end()", "start = start or box.end()"),),
        ("test_grading::test_extract_answer",),
    ),
    Break(
        "an-unfinished-thought-has-an-answer",
        "grading",
        (("if not mark and (thinking or _OPENING in text):", "if False:"),),
        ("test_grading::test_extract_answer", "test_grading::test_a_thought_that_the_prompt_began_has_to_end"),
    ),
    Break(
        "the-first-letter-said-counts",
        "grading",
        (("<<a>>[-1].upper() if", "<<a>>[0].upper() if"),),
        ("test_grading::test_extract_letter",),
    ),
    Break(
        "letters-keep-their-case",
        "grading",
        (("return found[1].upper()", "return found[1]"),),
        ("test_grading::test_extract_letter",),
    ),
    Break(
        "white-space-counts",
        "grading",
        (
            (
                "answer is not None and squeeze(answer) == squeeze(reference)",
                "answer is not None and answer == reference",
            ),
        ),
        ("test_grading::test_is_correct",),
    ),
    Break(
        "decimals-are-rounded",
        "grading",
        (
            (
                'sympy.Rational(text.replace(",", "").replace(" ", ""))',
                'sympy.Rational(text.replace(",", "").replace(" ", "")).limit_denominator(1000)',
            ),
        ),
        ("test_mathematics::test_every_pair_of_the_table",),
    ),
    Break(
        "percent-signs-only-as-written",
        "grading",
        (("if (percents[0] != answer) != (percents[1] != reference):", "if False:"),),
        ("test_mathematics::test_every_pair_of_the_table",),
    ),
    Break(
        "the-worker-compiles-text",
        "grading",
        (('if event == "compile" and not _trusted():', "if False:"),),
        ("test_grader::test_the_worker_gives_up_compiling_writing_and_starting_processes",),
    ),
    Break(
        "a-worker-that-died-means-wrong",
        "grading",
        (
            (
                '                self._stop()\n                return Verdict(None, "died")',
                '                self._stop()\n                return Verdict(False, "died")',
            ),
        ),
        ("test_grader::test_a_dead_worker_is_replaced", "test_graded_runs::test_the_run_goes_on_when_the_worker_dies"),
    ),
    Break(
        "a-letter-graded-as-text",
        "grading",
        (('if problem.grading == "letter":', "if False:"),),
        ("test_graded_runs::test_letters_need_no_worker",),
    ),
)

_TODO = "todo = [r for r in requests if (r.id, r.sample) not in finished]\n    return"

RUN = (
    Break(
        "a-resumed-run-skips-a-problems-other-samples",
        "run",
        (
            (_TODO, "todo = [r for r in requests if r.id not in {id for id, _ in finished}]\n    return"),
            (_TODO.replace("r.id, r.sample", "r.id, r.sample"), ""),
        ),
        ("test_resume::test_a_signal_says_how_to_continue",),
    ),
    Break(
        "other-weights-are-the-same-run",
        "run",
        (("weights.update(fetch(leaf if leaf.ndim < 2 else leaf[0]).tobytes())", "pass"),),
        ("test_identity::test_other_weights_are_another_run | test_output::test_continues_with_what_is_finished",),
    ),
    Break(
        "other-prompts-are-the-same-run",
        "run",
        (('"problems": _digest(', '"problems": "same" or _digest('),),
        ("test_graded_runs::test_the_run_goes_on_when_the_worker_dies",),
    ),
    Break(
        "a-changed-config-is-accepted",
        "run",
        (("if before.get(key) != now.get(key))", "if False)"),),
        ("test_output::test_another_config_is_refused_by_its_first_difference",),
    ),
    Break(
        "a-torn-last-line-stays",
        "run",
        (
            ("os.truncate(path, len(data) - len(rest))", "pass"),
            ("os.truncate(path, whole)", "pass"),
        ),
        ("test_output::test_torn_last_lines_are_cut_off_with_a_notice",),
    ),
    Break(
        "two-runs-write-at-once",
        "run",
        (("fcntl.LOCK_EX | fcntl.LOCK_NB", "fcntl.LOCK_SH | fcntl.LOCK_NB"),),
        ("test_output::test_two_runs_at_once_are_refused",),
    ),
    Break(
        "evictions-of-unfinished-samples-stay",
        "run",
        (('if (row["id"], row["sample"]) in finished:\n', "if True:\n"),),
        ("test_output::test_continues_with_what_is_finished",),
    ),
    Break(
        "a-resumed-runs-clock-starts-anew",
        "run",
        (("value + self.before[name] for name, value in now.items()", "value for name, value in now.items()"),),
        ("test_graded_runs::test_the_clock_goes_on | test_graded_runs::test_the_run_goes_on_when_the_worker_dies",),
    ),
    Break(
        "truncation-not-counted",
        "run",
        (('row["finish"] == "length" for row in rows', 'row["finish"] == "cut" for row in rows'),),
        ("test_contract::test_summary",),
    ),
    Break(
        "full-cache-sized-by-the-budget",
        "run",
        (
            (
                "loaded.config.kv_bytes(config.batch_size, longest,",
                "loaded.config.kv_bytes(config.batch_size, rule.budget,",
            ),
        ),
        ("test_contract::test_summary",),
    ),
    Break(
        "a-part-is-folded-twice",
        "run",
        (("if key not in done and key not in taken:", "if True:"),),
        ("test_parts::test_folding_that_is_broken_off_is_ended_by_the_next",),
    ),
    Break(
        "times-of-hosts-are-added-up",
        "run",
        (("max(part.timings[name] for part in there)", "sum(part.timings[name] for part in there)"),),
        ("test_parts::test_parts_are_folded",),
    ),
    Break(
        "the-thoughts-last-token-was-evicted",
        "run",
        (("kept_set = {*kept, len(ids) - 1}", "kept_set = {*kept}"),),
        ("test_show::test_thought_tells_what_was_evicted_with_and_without_styles",),
    ),
    Break(
        "scores-of-the-trace-lose-digits",
        "run",
        (('float(f"{score:.9g}")', 'float(f"{score:.6g}")'),),
        ("test_scores::test_written_scores_are_the_same_float32s",),
    ),
    Break(
        "probe-counts-an-eviction-too-few",
        "run",
        (("else 1 + (length - 1 - first) // (budget - retain)", "else (length - 1 - first) // (budget - retain)"),),
        ("test_probe::test_evictions_in_between_are_those_of_a_row_that_fills_up",),
    ),
)

BREAKS = (*LOAD, *CONFIG, *TASKS, *GRADING, *RUN)
