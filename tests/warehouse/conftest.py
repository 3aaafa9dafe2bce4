"""Fixtures of the warehouse tests: an empty warehouse, and a study with planted effects."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.warehouse.manifest import Warehouse
from tests.warehouse.planted import PlantedStudy, publish_planted


@pytest.fixture(scope="session")
def planted(tmp_path_factory: pytest.TempPathFactory) -> PlantedStudy:
    """A published study. Tests that change a warehouse take `fresh` instead."""
    return publish_planted(PlantedStudy(tmp_path_factory.mktemp("planted") / "warehouse"))


@pytest.fixture
def fresh(tmp_path: Path) -> Callable[..., PlantedStudy]:
    """Publishes a study of its own for one test."""

    def make(**changes: object) -> PlantedStudy:
        return publish_planted(PlantedStudy(tmp_path / "warehouse", **changes))  # type: ignore[arg-type]

    return make


@pytest.fixture
def wh(tmp_path: Path) -> Warehouse:
    return Warehouse.create(tmp_path / "warehouse")
