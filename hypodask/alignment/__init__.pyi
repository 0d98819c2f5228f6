from .acpc import align as align
from .pose import Alignment as Alignment
from .pose import acpc_frame as acpc_frame
