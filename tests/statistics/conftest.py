"""The warehouse fixtures, for statistics over them."""

from tests.warehouse.conftest import planted, wh

__all__ = ["planted", "wh"]
