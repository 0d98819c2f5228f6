from .landmarks import Landmarks as Landmarks
from .landmarks import read_landmarks as read_landmarks
from .read import read_label_map as read_label_map
from .read import read_scan as read_scan
from .scan import Scan as Scan
from .template import MNI152 as MNI152
from .template import Template as Template
