"""A published run with vectors, made once."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.exports.vector_warehouse import publish_run


@pytest.fixture(scope="session")
def warehouse(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One run of the protocol `caa`; tests only read it."""
    return publish_run(tmp_path_factory.mktemp("exports") / "warehouse").root
