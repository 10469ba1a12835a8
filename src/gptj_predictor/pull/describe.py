"""Describing a finished build: the manifest, which vouches for every byte."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version as installed_version
from pathlib import Path

from gptj_predictor.common.progress import Progress
from gptj_predictor.pull.job import LISTING_FILE, Job, Plan
from gptj_predictor.snapshot.blocks import block_digest, block_ranges, read_layout
from gptj_predictor.snapshot.folder import SnapshotFolder
from gptj_predictor.snapshot.load import check_tensors
from gptj_predictor.snapshot.manifest import MANIFEST_FILE, FileRecord, Manifest
from gptj_predictor.snapshot.verify import digest_pool, file_sha256, find_damage

#: Named in the manifest with their versions.
TOOLS = ("gptj-predictor", "torch", "safetensors", "huggingface_hub")


def describe(job: Job, plan: Plan) -> None:
    """Write the manifest of a build, and check that the build can be served.

    Raises:
        SnapshotError: it cannot be served, or the lease is lost.
    """
    build = plan.build
    (build / MANIFEST_FILE).unlink(missing_ok=True)
    for leftover in build.glob("*.new"):  # of a write that was killed
        leftover.unlink()
    files = describe_files(build, job.check)
    files.pop(LISTING_FILE, None)
    manifest = Manifest(
        model_id=plan.listing.model_id,
        revision=plan.listing.revision,
        commit=plan.listing.commit,
        precision=str(plan.precision),
        sources=tuple(
            {"name": file.name, "size": file.size, "sha256": file.sha256} for file in plan.weights
        ),
        files=files,
        tools={name: installed_version(name) for name in TOOLS},
        quantization=job.request.stored_quantization,
    )
    manifest.write(build)
    check_tensors(SnapshotFolder.open(build))
    (build / LISTING_FILE).unlink(missing_ok=True)


def is_described(build: Path) -> bool:
    """Whether a killed pull got to the end of :func:`describe`, and the build is whole."""
    return (
        (build / MANIFEST_FILE).exists()
        and not (build / LISTING_FILE).exists()
        and not find_damage(build, everything=True)
    )


def describe_files(folder: Path, check: Callable[[], None]) -> dict[str, FileRecord]:
    """A manifest's record of every file in a folder, read from disk.

    Args:
        folder: A finished snapshot, but for its manifest.
        check: Called now and then; raises to end the work.
    """

    def describe(file: Path) -> FileRecord:
        blocks: list[str] = []
        size = file.stat().st_size
        if file.suffix == ".safetensors":
            header, tensors = read_layout(file)
            with file.open("rb") as opened:
                for begin, end in block_ranges(size, header, tensors):
                    check()
                    opened.seek(begin)
                    blocks.append(block_digest(opened.read(end - begin)))
        return FileRecord(size, file_sha256(file, progress.advance), tuple(blocks))

    files = sorted(path for path in folder.iterdir() if path.is_file())
    total = sum(file.stat().st_size for file in files)
    with Progress("taking digests", total) as progress, digest_pool() as pool:
        records = pool.map(describe, files)
        return {file.name: record for file, record in zip(files, records, strict=True)}
