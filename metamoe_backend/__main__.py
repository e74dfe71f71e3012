"""`python -m metamoe_backend VERB …`."""

import sys

from metamoe_backend.cli import main

sys.exit(main())
