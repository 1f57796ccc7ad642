from ip2p.dataset.rounds import Progress, next_samples
from ip2p.params import PairsParams


def drive(section, keep, batch, passes):
    """Samples made of each triplet when `passes(triplet, number)` says which pass."""
    progress = [Progress(n) for n in range(3)]
    made = []
    while chosen := next_samples(progress, section, keep, batch):
        assert len(chosen) <= batch and len(set(chosen)) == len(chosen)
        for triplet, number in chosen:
            progress[triplet].tried += 1
            progress[triplet].passed += passes(triplet, number)
        made += chosen
    return [sorted(n for t, n in made if t == triplet) for triplet in range(3)]


def test_best_of_n_makes_every_sample_once():
    assert drive(PairsParams(samples=5), 1, 4, lambda t, n: True) == [list(range(5))] * 3


def test_adaptive_stops_when_enough_pass_or_passing_is_hopeless():
    section = PairsParams(samples=20, strategy="adaptive", patience=6)
    easy, hard, hopeless = drive(section, 2, 4, lambda t, n: t == 0 or (t == 1 and n % 3 == 2))
    assert 2 <= len(easy) <= 4
    assert 6 <= len(hard) <= 9
    assert len(hopeless) == 6


def test_adaptive_never_exceeds_the_most_samples():
    section = PairsParams(samples=3, strategy="adaptive", patience=50)
    assert drive(section, 4, 8, lambda t, n: False) == [list(range(3))] * 3
