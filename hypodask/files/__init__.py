"""Files and folders, on a disk or in an object store: where they are, how they are written, and who may write them.

=============  ======================================================================
module         what it does
=============  ======================================================================
``location``   a path or a URL; the one writer of files
``digests``    SHA-256 digests; files with their digest in a second file beside them
``encoding``   JSON files
``leases``     locks that expire, for processes that write into one output
=============  ======================================================================
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
