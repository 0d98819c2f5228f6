from .connection import LOST_WORKER as LOST_WORKER
from .connection import RESTART_SECONDS as RESTART_SECONDS
from .connection import AnyCluster as AnyCluster
from .items import Outcome as Outcome
from .items import each as each
from .processing import plan as plan
from .processing import process as process
