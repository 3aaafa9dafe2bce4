"""The cluster launcher file passes Ray's own validator, and keeps the job port closed."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

FILE = Path(__file__).resolve().parents[1] / "cluster.yaml"


def validate(config):
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(config))


def test_ray_accepts_the_cluster_file():
    validate(yaml.safe_load(FILE.read_text()))


def test_ray_would_refuse_a_misspelt_key():
    config = yaml.safe_load(FILE.read_text())
    config["idle_timeout_minute"] = config.pop("idle_timeout_minutes")
    with pytest.raises(Exception, match="idle_timeout_minute"):
        validate(config)


def test_workers_start_at_none_and_the_dashboard_listens_on_loopback():
    config = yaml.safe_load(FILE.read_text())
    assert all(kind["min_workers"] == 0 for kind in config["available_node_types"].values())
    assert any("--dashboard-host=127.0.0.1" in command for command in config["head_start_ray_commands"])
