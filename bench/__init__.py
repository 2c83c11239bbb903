"""Benchmarks: `./scripts/bench NAME` runs bench/NAME.py; docs/performance.md says what they measure."""
