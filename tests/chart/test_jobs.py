"""The pull Job and the benchmark Job."""

from __future__ import annotations

import pytest

from tests.support.chart_values import MANY
from tests.support.charts import Release, Values, nested, render


@pytest.mark.parametrize(
    ("precision", "cards", "stored"),
    [
        ("auto", [], "auto"),
        ("auto", ["A40"], "auto"),
        ("auto", ["Tesla-V100-SXM2-16GB"], "fp16"),
        ("auto", ["Tesla-T4", "Quadro_RTX_5000"], "fp16"),
        ("auto", ["Tesla-T4", "NVIDIA-A10"], "auto"),
        ("auto", ["NVIDIA-RTX-A4000", "RTX_A5000"], "auto"),
        ("native", ["Tesla-T4"], "native"),
    ],
)
def test_stored_precision(precision: str, cards: list[str], stored: str) -> None:
    release = render({"model": {"precision": precision}, "gpu": {"labelValues": cards}})
    [pull] = release.one("Job")["spec"]["template"]["spec"]["containers"]
    assert pull["args"][pull["args"].index("--precision") + 1] == stored
    assert release.container["args"][release.container["args"].index("--precision") + 1] == (
        precision
    )


@pytest.mark.parametrize(
    ("quantization", "tag"),
    [("auto", "v1-bfloat16"), ("none", "v1-bfloat16"), ("int8", "v1-bfloat16-int8")],
)
def test_the_tag_has_the_quantization(quantization: str, tag: str) -> None:
    """So that no replica serves the version of before, and going back needs no second pull."""
    model = {"revision": "v1", "precision": "bfloat16", "quantization": quantization}
    release = render(MANY, {"model": model, "benchmark": {"batchSize": 1}})
    jobs = [job["spec"]["template"]["spec"]["containers"][0] for job in release.all("Job")]
    assert len(jobs) == 2
    for container in (release.container, *jobs):
        args = container["args"]
        assert args[args.index("--tag") + 1] == tag
        assert args[args.index("--quantization") + 1] == quantization


def test_a_changed_job_is_another_job() -> None:
    base: Values = {"benchmark": {"batchSize": 2}, **MANY}
    names = [job["metadata"]["name"] for job in render(base).all("Job")]
    assert names == [job["metadata"]["name"] for job in render(base).all("Job")]
    for path, value in (
        ("image.tag", "2"),
        ("model.id", "a/b"),
        ("model.precision", "fp16"),
        ("model.quantization", "int8"),
        ("nodeSelector", {"a": "b"}),
        ("labels", {"a": "b"}),
        ("extraEnv", [{"name": "A", "value": "b"}]),
        ("cache.subPath", "x"),
    ):
        changed = render(base, nested(path, value)).all("Job")
        assert not {job["metadata"]["name"] for job in changed} & set(names), path
    # What is no part of a Job's template leaves it alone.
    same = render(base, {"scaling": {"maxReplicas": 1}, "timeoutSeconds": 60}).all("Job")
    assert [job["metadata"]["name"] for job in same] == names


def test_verify_makes_another_job() -> None:
    """The mending of a damaged model cache: any new text runs the pull again, with --verify."""

    def pull(verify: object) -> tuple[str, list[str]]:
        job = render({"download": {"verify": verify}}).one("Job")
        [container] = job["spec"]["template"]["spec"]["containers"]
        return job["metadata"]["name"], container["args"]

    jobs = {verify: pull(verify) for verify in ("", "2026-11-25", 'again: #2 "', 20261125, 0)}
    assert len({name for name, _ in jobs.values()}) == 5
    assert [verify for verify, (_, args) in jobs.items() if "--verify" not in args] == [""]
    assert pull("")[0] == render().one("Job")["metadata"]["name"]


def test_benchmarks_of_different_machines_are_kept_apart() -> None:
    base: Values = {"benchmark": {"batchSize": 2, "only": True}}

    def output(*values: Values) -> str:
        [container] = render(base, *values).one("Job", "benchmark")["spec"]["template"]["spec"][
            "containers"
        ]
        assert container["args"][-1] == "--resume"
        return str(container["args"][-2])

    assert output() == output({"timeoutSeconds": 60}, {"download": {"ttl": 5}})
    others = [
        output({"gpu": {"labelValues": ["A40"]}}),
        output({"gpu": {"labelValues": ["A100"]}}),
        output({"benchmark": {"resources": {"limits": {"cpu": "16"}}}}),
        output({"image": {"tag": "2"}}),
        output({"model": {"revision": "v2"}}),
    ]
    assert len({output(), *others}) == 6


def test_time_to_live_and_tries() -> None:
    settings = {"ttl": 60, "backoffLimit": 3}
    release = render(
        {"download": settings, "benchmark": {**settings, "batchSize": 1, "only": True}}
    )
    for job in release.all("Job"):
        assert job["spec"]["ttlSecondsAfterFinished"] == 60
        assert job["spec"]["backoffLimit"] == 3
    assert "ttlSecondsAfterFinished" not in render().one("Job")["spec"]


def test_extra_arguments_may_be_numbers() -> None:
    """As ``--set 'benchmark.extraArgs={--max_tokens,256}'`` makes them."""
    given = [
        "--max_tokens",
        256,
        "--a",
        50_000_000,
        "--b",
        0.25,
        "--c",
        -3,
        "--d",
        True,
        "--e",
        "1e3",
    ]
    release = render({"benchmark": {"batchSize": 1, "extraArgs": given}, "extraArgs": given}, MANY)
    [benchmark] = release.one("Job", "benchmark")["spec"]["template"]["spec"]["containers"]
    words = [
        "--max_tokens",
        "256",
        "--a",
        "50000000",
        "--b",
        "0.25",
        "--c",
        "-3",
        "--d",
        "true",
        "--e",
        "1e3",
    ]
    assert release.container["args"][-len(words) :] == words
    assert benchmark["args"][-len(words) - 3 : -3] == words


def test_the_test_leaves_no_pod_unless_it_failed() -> None:
    annotations = render().one("Pod")["metadata"]["annotations"]
    assert annotations["helm.sh/hook-delete-policy"] == "before-hook-creation,hook-succeeded"


@pytest.mark.slow
def test_no_hooks_but_the_test(releases: dict[str, Release]) -> None:
    for release in releases.values():
        for one in release.objects:
            hook = one["metadata"].get("annotations", {}).get("helm.sh/hook")
            assert hook == ("test" if one["kind"] == "Pod" else None)


def test_token() -> None:
    release = render({"download": {"hfToken": {"existingSecret": "hub", "key": "k"}}})
    [pull] = release.one("Job")["spec"]["template"]["spec"]["containers"]
    assert pull["env"] == [
        {"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": {"name": "hub", "key": "k"}}}
    ]
    assert "HF_TOKEN" not in str(release.predictor)
