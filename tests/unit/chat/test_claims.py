"""Claims keep two from asking the same, and end by themselves."""

from ka2l_ray.chat.claims import Claims


def test_one_owner_at_a_time_and_no_claim_outlives_its_lease() -> None:
    now = [0.0]
    claims = Claims(clock=lambda: now[0])
    assert claims.take("q", "a", lease_s=10)
    assert not claims.take("q", "b", lease_s=10)
    assert claims.take("other", "b", lease_s=10)
    now[0] = 9.0
    assert claims.take("q", "a", lease_s=10), "its owner may prolong it"
    now[0] = 18.0
    assert not claims.take("q", "b", lease_s=10)
    now[0] = 19.0
    assert claims.take("q", "b", lease_s=10), "the first owner is gone"
    claims.leave("q", "a")
    assert not claims.take("q", "a", lease_s=10), "only its owner leaves a claim"
    claims.leave("q", "b")
    assert claims.take("q", "a", lease_s=10)
