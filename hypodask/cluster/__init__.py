"""Run the method for every scan of a cohort, anywhere that Dask runs.

Workers write stores and return rows. The client limits how many scans are on the cluster at a time, appends each row to
the journal as it comes in, and at the end makes the results dataset. Nothing is kept in the cluster: when a worker, the
scheduler or this process is lost, the same call goes on where the last one stopped.

A scan that takes longer than its time limit, or that kills every worker that has it, becomes a failed row and is set
aside. If the cluster has workers with the resource ``GPU`` and others with the resource ``CPU``, scans are read,
aligned, measured and written by the ``CPU`` workers, and the networks run on the ``GPU`` workers.

==============  ========================================================================
module          what it does
==============  ========================================================================
``processing``  decides which scans of a cohort are processed, and keeps their rows
``items``       calls any function with any items, without a journal
``work``        processes one scan in a worker: attempts, time limit, log, memory
``networks``    loads the networks in the workers, and runs them on workers with a GPU
``window``      limits the tasks at a time, batches scans, finds which scan kills workers
``connection``  reaches the user's cluster, or starts workers on this machine
``monitoring``  measures memory and time of a scan, and collects its log
==============  ========================================================================
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
