"""Make the tiny GPT-J snapshot that is bundled with the package as its demo.

The script writes its own training text (see `demo_text`), learns a tokenizer from it, trains a
GPT-J of 2.6 million parameters on two processor cores in well under half an hour, stores it as a
folder in the layout of a Hugging Face model, reads that folder back and measures what the model
can do. It needs no network and no data.

    python tools/make_demo_snapshot.py --output src/gptj_predictor/demo/snapshot
    python tools/make_demo_snapshot.py --output src/gptj_predictor/demo/snapshot --evaluate-only

It needs torch 2.9 or newer, transformers, tokenizers and safetensors.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import GPTJForCausalLM

from demo_evaluation import Snapshot, evaluate, lines
from demo_text import PROMPTS
from demo_training import END_OF_TEXT, Cores, Limits, Summary, new_model, train, train_tokenizer

TOKENIZER_CONFIG = {
    "add_prefix_space": False,
    "bos_token": END_OF_TEXT,
    "clean_up_tokenization_spaces": False,
    "eos_token": END_OF_TEXT,
    "model_max_length": 2048,
    "tokenizer_class": "GPT2Tokenizer",
    "unk_token": END_OF_TEXT,
}

CARD = """\
# A tiny GPT-J for demonstrations

This is a GPT-J in architecture only: {parameters:,} parameters (4 layers, 192 wide, 3 heads of
64, 32 rotary dimensions, a vocabulary of 2,048, a context of 2,048 tokens), stored as bfloat16.
It was trained from scratch on {tokens:,} tokens of text that templates wrote: short news about
scientists and animals, reflections, labelled messages and questions answered with SQL.

It shows that a server works, at a size that fits into a package. It is **not** GPT-J-6B and was
not made from it. It knows nothing about the world, cannot follow instructions, and outside the
four kinds of text above it writes nonsense. Do not use it to decide anything.

## Measurements

Taken on the files in this folder, read back from disk (bfloat16 weights, float32 arithmetic).
The questions are few-shot prompts with one to six examples; each asks for a combination of
template and words that was kept out of the training text, and answers are decoded greedily. The
words and templates themselves do occur in training, in other combinations.

{measurements}

## How it was made

    {command}

{steps:,} steps in {minutes:.1f} minutes of training (about {rate:,.0f} tokens per second on two
cores); the last loss was {loss:.3f}. The text, the tokenizer and the weights follow from the
seed, as far as the machine's arithmetic does.
"""


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True, help="folder of the snapshot")
    parser.add_argument("--seed", type=int, default=6, help="seed of the text and of the weights")
    parser.add_argument("--steps", type=int, default=2600, help="training steps of 4,096 tokens")
    parser.add_argument("--minutes", type=float, default=25, help="most minutes of training")
    parser.add_argument("--cores", type=int, default=2, help="processor cores to work on")
    parser.add_argument("--questions", type=int, default=400, help="questions per evaluation")
    parser.add_argument(
        "--checkpoint",
        type=Path,
        default=Path(tempfile.gettempdir()) / "gptj-demo-checkpoint.pt",
        help="where the unfinished training is kept",
    )
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint")
    parser.add_argument("--evaluate-only", action="store_true", help="measure, change nothing")
    return parser.parse_args()


def write_json(path: Path, value: dict[str, object]) -> None:
    """Write JSON that is readable and always the same."""
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n")


def write_snapshot(folder: Path, model: GPTJForCausalLM, tokenizer: Tokenizer) -> None:
    """Write model and tokenizer into an empty folder."""
    model.bfloat16().save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    write_json(folder / "tokenizer_config.json", TOKENIZER_CONFIG)
    config = json.loads((folder / "config.json").read_text())
    config.pop("_name_or_path", None)
    write_json(folder / "config.json", config)
    write_json(folder / "generation_config.json", {"bos_token_id": 0, "eos_token_id": 0})
    for file in folder.iterdir():
        file.chmod(0o644)


def replace_folder(new: Path, target: Path) -> None:
    """Put `new` in the place of `target`, so that readers see the old files or the new ones."""
    target.parent.mkdir(parents=True, exist_ok=True)
    old = new.with_name(new.name + ".old")
    if target.exists():
        target.rename(old)
    new.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def show_samples(folder: Path) -> None:
    """Print continuations of every prompt of the demo: the most likely one, and a drawn one."""
    snapshot = Snapshot(folder)
    model: Any = snapshot.model
    torch.manual_seed(1)
    for how in ({"do_sample": False}, {"do_sample": True, "top_k": 50, "top_p": 0.9}):
        for prompt, (shortest, longest) in PROMPTS.items():
            ids = torch.tensor([snapshot.ids(prompt)])
            limits = {"min_length": shortest, "max_length": longest, "pad_token_id": snapshot.end}
            out = model.generate(ids, attention_mask=torch.ones_like(ids), **limits, **how)
            print(f"\n>>> {how}\n{snapshot.tokenizer.decode(out[0].tolist())}")


def make(arguments: argparse.Namespace) -> None:
    """Train, store, measure, and put the finished folder in place."""
    tokenizer = train_tokenizer(arguments.seed)
    model = new_model(arguments.seed)
    parameters = sum(p.numel() for p in model.parameters())
    limits = Limits(arguments.steps, arguments.minutes)
    cores = Cores(arguments.cores)
    summary = train(
        model, tokenizer, arguments.seed, limits, arguments.checkpoint, cores, arguments.resume
    )
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    new = Path(tempfile.mkdtemp(prefix=".snapshot-", dir=arguments.output.parent))
    try:
        new.chmod(0o755)
        write_snapshot(new, model, tokenizer)
        measured = measure(new, arguments)
        write_card(new / "MODEL_CARD.md", arguments, parameters, summary, measured)
        replace_folder(new, arguments.output)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def write_card(
    path: Path,
    arguments: argparse.Namespace,
    parameters: int,
    summary: Summary,
    measured: list[str],
) -> None:
    """Write the description of the snapshot that lies beside its files."""
    command = f"python tools/make_demo_snapshot.py --output FOLDER --seed {arguments.seed}"
    command += f" --steps {arguments.steps} --minutes {arguments.minutes:g}"
    card = CARD.format(
        parameters=parameters,
        tokens=summary.tokens,
        measurements="\n".join(measured),
        command=command,
        steps=summary.steps,
        minutes=summary.seconds / 60,
        rate=summary.tokens / summary.seconds,
        loss=summary.loss,
    )
    path.write_text(card)


def measure(folder: Path, arguments: argparse.Namespace) -> list[str]:
    """Evaluate a snapshot, print the results and return them as lines of Markdown."""
    # One token at a time leaves nothing to share out among cores.
    torch.set_num_threads(1)
    # More documents than any run of these steps can have read.
    read = arguments.steps * 40
    report = evaluate(folder, arguments.seed, read, arguments.questions)
    measured = lines(report)
    print("\n".join(measured))
    for prompt, count in report.prompt_tokens.items():
        print(f"{count} tokens: {prompt[:60]}...")
    sizes = {file.name: file.stat().st_size for file in sorted(folder.iterdir())}
    print(f"{sum(sizes.values()):,} bytes: {sizes}")
    show_samples(folder)
    return measured


def main() -> None:
    """Make a snapshot, or measure one."""
    arguments = parse_arguments()
    started = time.monotonic()
    if arguments.evaluate_only:
        measure(arguments.output, arguments)
    else:
        make(arguments)
    print(f"\n{(time.monotonic() - started) / 60:.1f} minutes in all")


if __name__ == "__main__":
    main()
