"""`python -m prunus` runs the command line."""

import sys

from prunus.cli import main

sys.exit(main())
