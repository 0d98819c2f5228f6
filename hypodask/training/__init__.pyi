from .config import Architecture as Architecture
from .config import Data as Data
from .config import Folds as Folds
from .config import TrainingConfig as TrainingConfig
from .config import read_config as read_config
from .run import Trained as Trained
from .run import train as train
