"""The volume of the model cache, and who mounts it how."""

from __future__ import annotations

import pytest

from gptj_predictor.settings import MOUNTED_MODEL
from tests.support.chart_values import EVERYTHING
from tests.support.charts import render


def test_mounted_by_kserve() -> None:
    release = render({"cache": {"subPath": "models/j"}})
    assert release.container["env"] == [
        {"name": "STORAGE_URI", "value": "pvc://demo-models/models/j"}
    ]
    assert [volume["name"] for volume in release.predictor["volumes"]] == ["tmp"]
    assert render().container["env"][0]["value"] == "pvc://demo-models"
    written = render({"cache": {"readOnly": False}}).one("InferenceService")
    assert written["metadata"]["annotations"]["storage.kserve.io/readonly"] == "false"


@pytest.mark.parametrize("read_only", [True, False])
def test_mounted_by_the_chart(read_only: bool) -> None:
    release = render(
        {"cache": {"mountVia": "volume", "readOnly": read_only, "existingClaim": "theirs"}}
    )
    assert "env" not in release.container
    assert release.container["volumeMounts"][1] == {
        "name": "models",
        "mountPath": "/mnt/models",
        "readOnly": read_only,
    }
    assert release.predictor["volumes"][1]["persistentVolumeClaim"] == {
        "claimName": "theirs",
        "readOnly": read_only,
    }


@pytest.mark.parametrize("existing", ["", "theirs"])
@pytest.mark.parametrize("folder", ["", "a/b"])
@pytest.mark.parametrize("via", ["storageUri", "volume"])
def test_all_see_the_same_files(existing: str, folder: str, via: str) -> None:
    cache = {"existingClaim": existing, "subPath": folder, "mountVia": via}
    release = render({"cache": {**cache, "accessModes": ["ReadWriteMany"]}}, EVERYTHING)
    claim = existing or release.one("PersistentVolumeClaim")["metadata"]["name"]
    pods = [job["spec"]["template"]["spec"] for job in release.all("Job")]
    if via == "volume":
        pods.append(release.predictor)
    else:
        [uri] = [v for v in release.container["env"] if v["name"] == "STORAGE_URI"]
        assert uri["value"] == f"pvc://{claim}/{folder}".rstrip("/")
    for pod in pods:
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        [mount] = [one for one in pod["containers"][0]["volumeMounts"] if one["name"] == "models"]
        assert mount["mountPath"] == str(MOUNTED_MODEL)
        assert mount.get("subPath", "") == folder
        assert volumes["models"]["persistentVolumeClaim"]["claimName"] == claim


def test_claim() -> None:
    cache = {"size": "5Gi", "storageClassName": "fast", "annotations": {"a": "b"}}
    claim = render({"cache": cache}).one("PersistentVolumeClaim")
    assert claim["spec"]["storageClassName"] == "fast"
    assert claim["spec"]["resources"]["requests"]["storage"] == "5Gi"
    assert claim["metadata"]["annotations"] == {"a": "b", "helm.sh/resource-policy": "keep"}


def test_keep() -> None:
    policy = "helm.sh/resource-policy"
    kept = render().one("PersistentVolumeClaim")["metadata"]
    assert kept["annotations"] == {policy: "keep"}
    deleted = render({"cache": {"keep": False}})
    assert "annotations" not in deleted.one("PersistentVolumeClaim")["metadata"]
    for release in (render(EVERYTHING), deleted):
        for one in release.objects:
            if one["kind"] != "PersistentVolumeClaim":
                assert policy not in one["metadata"].get("annotations", {})
