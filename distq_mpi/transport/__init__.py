"""Messages between ranks over an owned duplicate of the communicator. The only door to mpi4py.

Every public method is COLLECTIVE unless it says otherwise. Setup may send pickled objects; the
round loop sends buffers only.
"""

from distq_mpi.transport.mail import Mail, Neighbours, Post
from distq_mpi.transport.memory import HostMemory
from distq_mpi.transport.ranks import Transport, abort_on_exception, library
from distq_mpi.transport.survival import Member

__all__ = [
    "HostMemory", "Mail", "Member", "Neighbours", "Post", "Transport", "abort_on_exception",
    "library",
]  # fmt: skip
