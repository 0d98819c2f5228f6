from .augmentation import Variation as Variation
from .loop import Schedule as Schedule
from .loop import learn as learn
from .losses import cross_entropy as cross_entropy
from .losses import cross_entropy_jaccard_loss as cross_entropy_jaccard_loss
from .losses import segmentation_loss as segmentation_loss
from .teacher import ConsensusOptions as ConsensusOptions
from .teacher import consensus as consensus
