"""`python -m harness.report`."""

from harness.report.command import app
from harness.terminal import enter

enter(app)
