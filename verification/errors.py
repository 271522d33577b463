"""Errors of the verification package: one base; a verifier raises, it never answers False."""


class VerificationError(Exception):
    """Base of every error this package raises on purpose."""


class RejectedError(VerificationError):
    """What was claimed does not hold: a proof, a statement or a delivery from outside is wrong."""


class StatementError(RejectedError, ValueError):
    """A statement, a shape or a matrix that nothing could mean; says what, got, expected."""


class ProofRejectedError(RejectedError):
    """A proof that does not show its statement."""


class DeliveryError(RejectedError):
    """Delivered weights are malformed, or are not what the offer committed to."""


class PolicyError(RejectedError):
    """A true statement that this node will not take: zero, far too large, too high a rank."""


class UnavailableError(VerificationError):
    """Nothing was decided: a library, a reference string, the disk or the time is lacking."""
