"""`python -m prunus` is the command line."""

import sys

from prunus.cli import main

sys.exit(main())
