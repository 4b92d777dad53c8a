"""`python -m harness.report`."""

from harness.report.command import app

app()
