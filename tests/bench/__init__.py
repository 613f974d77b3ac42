"""Measurements, run by hand; they assert nothing about time. Figures stand in docs/benchmarks.md."""
