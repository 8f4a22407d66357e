"""Manifests that a cluster would take: held to the official schema, and to files that were read."""

from __future__ import annotations

import copy
import gzip
import os
import pathlib
import stat

import jsonschema
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from launch.__main__ import main
from launch.jobset import JobSets, as_yaml, manifest, render, submit
from launch.lease import HELD
from launch.tpus import TPUS, find_slice
from launch.trials import Trial
from launch.worker import RESTART
from sleeplm.core.errors import ConfigError

HERE = pathlib.Path(__file__).parent
DATA = pathlib.Path(os.environ.get("SLEEPLM_TEST_DATA", HERE.parents[2] / "shared" / "data"))
CRD = DATA / "jobset_crd" / "jobset.x-k8s.io_jobsets.yaml.gz"
TRIAL = Trial("t0123456789", "experiments/retention.py", False, {"seed": 1}, "digest")
COMMON = {"image": "registry.example/sleeplm:1", "storage": "gs://bucket/sweeps/lr"}
SHARED = COMMON | {"storage": "sweeps"}
KINDS = {
    "v5e": JobSets(**COMMON, tpu="v5e", queue="research"),
    "v5p": JobSets(**SHARED, tpu="v5p", topology="2x2x2", slices=2, name="big", queue="research"),
    "v6e": JobSets(**SHARED, tpu="v6e", topology="4x4", spot=True),
    "tpu7x": JobSets(**COMMON, tpu="tpu7x", service_account="runner", namespace="team"),
}
SEVERAL = ("v5p", "v6e")  # of these kinds, those with several hosts


def strict(schema, name=""):
    """The schema with no room for fields that it does not list; metadata stays open."""
    if isinstance(schema, list):
        return [strict(entry) for entry in schema]
    if not isinstance(schema, dict):
        return schema
    schema = {key: strict(value, key) for key, value in schema.items()}
    if schema.get("x-kubernetes-int-or-string") is True:
        schema["type"] = ["integer", "string"]
    if schema.get("type") == "object" and "properties" in schema and name != "metadata":
        schema["additionalProperties"] = False
    return schema


@pytest.fixture(scope="module")
def validator():
    if not CRD.exists():
        pytest.skip(f"needs the JobSet definition at {CRD}: set SLEEPLM_TEST_DATA to its folder")
    definition = yaml.load(gzip.decompress(CRD.read_bytes()), yaml.CSafeLoader)
    (version,) = [v for v in definition["spec"]["versions"] if v["name"] == "v1alpha2"]
    return jsonschema.Draft202012Validator(strict(version["schema"]["openAPIV3Schema"]))


@pytest.mark.parametrize("kind", KINDS)
def test_every_manifest_is_a_jobset(validator, kind):
    validator.validate(yaml.safe_load(as_yaml(manifest(TRIAL, KINDS[kind]))))


@pytest.mark.parametrize(
    "path",
    [
        "spec.failurePolicy.maxRestarts",
        "spec.replicatedJobs.0.replicas",
        "spec.replicatedJobs.0.template.spec.podFailurePolicy",
        "spec.replicatedJobs.0.template.spec.template.spec.terminationGracePeriodSeconds",
        "spec.replicatedJobs.0.template.spec.template.spec.containers.0.resources",
        "spec.replicatedJobs.0.template.spec.podFailurePolicy.rules.1.onExitCodes.values",
    ],
)
def test_a_misspelt_field_would_be_noticed(validator, path):
    made = copy.deepcopy(manifest(TRIAL, KINDS["v6e"]))
    node, parts = made, path.split(".")
    for part in parts[:-1]:
        node = node[int(part) if part.isdecimal() else part]
    node[parts[-1] + "s"] = node.pop(parts[-1])
    with pytest.raises(jsonschema.ValidationError):
        validator.validate(made)


@pytest.mark.parametrize("kind", KINDS)
def test_manifests_are_those_that_were_read(kind):
    """After a change: UPDATE_GOLDEN=1 writes the files; read the difference."""
    path = HERE / "golden" / f"{kind}.yaml"
    text = as_yaml(manifest(TRIAL, KINDS[kind]))
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(text)
    assert text == path.read_text()


def job(kind):
    return manifest(TRIAL, KINDS[kind])["spec"]["replicatedJobs"][0]["template"]["spec"]


@pytest.mark.parametrize("kind", KINDS)
def test_only_being_stopped_or_disrupted_starts_a_trial_again(kind):
    disrupted, other = job(kind)["podFailurePolicy"]["rules"]
    assert disrupted["action"] == "Count" and job(kind)["backoffLimit"] == 0
    assert disrupted["onPodConditions"] == [{"type": "DisruptionTarget", "status": "True"}]
    assert other["action"] == "FailJob"
    assert other["onExitCodes"]["operator"] == "NotIn"
    # Aborted by jax: 134, and 139 of a process that is the first of its container.
    lost = [134, 139] if kind in SEVERAL else []
    assert other["onExitCodes"]["values"] == [RESTART, HELD, *lost]
    (rule,) = manifest(TRIAL, KINDS[kind])["spec"]["failurePolicy"]["rules"]
    assert (rule["action"], rule["onJobFailureReasons"]) == ("FailJobSet", ["PodFailurePolicy"])


def test_several_hosts_know_how_many_they_are_and_where_the_first_is():
    made, one = manifest(TRIAL, KINDS["v5p"]), manifest(TRIAL, KINDS["v5e"])
    assert made["spec"]["coordinator"] == {"replicatedJob": "slice", "jobIndex": 0, "podIndex": 0}
    assert "coordinator" not in one["spec"] and "annotations" not in one["metadata"]
    env = {e["name"]: e.get("value") for e in containers("v5p")[0]["env"]}
    assert env["LAUNCH_PROCESSES"] == "4"  # two slices of two hosts
    assert env["JAX_COORDINATOR_ADDRESS"] == "$(LAUNCH_COORDINATOR):8476"
    assert {e["name"] for e in containers("v5e")[0]["env"]} == {"JAX_PLATFORMS", "LAUNCH_PROCESSES"}


def pod(kind):
    return job(kind)["template"]["spec"]


@pytest.mark.parametrize("kind", KINDS)
def test_of_several_hosts_python_is_not_the_first_process_of_its_container(kind):
    assert pod(kind).get("shareProcessNamespace", False) == (kind in SEVERAL)


@pytest.mark.parametrize("kind", KINDS)
def test_a_claim_is_the_group_s_of_the_worker(kind):
    group = {"fsGroup": 1000, "fsGroupChangePolicy": "OnRootMismatch"}
    claimed = "://" not in KINDS[kind].storage
    assert pod(kind).get("securityContext") == (group if claimed else None)


def containers(kind):
    return pod(kind)["containers"]


@pytest.mark.parametrize(
    ("tpu", "topology", "host_chips", "hosts", "chips", "devices"),
    [
        ("v5e", "", 0, 1, 1, 1),
        ("v5e", "2x4", 0, 1, 8, 8),
        ("v5e", "2x4", 4, 2, 4, 4),
        ("v5e", "16x16", 0, 64, 4, 4),
        ("v6e", "2x2", 0, 1, 4, 4),
        ("v6e", "4x8", 0, 8, 4, 4),
        ("v5p", "", 0, 1, 4, 4),
        ("v5p", "4x4x8", 0, 32, 4, 4),
        ("tpu7x", "2x2x2", 0, 2, 4, 8),
        ("tpu7x", "4x4x4", 0, 16, 4, 8),
    ],
)
def test_a_slice_has_hosts_chips_and_devices(tpu, topology, host_chips, hosts, chips, devices):
    found = find_slice(tpu, topology, host_chips)
    assert (found.hosts, found.chips, found.devices) == (hosts, chips, devices)
    assert found.accelerator == TPUS[tpu].accelerator


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"tpu": "v4"}, "must be one of v5e, v5p, v6e, tpu7x"),
        ({"topology": "3x3"}, "topology = '3x3'"),
        ({"tpu": "v5p", "topology": "2x4"}, "topology = '2x4'"),
        ({"topology": "2x4", "host_chips": 3}, "host_chips = 3"),
        ({"slices": 2}, "only where each has several hosts"),
        ({"slices": 0}, "slices = 0"),
        ({"grace": -1}, "grace = -1"),
        ({"name": "My_Sweep"}, "name = 'My_Sweep'"),
        ({"name": "1st"}, "name = '1st'"),
        ({"name": "x" * 40}, "DNS allows 63"),
        ({"name": "x" * 20, "topology": "4x4", "storage": "sweeps"}, "DNS allows 63"),
        ({"queue": "a b"}, "queue = 'a b'"),
        ({"namespace": "-x"}, "namespace = '-x'"),
        ({"storage": "my claim"}, "storage = 'my claim'"),
        ({"storage": "Claim"}, "storage = 'Claim'"),
        ({"topology": "4x4"}, "storage = 'gs://.*: several hosts work in one directory"),
        ({"image": "image\nx: y"}, "image = "),
        ({"image": ""}, "image = ''"),
    ],
)
def test_what_a_cluster_would_refuse_is_one_line(change, said):
    with pytest.raises(ConfigError, match=said) as caught:
        manifest(TRIAL, JobSets(**COMMON | change))
    assert "\n" not in str(caught.value)


AWKWARD = ["yes", "null", "1e3", "a: b", "- x", "#", "{}", "0x1f", "12:30", "on", "~"]


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.sampled_from(["image", "queue", "name", "storage", "service_account"]),
    st.one_of(
        st.text(max_size=12), st.sampled_from(["yes", "null", "1e3", "a: b", "- x", "#", "{}"])
    ),
)
def test_a_value_is_refused_or_arrives_as_it_is(field, value):
    try:
        made = manifest(TRIAL, JobSets(**COMMON | {field: value}))
    except ConfigError:
        return
    assert yaml.safe_load(as_yaml(made)) == made


ARGUMENTS = ["--image", "registry.example/sleeplm:1", "--storage", "gs://bucket/lr"]


def test_a_sweep_is_rendered_without_a_cluster_and_submitted_with_kubectl(
    a_sweep, tmp_path, monkeypatch, capsys
):
    a_sweep.expand("seeds")
    assert main(["submit", "jobset", str(a_sweep)]) == 2
    assert "3 trials are not rendered" in capsys.readouterr().err
    assert main(["render", "jobset", str(a_sweep), *ARGUMENTS]) == 0
    files = sorted((a_sweep.folder / "jobset").iterdir())
    assert [path.stem for path in files] == sorted(trial.id for trial in a_sweep.trials)
    kubectl = tmp_path / "bin" / "kubectl"
    kubectl.parent.mkdir()
    kubectl.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" > {tmp_path}/said\n')
    kubectl.chmod(kubectl.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(kubectl.parent), prepend=os.pathsep)
    assert main(["submit", "jobset", str(a_sweep)]) == 0
    said = (tmp_path / "said").read_text().splitlines()
    assert said[0] == "apply"
    assert sorted(said[1:]) == [f"--filename={path}" for path in files]
    with pytest.raises(ConfigError, match="no such command"):
        submit(str(a_sweep), ["no-such-kubectl"])


def test_a_setting_that_cannot_work_leaves_nothing_behind(a_sweep):
    a_sweep.expand("seeds")
    with pytest.raises(ConfigError, match="name"):
        render(str(a_sweep), JobSets(**COMMON, name="Bad"))
    assert not (a_sweep.folder / "jobset").exists()


@pytest.mark.parametrize(
    ("tpu", "topology", "hosts", "devices"), [("v6e", "4x4", 4, 16), ("tpu7x", "2x2x4", 4, 32)]
)
def test_rendering_several_hosts_says_what_a_trial_has_to_be_spread_over(
    a_sweep, capsys, tpu, topology, hosts, devices
):
    arguments = [*ARGUMENTS[:3], "sweeps", "--tpu", tpu, "--topology", topology]
    assert main(["render", "jobset", str(a_sweep.expand("seeds")), *arguments]) == 0
    said = capsys.readouterr().err
    told = f"{hosts} hosts a trial: the sizes of its mesh have to make {devices} devices"
    assert said == f"launch: {told}\n"
    made = yaml.safe_load(next((a_sweep.folder / "jobset").iterdir()).read_text())
    (slices,) = made["spec"]["replicatedJobs"]
    (trial,) = slices["template"]["spec"]["template"]["spec"]["containers"]
    assert trial["resources"]["requests"] == {"google.com/tpu": 4}  # chips
