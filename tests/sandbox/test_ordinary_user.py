"""The same attempts from a node that an ordinary user runs: no user of its own for a worker, no group to limit it."""

import os

import pytest

from tests.sandbox import gate
from tests.worker.test_isolation import AS_A_USER, ROOT, as_somebody

RUN = f"""
import sys, pytest
sys.exit(pytest.main(["-q", "--tb=short", "-p", "no:cacheprovider", {gate.ATTEMPTS!r}]))
"""


@pytest.mark.long
@pytest.mark.skipif(not ROOT, reason="needs root to become someone else")
def test_an_ordinary_users_worker_gets_no_further(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    monkeypatch.delenv("PYTEST_CURRENT_TEST", raising=False)
    assert os.environ.get("MERCAT_TEST_WITHOUT_LAYER") is None
    said = " ".join(as_somebody(RUN, (), AS_A_USER, within_s=110))
    assert "failed" not in said
    assert "error" not in said
