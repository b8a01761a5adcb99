"""What a search of a store answers to what a person types."""

from __future__ import annotations

from pathlib import Path

import pytest

from streamsplit.errors import ConfigError
from streamsplit.server.query import Query, search_store
from streamsplit.server.store import EmbeddingStore


@pytest.mark.parametrize("number", ["0", "7", "9" * 18, "9" * 19, "9" * 5000])
def test_a_number_that_is_no_windows_is_named(tmp_path: Path, number: str) -> None:
    EmbeddingStore(tmp_path / "embeddings.db").close()
    with pytest.raises(ConfigError, match=f"window {number}: .* holds no such number"):
        search_store(tmp_path / "embeddings.db", Query(number))
