"""The built-in model answers at least 95 of 100 fresh questions from documents of 4,096 and of 8,192 tokens."""
import pytest
from conftest import ROOT, SANITIZED, result


@pytest.mark.skipif(SANITIZED, reason="takes long")
def test_recall(built_in):
    if not (ROOT / "share/linnet/document.txt").exists():
        pytest.skip("the built-in document is not in this tree")
    told = result("eval", "recall", "-n", "100", "--length", "4096,8192")
    for row in told["rows"]:
        assert row["questions"] == 100
        assert row["accuracy"] >= 0.95, row
