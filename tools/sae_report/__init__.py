"""Computes a report's numbers a second time, in numpy float64 and without the Rust code (see ../check_report.py)."""
