"""hypodask."""
