"""`python -m pipeline` is the `steer` command."""

import sys

from pipeline.cli import main

sys.exit(main())
