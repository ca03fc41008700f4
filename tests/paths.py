"""The places of files that tests need."""

from pathlib import Path

ROOT = Path(__file__).parents[1]
TESTS = ROOT / "tests"
DEMO = ROOT / "assets" / "demo"
DIGITS = DEMO / "digits.flac"  # six spoken digits
GOLDEN = TESTS / "golden"  # answers of the reference implementations
CASES = TESTS / "cases"  # files that once failed
