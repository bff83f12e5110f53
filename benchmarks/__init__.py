"""Side by side with peers or a bare loop: `python -m benchmarks.NAME --json`. Never part of the tests."""
