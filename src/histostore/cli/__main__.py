"""``python -m histostore.cli``."""

import sys

from histostore.cli.main import main

sys.exit(main())
