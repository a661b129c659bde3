"""What the fork server imports, see `simulations.nursery`: nothing here may ask for a GPU."""

from fedlora import quantised

quantised.late()

import clients.app  # noqa: E402, F401
