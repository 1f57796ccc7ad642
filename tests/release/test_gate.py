from ip2p.release.gate import Policy, decide

TYPES = ["season"] * 20 + ["count"] * 20


def report(success, *, sdedit=0.2, held_out="same", stayed=0.9, types=TYPES):
    """An evaluation in which the first edits of each type succeed."""
    shares = success if isinstance(success, dict) else dict.fromkeys(set(types), success)
    done = [float(types[:i].count(t) < shares[t] * types.count(t)) for i, t in enumerate(types)]
    kept = [float(i < stayed * len(types)) for i in range(len(types))]
    return {
        "headline": {"success": sum(done) / len(done)},
        "baselines": {"source": {"success": 0.0}, "sdedit": {"success": sdedit}},
        "held_out": held_out,
        "rows": {"success": done, "stayed": kept},
        "edit_types": types,
    }


def test_a_first_editor_that_beats_both_baselines_is_promoted():
    decision = decide(report(0.5), None, Policy())
    assert decision.promoted
    assert "champion: none yet" in decision.reasons


def test_what_is_no_better_than_it_came_from_may_go_but_not_what_is_surely_worse():
    came = report(0.5) | {"paired": {"previous": {"success": {"difference": -0.02, "low": -0.05, "high": 0.01}}}}
    came["baselines"]["previous"] = {"success": 0.52}
    assert decide(came, None, Policy()).promoted
    came["paired"]["previous"]["success"] = {"difference": -0.05, "low": -0.08, "high": -0.02}
    decision = decide(came, None, Policy())
    assert not decision.promoted
    assert "previous: success -0.050 [-0.080, -0.020]: surely worse" in decision.reasons


def test_an_editor_below_a_baseline_is_not_and_the_reason_is_kept():
    decision = decide(report(0.1), None, Policy())
    assert not decision.promoted
    assert any("does not beat" in r for r in decision.reasons)


def test_a_champion_is_replaced_by_its_equal_or_surely_better_but_not_by_a_lucky_one():
    assert decide(report(0.5), report(0.5), Policy()).promoted
    assert decide(report(0.7), report(0.5), Policy()).promoted
    assert not decide(report(0.4), report(0.5), Policy()).promoted
    assert not decide(report(0.5), report(0.5), Policy(margin=0.05)).promoted
    # as many gained as lost, but one: better on average, not surely so
    lucky = report(0.5)
    lucky["rows"]["success"] = list(reversed(lucky["rows"]["success"]))
    assert not decide(lucky, report(0.475), Policy(confidence=0.95)).promoted


def test_who_preserves_less_is_not_promoted():
    decision = decide(report(0.7, stayed=0.5), report(0.5), Policy())
    assert not decision.promoted
    assert any("stayed -0.400" in r for r in decision.reasons)


def test_an_edit_type_may_not_collapse():
    decision = decide(report({"season": 1.0, "count": 0.1}), report({"season": 0.2, "count": 0.6}), Policy())
    assert not decision.promoted
    assert "edit types: count collapsed" in decision.reasons


def test_a_champion_measured_elsewhere_shuts_the_gate_and_that_is_said():
    decision = decide(report(0.9), report(0.4, held_out="other"), Policy())
    assert not decision.promoted
    assert "not compared" in decision.reasons[-1]


def test_of_very_few_edits_of_a_type_nothing_is_said():
    types = [*TYPES, "typography", *["move"] * 7]
    better = {"season": 1.0, "count": 1.0, "typography": 0.0, "move": 0.0}
    assert decide(
        report(better, types=types), report({"season": 0.2, "count": 0.2, "typography": 1.0, "move": 1.0}, types=types), Policy()
    ).promoted


def test_a_type_of_which_the_champion_does_nothing_does_not_collapse_by_a_hair():
    ours, theirs = report({"season": 1.0, "count": 0.0}), report({"season": 0.2, "count": 0.0})
    for told, value in ((ours, -0.011), (theirs, -0.010)):
        told["rows"]["success"][20:] = [value] * 20
    assert decide(ours, theirs, Policy()).promoted


def test_edits_that_the_champion_was_trained_on_are_left_out():
    ours, theirs = report(0.6), report({"season": 1.0, "count": 0.5})
    assert not decide(ours, theirs, Policy()).promoted
    decision = decide(ours, theirs | {"taught": list(range(20))}, Policy())
    assert decision.promoted and "champion: was trained on 20 of these edits, which are left out" in decision.reasons
    assert not decide(ours, theirs | {"taught": list(range(40))}, Policy()).promoted
