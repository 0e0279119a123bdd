"""Numbers that depend on names only, so that a choice is the same wherever and however often it is made.

In: a salt and an id. Out: a uniform number. Refuses to know: what is chosen.
"""

import hashlib


def uniform(salt: str, question_id: str) -> float:
    """A uniform number in [0, 1) that depends only on the arguments (64 bits of BLAKE2b)."""
    digest = hashlib.blake2b(f"{salt}\x1f{question_id}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64
