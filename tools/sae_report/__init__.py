"""A report's numbers, computed a second time: numpy and float64, nothing of the Rust code (see ../check_report.py)."""
