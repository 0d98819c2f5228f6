"""Where is the head, and how is it turned? From a scan to ``acpc_from_scanner``."""

from hypodask.alignment.acpc import align
from hypodask.alignment.pose import Alignment, acpc_frame

__all__ = ["Alignment", "acpc_frame", "align"]
