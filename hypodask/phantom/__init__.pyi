from .cohort import simulate_cohort as simulate_cohort
from .head import HeadOptions as HeadOptions
from .head import simulate_head as simulate_head
from .hypothalamus import template_hypothalamus as template_hypothalamus
from .truth import Truth as Truth
