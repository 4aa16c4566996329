"""``python -m jkv.sweep --dry-run --topology``: each program is compiled once; the table has the compiler's word."""

import subprocess
import sys

import pytest

from jkv.config.sweep import SweepConfig
from jkv.planning import chips, dry_run, report


def test_what_differs_in_its_task_alone_is_compiled_once(monkeypatch, capsys):
    planned = []

    def plan(config):
        planned.append(config)
        return {"fits": config.budget != 128 and (config.options or {}).get("lam") != 0.5}

    monkeypatch.setattr(chips, "require", lambda: None)
    monkeypatch.setattr(chips, "prepare", lambda: None)
    monkeypatch.setattr(report, "plan", plan)
    policies = ["rkv", {"policy": "rkv", "name": "rkv-half", "options": {"lam": 0.5}}]
    config = SweepConfig(
        models=["r1-qwen-7b"], tasks=["aime24", "math500"], policies=policies, budgets=[96, 128], full=False,
        dry_run=True, topology="v5e:2x4",
    )  # fmt: skip
    dry_run.print_dry_run(config)
    table = capsys.readouterr().out.splitlines()
    assert len(planned) == 4  # two policies (the same but for an option) at two budgets; two tasks share each
    assert {c.mesh for c in planned} == {"data=2,model=4"}
    assert [row.split()[-1] for row in table if row.startswith("r1-qwen-7b")] == ["yes", "no", "no", "no"]
    assert all(len(row.rstrip()) <= 80 for row in table)


@pytest.mark.slow
def test_the_tpu_compiler_says_what_fits(tmp_path):
    pytest.importorskip("libtpu")
    models = "models: [demo-llama, {model: demo-qwen, name: crowded, batch_size: 65536, dtype: bfloat16}]"
    lines = [models, "policies: [window]", "budgets: [96]", "tasks: [demo]", "batch_size: 8", "full: false"]
    (tmp_path / "sweep.yaml").write_text("\n".join(lines))
    words = ["--config", str(tmp_path / "sweep.yaml"), "--dry-run", "--topology", "v5e:1x1"]
    done = subprocess.run([sys.executable, "-m", "jkv.sweep", *words], capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    said = {line.split()[0]: line.split()[-1] for line in done.stdout.splitlines() if " 96 " in line}
    assert said == {"demo-llama": "yes", "crowded": "no"}
