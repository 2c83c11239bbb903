"""Public test kit: shared by the tests, the demo and the benchmarks, and open to the tests of others."""
