"""lm-evaluation-harness in a process of its own: it takes seconds to import, and keeps a cache."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.support.servers import NAME

#: A task as its users write them. YAML takes JSON.
ROLLING = {
    "output_type": "loglikelihood_rolling",
    "dataset_path": "json",
    "test_split": "test",
    "doc_to_text": "",
    "doc_to_target": "{{text}}",
    "should_decontaminate": False,
    "metric_list": [{"metric": "byte_perplexity"}],
}

CHOICES = {
    "output_type": "multiple_choice",
    "dataset_path": "json",
    "test_split": "test",
    "doc_to_text": "{{question}}",
    "doc_to_choice": "{{choices}}",
    "doc_to_target": "{{answer}}",
    "metric_list": [{"metric": "acc"}],
}

GENERATION = {
    "output_type": "generate_until",
    "dataset_path": "json",
    "test_split": "test",
    "doc_to_text": "{{question}}",
    "doc_to_target": "{{text}}",
    "generation_kwargs": {"until": ["\n", "."], "max_gen_toks": 12, "temperature": 0},
    "metric_list": [{"metric": "exact_match"}],
}

PROGRAM = """
import json, sys
import lm_eval
from lm_eval.tasks import TaskManager
folder, tasks, arguments = sys.argv[1], sys.argv[2].split(","), json.loads(sys.argv[3])
results = lm_eval.simple_evaluate(
    model="local-completions",
    model_args=arguments,
    tasks=tasks,
    task_manager=TaskManager(include_path=folder, include_defaults=False),
    batch_size=2,
    bootstrap_iters=0,
)
with open(folder + "/results", "w") as file:
    json.dump(results["results"], file)
"""


def evaluate(
    folder: Path,
    tasks: dict[str, tuple[dict[str, Any], list[dict[str, Any]]]],
    *,
    address: str,
    tokenizer: Path,
) -> dict[str, dict[str, Any]]:
    """Run tasks against a server.

    Args:
        folder: An empty one.
        tasks: What each is, and its documents.
        address: The completions' URL.
        tokenizer: Folder of the model's.

    Returns:
        The results of each task by metric, as ``byte_perplexity,none``.
    """
    for name, (task, documents) in tasks.items():
        data = folder / f"{name}.jsonl"
        data.write_text("".join(json.dumps(one) + "\n" for one in documents))
        files = {"data_files": {"test": str(data)}}
        config = task | {"task": name, "dataset_kwargs": files}
        (folder / f"{name}.yaml").write_text(json.dumps(config))
    arguments: dict[str, Any] = {"model": NAME, "base_url": address, "tokenizer": str(tokenizer)}
    arguments |= {"tokenizer_backend": "huggingface", "max_length": 2048}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(folder), ",".join(tasks), json.dumps(arguments)],
        env=os.environ | {"HF_HOME": str(folder / "hf"), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    results: dict[str, dict[str, Any]] = json.loads((folder / "results").read_text())
    return results
