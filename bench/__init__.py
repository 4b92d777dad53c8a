"""The benchmarks: `python -m bench`, one section after another; figures by machine are in README.md."""
