"""Run the method for every scan of a cohort, anywhere that Dask runs.

Workers write stores and return rows; the client keeps a window of scans in flight, appends each row to
the journal as it comes in, and at the end makes the results dataset. Nothing is kept in the cluster:
when a worker, the scheduler or this process is lost, the same call goes on where the last one stopped.

A scan that takes longer than its time limit, or kills every worker that has it, becomes a failed row and is set aside.
Where the cluster has workers with the resource ``GPU`` and others with the resource ``CPU``, scans are read, aligned,
measured and written by the latter, and the networks run on the former.

==============  ===========================================================================
module          what is decided there
==============  ===========================================================================
``processing``  which scans of a cohort are sent off, and what becomes of their rows
``items``       the same for any function of any items, which keeps no journal
``work``        what a worker does with one scan: attempts, time limit, log, memory
``networks``    how networks come to the workers, and to those with a GPU
``window``      how many tasks are in flight, how many scans a task has, whom a death is blamed on
``connection``  the user's cluster, or workers on this machine
==============  ===========================================================================
"""

from hypodask.cluster.connection import LOST_WORKER, RESTART_SECONDS
from hypodask.cluster.items import Outcome, each
from hypodask.cluster.processing import plan, process

__all__ = ["LOST_WORKER", "RESTART_SECONDS", "Outcome", "each", "plan", "process"]
