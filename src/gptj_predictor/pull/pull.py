"""Bringing a model of the hub into a model cache, stage by stage.

    resolve    ask the hub which commit the revision is and which files it has
    plan       decide precision and name of the version
    fetch      download into ``pull/source-COMMIT``
    build      convert or move into ``pull/build-VERSION``
    describe   write the manifest
    publish    one rename to ``versions/VERSION``
    point      ``CURRENT`` and the tag name it
    clean      remove ``pull/``

A pull may be killed at any moment: nothing half-made is ever seen, and the next pull goes on from
what each stage left (``docs/pull-stages.md``).
"""

from __future__ import annotations

import errno
from contextlib import suppress
from pathlib import Path

from gptj_predictor.common.files import follow_umask
from gptj_predictor.common.progress import say
from gptj_predictor.pull.build import build
from gptj_predictor.pull.describe import describe, is_described
from gptj_predictor.pull.fetch import fetch_all
from gptj_predictor.pull.job import Job, Plan, PullRequest
from gptj_predictor.pull.publish import (
    clean,
    free_name,
    hold_lease,
    publish,
    set_current,
    set_tag,
)
from gptj_predictor.pull.resolve import make_plan, resolve
from gptj_predictor.settings import Precision, wire_name
from gptj_predictor.snapshot.cache import ModelRoot
from gptj_predictor.snapshot.errors import SnapshotError
from gptj_predictor.snapshot.manifest import Manifest
from gptj_predictor.snapshot.verify import check_version

__all__ = ["PullRequest", "pull"]


def pull(request: PullRequest) -> Path:
    """Have a whole snapshot in the model cache and serve it from now on; its folder.

    Any number of processes may do the same at once: one works, the others wait.

    Raises:
        SnapshotError: it cannot be had, with what to do; what was downloaded is kept.
    """
    root = ModelRoot(request.cache / wire_name(request.model_id))
    try:
        with hold_lease(root) as check:
            return _run_stages(Job(request, root, check))
    except SnapshotError:
        with suppress(OSError):
            root.path.rmdir()  # only if this left nothing in it
        raise
    except OSError as error:
        raise SnapshotError(_explain_local(error, root)) from error


def _run_stages(job: Job) -> Path:
    version = _find_offline(job) if job.request.offline else None
    if version is None:
        plan = make_plan(job, resolve(job))
        version = _find_published(job, plan) or _make(job, plan)
    for file in version.iterdir():  # those of an earlier release were for their owner alone
        follow_umask(file)
    set_current(job.root, version.name)
    if job.request.tag is not None:
        set_tag(job.root, job.request.tag, version.name)
    clean(job.root, keep_source=job.request.keep_source)
    return version


def _find_offline(job: Job) -> Path | None:
    """A whole version that answers the request without asking what the revision is today."""
    wanted = job.request
    for version in job.root.versions():
        with suppress(SnapshotError):  # a damaged one is none
            manifest = Manifest.read(version)
            if (
                manifest is not None
                and manifest.model_id == wanted.model_id
                and wanted.revision in {manifest.revision, manifest.commit}
                and wanted.precision in {Precision.AUTO, manifest.precision}
                and wanted.stored_quantization == manifest.quantization
                and not check_version(version, everything=wanted.verify)
            ):
                return version
    return None


def _find_published(job: Job, plan: Plan) -> Path | None:
    """The whole version that the plan would make, if it is there."""
    for version in job.root.versions():
        if version.name == plan.name or version.name.startswith(f"{plan.name}-r"):
            damage = check_version(version, everything=job.request.verify)
            if not damage:
                return version
            say(f"{damage[0]}; making version {version.name} anew")
    return None


def _make(job: Job, plan: Plan) -> Path:
    """Make and publish the version, from where a killed pull left it."""
    if not is_described(plan.build):
        fetch_all(job, plan)
        build(job, plan)
        describe(job, plan)
    return publish(job.root, plan.build, free_name(job.root, plan.name), job.check)


def _explain_local(error: OSError, root: ModelRoot) -> str:
    reasons = {
        errno.ENOSPC: "the volume is full; make room and pull again, what is there is kept",
        errno.EDQUOT: "the quota is used up; make room and pull again, what is there is kept",
        errno.EROFS: "the volume is read-only; mount it writable, or name another --dest",
        errno.EACCES: "no permission to write; change the folder's owner, or name another --dest",
        errno.EPERM: "no permission to write; change the folder's owner, or name another --dest",
    }
    reason = reasons.get(error.errno or 0, error.strerror or str(error))
    return f"{error.filename or root.path}: {reason}"
