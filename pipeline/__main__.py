"""`python -m pipeline` is the `steer` command."""

from pipeline.cli import main

main()
