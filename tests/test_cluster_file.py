"""The cluster launcher file passes Ray's own validator, has the node types the models need, installs this project at
this version, and keeps the job port closed."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
FILE = ROOT / "cluster.yaml"


@pytest.fixture
def config() -> dict[str, Any]:
    return yaml.safe_load(FILE.read_text())


def validate(config):
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(config))


def test_ray_accepts_the_cluster_file(config):
    validate(config)


@pytest.mark.parametrize(
    ("path", "misspelt"),
    [
        (("idle_timeout_minutes",), "idle_timeout_minute"),
        (("available_node_types", "gpu_small", "max_workers"), "max_worker"),
    ],
)
def test_ray_would_refuse_a_misspelt_key(config, path, misspelt):
    place = config
    for key in path[:-1]:
        place = place[key]
    place[misspelt] = place.pop(path[-1])
    with pytest.raises(Exception, match=misspelt):
        validate(config)


def test_workers_start_at_none_grow_to_a_bound_and_go_when_idle(config):
    kinds = config["available_node_types"]
    workers = {name: kind for name, kind in kinds.items() if name != config["head_node_type"]}
    assert all(kind["min_workers"] == 0 for kind in kinds.values())
    assert all(kind["max_workers"] >= 1 for kind in workers.values())
    assert sum(kind["max_workers"] for kind in workers.values()) <= config["max_workers"]
    assert config["idle_timeout_minutes"] > 0


def test_the_head_has_no_gpu_and_workers_fit_the_models(config):
    """What a rank needs is what `steer plan data/studies/qwen3.toml` says (GB on the fullest rank)."""
    kinds = config["available_node_types"]
    assert "GPU" not in kinds["head"]["resources"]
    assert kinds["head"]["resources"]["CPU"] == 0
    gpus = tomllib.loads((ROOT / "data" / "gpus.toml").read_text())
    memory = {"L40S": gpus["L40S"]["memory_gb"], "H100": gpus["H100-80GB"]["memory_gb"]}
    needs = {"gpu_small": (1, 32.1), "gpu_32b": (1, 68.8), "gpu_235b_spot": (8, 66.4), "gpu_235b_on_demand": (8, 66.4)}
    for name, (ranks, gb) in needs.items():
        resources = kinds[name]["resources"]
        (accelerator,) = [key.split(":")[1] for key in resources if key.startswith("accelerator_type:")]
        assert resources["GPU"] == ranks
        assert memory[accelerator] >= gb


def test_the_large_gang_runs_on_spot_first_and_on_demand_else(config):
    spot = config["available_node_types"]["gpu_235b_spot"]
    on_demand = config["available_node_types"]["gpu_235b_on_demand"]
    assert spot["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert "InstanceMarketOptions" not in on_demand["node_config"]
    assert spot["node_config"]["InstanceType"] == on_demand["node_config"]["InstanceType"]
    assert spot["priority"] > on_demand["priority"]


def test_every_node_installs_this_project_at_this_version_and_one_ray(config):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (install,) = [line for line in config["setup_commands"] if "pip install" in line]
    assert f"steerability-{project['version']}-py3-none-any.whl" in install
    ray = re.search(r"ray\[([\w,]+)\]==(\d+)\.(\d+)\.\d+", install)
    assert ray
    assert {"data", "default", "client"} <= set(ray[1].split(","))
    (wanted,) = [each for each in project["dependencies"] if each.startswith("ray[")]
    low, high = re.findall(r"[><]=?(\d+)\.(\d+)", wanted)
    assert tuple(map(int, low)) <= (int(ray[2]), int(ray[3])) < tuple(map(int, high))


def test_weights_and_results_are_mounted_on_every_node(config):
    commands = " ".join(config["setup_commands"])
    assert "mount-s3 --read-only" in commands
    assert "FILE_SYSTEM:/ /shared" in commands


def test_the_job_port_is_closed(config):
    (head,) = [line for line in config["head_start_ray_commands"] if "ray start" in line]
    (worker,) = [line for line in config["worker_start_ray_commands"] if "ray start" in line]
    assert "--dashboard-host=127.0.0.1" in head
    assert "RAY_AUTH_MODE=token" in head
    assert "RAY_AUTH_MODE=token" in worker
    assert config["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    assert "security_group" not in config["provider"]  # Ray's own lets in SSH alone
    assert not any(
        "SecurityGroup" in key for kind in config["available_node_types"].values() for key in kind["node_config"]
    )
