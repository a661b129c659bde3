"""Checks of a deployment that is up: only where COMPOSE says how to speak to it."""

import os

collect_ignore_glob = [] if "COMPOSE" in os.environ else ["test_*.py"]
