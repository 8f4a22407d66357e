"""The JobSet backend: one Kubernetes manifest a trial, for TPU slices on GKE with Kueue.

Exit statuses 42 (stopped, and saved; or another process of the trial is lost), 75 (a worker before
it may still be alive), of several hosts 134 and 139 (jax has ended a process that has lost another,
before that could do so itself), and disruptions (preemption, eviction, maintenance) fail the Job by
its backoff limit, upon which the JobSet starts all of its pods again; any other status fails the
trial for good, because it would fail again.
"""

from __future__ import annotations

import argparse
import dataclasses
import pathlib
import re
import subprocess
from collections.abc import Sequence
from typing import Any

import yaml

from launch.lease import HELD
from launch.stores import is_remote, write_whole
from launch.tpus import TPUS, Slice, find_slice
from launch.trials import Trial, read_trials
from launch.worker import ABORTED, ABORTED_AS_FIRST, PROCESSES, RESTART
from sleeplm.core.checks import positive_integer
from sleeplm.core.errors import ConfigError

FOLDER, MOUNT = "jobset", "/sweep"
CONTAINER, JOB, PORT = "trial", "slice", 8476
#: User and group of the worker in launch/Containerfile.
USER = 1000
#: Longest name that DNS allows, in characters.
LONGEST = 63
_LABEL = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?")


@dataclasses.dataclass
class JobSets:
    """How trials run on a cluster.

    Attributes:
      image: of the container, see launch/Containerfile.
      tpu, topology, host_chips: of a slice, see :func:`launch.tpus.find_slice`.
      slices: of a trial.
      storage: the sweep directory as pods see it: ``gs://...``, or the name of a
        PersistentVolumeClaim that holds it, which is mounted.
      name: what names of JobSets begin with.
      queue: a Kueue LocalQueue; empty without Kueue. priority: a Kueue WorkloadPriorityClass.
      namespace: empty for kubectl's own. service_account: that may use the storage.
      spot: run on Spot nodes.
      grace: seconds between SIGTERM and SIGKILL: longer than the longest moment of a run.
      restarts: of a trial, at most; each preemption is one.
    """

    image: str
    storage: str
    tpu: str = "v5e"
    topology: str = ""
    host_chips: int = 0
    slices: int = 1
    name: str = "sweep"
    queue: str = ""
    priority: str = ""
    namespace: str = ""
    service_account: str = ""
    spot: bool = False
    grace: int = 300
    restarts: int = 100

    def check(self) -> Slice:
        """Checks all settings and returns the slice.

        Raises:
          ConfigError: one cannot work.
        """
        for field in ("slices", "grace", "restarts"):
            positive_integer(field, getattr(self, field))
        for field in ("image", "storage"):
            value = getattr(self, field)
            if not value or value != value.strip() or any(c.isspace() for c in value):
                raise ConfigError(field, value, "must be a name without spaces")
        if not _LABEL.fullmatch(self.name) or len(self.name) > LONGEST:
            remedy = f"must be at most {LONGEST} of a-z, 0-9 and -, and begin with a letter (DNS)"
            raise ConfigError("name", self.name, remedy)
        fields = ["queue", "priority", "namespace", "service_account"]
        for field in fields if is_remote(self.storage) else [*fields, "storage"]:
            value = getattr(self, field)
            if value and not _NAME.fullmatch(value):
                raise ConfigError(field, value, "must be a name of a-z, 0-9, - and . (DNS)")
        found = find_slice(self.tpu, self.topology, self.host_chips)
        if self.slices > 1 and found.hosts == 1:
            remedy = "several slices work together only where each has several hosts (GKE)"
            raise ConfigError("slices", self.slices, remedy)
        if found.hosts > 1 and is_remote(self.storage):
            remedy = "several hosts work in one directory: name a PersistentVolumeClaim that is "
            raise ConfigError("storage", self.storage, f"{remedy}mounted by all (ReadWriteMany)")
        return found


def manifest(trial: Trial, settings: JobSets) -> dict[str, Any]:
    """The JobSet of a trial.

    Raises:
      ConfigError: a setting cannot work, or the names that follow from it are too long for DNS.
    """
    found = settings.check()
    name = f"{settings.name}-{trial.id}"
    _check_lengths(settings, found, name)
    labels = {"app.kubernetes.io/name": "sleeplm", "app.kubernetes.io/instance": settings.name}
    metadata: dict[str, Any] = {"name": name, "labels": dict(labels)}
    if settings.namespace:
        metadata["namespace"] = settings.namespace
    if settings.queue:
        metadata["labels"]["kueue.x-k8s.io/queue-name"] = settings.queue
    if settings.priority:
        metadata["labels"]["kueue.x-k8s.io/priority-class"] = settings.priority
    if found.hosts > 1:
        # A slice is one node pool: without this, two trials may each get half of it, and wait.
        key = "alpha.jobset.sigs.k8s.io/exclusive-topology"
        metadata["annotations"] = {key: "cloud.google.com/gke-nodepool"}
    spec: dict[str, Any] = {
        "failurePolicy": {
            "maxRestarts": settings.restarts,
            "rules": [
                {
                    "name": "failForGood",
                    "action": "FailJobSet",
                    "onJobFailureReasons": ["PodFailurePolicy"],
                }
            ],
        },
        "replicatedJobs": [
            {
                "name": JOB,
                "replicas": settings.slices,
                "template": {"spec": _job(trial, settings, found, labels)},
            }
        ],
    }
    if _processes(settings, found) > 1:
        spec["coordinator"] = {"replicatedJob": JOB, "jobIndex": 0, "podIndex": 0}
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": metadata,
        "spec": spec,
    }


def _job(trial: Trial, settings: JobSets, found: Slice, labels: dict[str, str]) -> dict[str, Any]:
    """A slice: one pod a host, which succeed together or start again together."""
    lost = [ABORTED, ABORTED_AS_FIRST] if found.hosts > 1 else []
    return {
        "completionMode": "Indexed",
        "completions": found.hosts,
        "parallelism": found.hosts,
        "backoffLimit": 0,
        "podFailurePolicy": {
            "rules": [
                {
                    "action": "Count",
                    "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}],
                },
                {
                    "action": "FailJob",
                    "onExitCodes": {
                        "containerName": CONTAINER,
                        "operator": "NotIn",
                        "values": [RESTART, HELD, *lost],
                    },
                },
            ]
        },
        "template": {
            "metadata": {"labels": labels | {"trial": trial.id}},
            "spec": _pod(trial, settings, found),
        },
    }


def _pod(trial: Trial, settings: JobSets, found: Slice) -> dict[str, Any]:
    selector = {
        "cloud.google.com/gke-tpu-accelerator": found.accelerator,
        "cloud.google.com/gke-tpu-topology": found.topology,
    }
    if settings.spot:
        selector["cloud.google.com/gke-spot"] = "true"
    remote = is_remote(settings.storage)
    sweep = settings.storage if remote else MOUNT
    chips = {"google.com/tpu": found.chips}
    container: dict[str, Any] = {
        "name": CONTAINER,
        "image": settings.image,
        "command": ["python", "-m", "launch.worker"],
        "args": ["--sweep", sweep, "--trial", trial.id],
        "env": _environment(_processes(settings, found)),
        "resources": {"requests": chips, "limits": dict(chips)},
    }
    pod: dict[str, Any] = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": settings.grace,
        "nodeSelector": selector,
        "containers": [container],
    }
    if settings.service_account:
        pod["serviceAccountName"] = settings.service_account
    if found.hosts > 1:
        # Python is then not the first process of its container, and can be aborted as elsewhere.
        pod["shareProcessNamespace"] = True
    if not remote:
        # A new volume is root's. One that is the group's already is not gone through each time.
        pod["securityContext"] = {"fsGroup": USER, "fsGroupChangePolicy": "OnRootMismatch"}
        container["volumeMounts"] = [{"name": "sweep", "mountPath": MOUNT}]
        claim = {"claimName": settings.storage}
        pod["volumes"] = [{"name": "sweep", "persistentVolumeClaim": claim}]
    return pod


def _environment(processes: int) -> list[dict[str, Any]]:
    """GKE itself tells every pod its place in a slice, and among slices; jax reads that."""
    # A pod that finds no TPU fails, rather than work on its CPU.
    found: list[dict[str, Any]] = [
        {"name": "JAX_PLATFORMS", "value": "tpu,cpu"},
        {"name": PROCESSES, "value": str(processes)},
    ]
    if processes > 1:
        field = {"fieldPath": "metadata.annotations['jobset.sigs.k8s.io/coordinator']"}
        found += [
            {"name": "LAUNCH_COORDINATOR", "valueFrom": {"fieldRef": field}},
            {"name": "JAX_COORDINATOR_ADDRESS", "value": f"$(LAUNCH_COORDINATOR):{PORT}"},
        ]
    return found


def _processes(settings: JobSets, found: Slice) -> int:
    return settings.slices * found.hosts


def _check_lengths(settings: JobSets, found: Slice, name: str) -> None:
    pod = f"{name}-{JOB}-{settings.slices - 1}-{found.hosts - 1}-xxxxx"
    names = [pod]
    if _processes(settings, found) > 1:
        names.append(f"{name}-{JOB}-0-0.{name}")  # the coordinator, a label of every pod
    longest = max(map(len, names))
    if longest > LONGEST:
        remedy = f"makes names of {longest} characters; DNS allows {LONGEST}: choose a shorter one"
        raise ConfigError("name", settings.name, remedy)


def render(sweep: str, settings: JobSets) -> list[pathlib.Path]:
    """Writes ``jobset/ID.yaml`` in a sweep directory for every trial.

    Raises:
      ConfigError: a setting cannot work; nothing is written then.
    """
    if is_remote(sweep):
        raise ConfigError("sweep", sweep, "must be on this machine to be rendered")
    folder = pathlib.Path(sweep) / FOLDER
    texts = {
        folder / f"{trial.id}.yaml": as_yaml(manifest(trial, settings))
        for trial in read_trials(sweep)
    }
    for path, text in texts.items():
        write_whole(path, text)
    return list(texts)


def as_yaml(content: dict[str, Any]) -> str:
    """A manifest as text; strings that YAML would read otherwise are quoted."""
    return yaml.safe_dump(content, sort_keys=False, width=100)


def submit(sweep: str, kubectl: Sequence[str] = ("kubectl",)) -> None:
    """Applies the rendered manifests of a sweep; those that are there already stay as they are.

    Raises:
      ConfigError: they are not rendered, or kubectl fails or is not there.
    """
    files = [pathlib.Path(sweep) / FOLDER / f"{trial.id}.yaml" for trial in read_trials(sweep)]
    missing = [path for path in files if not path.exists()]
    if missing:
        remedy = f"{len(missing)} trials are not rendered: python -m launch render jobset {sweep}"
        raise ConfigError("sweep", sweep, remedy)
    command = [*kubectl, "apply", *(f"--filename={path}" for path in files)]
    try:
        subprocess.run(command, check=True)
    except FileNotFoundError as error:
        raise ConfigError("kubectl", kubectl[0], "no such command: install it") from error
    except subprocess.CalledProcessError as error:
        raise ConfigError("kubectl", error.returncode, "failed: see what it said above") from error


def add_arguments(command: argparse.ArgumentParser) -> None:
    """The settings as arguments of a command."""
    command.add_argument("--image", required=True, help="of the container: launch/Containerfile")
    command.add_argument(
        "--storage",
        required=True,
        metavar="PLACE",
        help="the sweep directory as pods see it: gs://..., or a PersistentVolumeClaim",
    )
    command.add_argument("--tpu", choices=[*TPUS], default="v5e")
    command.add_argument("--topology", default="", help="such as 2x4 (default: the smallest)")
    command.add_argument("--host-chips", type=int, default=0, help="4: 2x4 on two hosts")
    command.add_argument("--slices", type=int, default=1, help="of a trial")
    command.add_argument("--name", default="sweep", help="what names of JobSets begin with")
    command.add_argument("--queue", default="", help="a Kueue LocalQueue")
    command.add_argument("--priority", default="", help="a Kueue WorkloadPriorityClass")
    command.add_argument("--namespace", default="")
    command.add_argument("--service-account", default="", help="that may use the storage")
    command.add_argument("--spot", action="store_true", help="on Spot nodes")
    command.add_argument("--grace", type=int, default=300, help="seconds to save in (default: 300)")
    command.add_argument("--restarts", type=int, default=100, help="of a trial (default: 100)")
