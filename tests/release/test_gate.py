from ip2p.release.gate import decide


def report(success, *, sdedit=0.2, held_out="same"):
    return {
        "headline": {"success": success},
        "baselines": {"source": {"success": 0.0}, "sdedit": {"success": sdedit}},
        "held_out": held_out,
    }


def test_a_first_editor_that_beats_both_baselines_is_promoted():
    decision = decide(report(0.5), None, margin=0.0)
    assert decision.promoted
    assert "champion: none yet" in decision.reasons


def test_an_editor_below_a_baseline_is_not_and_the_reason_is_kept():
    decision = decide(report(0.1), None, margin=0.0)
    assert not decision.promoted
    assert any("does not beat" in r for r in decision.reasons)


def test_a_champion_is_only_replaced_by_its_equal_or_better():
    assert not decide(report(0.4), report(0.5), margin=0.0).promoted
    assert decide(report(0.5), report(0.5), margin=0.0).promoted
    assert not decide(report(0.5), report(0.5), margin=0.05).promoted


def test_a_champion_measured_elsewhere_does_not_block_and_that_is_said():
    decision = decide(report(0.4), report(0.9, held_out="other"), margin=0.0)
    assert decision.promoted
    assert "not compared" in decision.reasons[-1]
