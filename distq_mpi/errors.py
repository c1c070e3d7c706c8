"""The errors of distq_mpi: one root, one leaf per kind of mistake, one exit code per leaf."""


class DistqError(Exception):
    """Anything distq_mpi refuses or cannot finish; its text is what the user reads, once."""

    exit_code = 1
    agreed = False
    """Whether every rank raises it at the same place; else the rank that does must end the job."""


class ConfigError(DistqError):
    """A configuration or command line that cannot be run as written."""

    exit_code = 2


class ModelError(DistqError):
    """An environment that is unknown, or whose numbers are not a Markov decision process."""

    exit_code = 2


class FileError(DistqError):
    """A file or directory that cannot be read, written or trusted."""

    exit_code = 1


class DivergedError(DistqError):
    """Learning produced numbers that are not finite."""

    exit_code = 3


class QuorumLost(DistqError):
    """Too few ranks are left to go on alone; the run can be resumed."""

    exit_code = 75
    agreed = True


class Interrupted(KeyboardInterrupt):
    """An interrupt that a signal brought while a user's environment ran, which may raise
    KeyboardInterrupt itself: that one is a mistake of the environment."""


class RanksLost(Exception):
    """Ranks were lost in a message: no mistake, the run recovers from it (`Transport.recover`)."""
