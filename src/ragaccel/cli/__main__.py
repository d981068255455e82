"""`python -m ragaccel.cli`."""

from ragaccel.cli import app

app()
