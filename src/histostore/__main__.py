"""``python -m histostore``."""

import sys

from histostore.cli.main import main

sys.exit(main())
