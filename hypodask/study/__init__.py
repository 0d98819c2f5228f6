"""A study as tables: its scans, which of them to process, their results, and volumes of other tools.

====================  =====================================================================
module                what it does
====================  =====================================================================
``cohort``            the table of scans of a study, checked before anything runs
``bids``              finds the scans and covariates of a BIDS dataset for it
``ids``               names of scans, from file names and parts
``tables``            reads CSV, TSV and Parquet files
``landmark_columns``  columns of the table with commissures placed by hand
``problems``          what is wrong with a table, in one message
``planning``          which scans are up to date, and how long the others will take
``results``           cohort and journal as one dataset; its tables; whether all of it agrees
``verification``      what is wrong with the files of an output
``runs``              who works in an output, records of calls, status of every scan
``removal``           removes a participant from an output
``other_tools``       results from volumes that other tools measured
``tool_files``        the files that these tools write
====================  =====================================================================
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
