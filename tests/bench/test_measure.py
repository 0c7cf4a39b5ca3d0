"""Turns, cold starts, interruptions and failures of a measurement, and what the report says of each."""

from __future__ import annotations

import benching
import pytest

from glmc.bench import energy
from glmc.bench.bound import Traffic
from glmc.bench.markdown import demand, markdown
from glmc.bench.other_load import Look, foreign_share, look, told
from glmc.bench.report import report
from glmc.bench.schema import REPORT, check
from glmc.bench.turns import interleave, order
from glmc.bench.work import Work, digest, works
from glmc.errors import InternalError, PeerFailed, RequestOutOfBounds, UsageError

TWO = {"glmc": benching.steady, "eager": lambda request, token: 2 * benching.steady(request, token)}


def test_everyone_takes_turns_in_an_order_that_shifts():
    _, _, asked = benching.ran(TWO, num_iters=3, warmup=0)
    assert asked[:6] == ["glmc", "eager", "eager", "glmc", "glmc", "eager"]
    assert order(["a", "b", "c"], 2) == ["c", "a", "b"]
    assert interleave({"a": lambda: 1.0, "b": lambda: 2.0}, 2) == {"a": [1.0, 1.0], "b": [2.0, 2.0]}


def test_a_report_holds_what_its_schema_says_and_markdown_shows_it():
    made = benching.reported(TWO, (Work(128, 32), Work(16, 4, 2)))
    check(made, REPORT, "report.json")
    assert made["complete"]
    assert made["noise"] == {"quiet": True, "said": []}
    eager = next(one for one in made["results"] if one["contender"] == "eager")
    assert eager["over_first"]["tpot"]["ratio"] == pytest.approx(2)
    text = markdown(made)
    for said in ("| TTFT | glmc | 50 | 49.38 to 50.62 |", "2 (2 to 2)", "`glmc bench model.glmc`", "dddddd",
                 "| rms_norm | 3 | 3 | 2 | 1 |", "pp16+tg4 b2", "| layer_1 | linear | 2 |", "20"):
        assert said in text


def test_a_share_of_the_bound_is_what_bytes_and_bandwidth_give():
    (found,) = benching.reported({"glmc": benching.steady})["results"]
    moved = benching.TRAFFIC["weight_bytes"] + benching.TRAFFIC["kv_bytes"] * (128 + 16)
    assert found["bound"]["by"] == {"ttft": "arithmetic", "tpot": "memory"}
    assert found["metrics"]["tpot"]["of_bound"] == pytest.approx(moved / 20e9 / 0.010, rel=1e-3)


def test_a_figure_without_what_it_stands_on_is_not_printed():
    made = benching.reported({"glmc": benching.steady})
    for lacking, change in (("baseline", {"bound": None}), ("spread", {"metrics": {"ttft": {"median": 1}}})):
        with pytest.raises(InternalError, match=lacking):
            demand(made, {**made["results"][0], **change})
    with pytest.raises(InternalError, match="command"):
        markdown({**made, "command": ""})


def test_cold_starts_are_split_into_phases():
    found, contenders, _ = benching.ran(TWO)
    made = report(benching.artifact(), (benching.WORK,), found, "glmc bench x", contenders)
    start = made["contenders"][0]["cold_start"]
    assert (start["n"], start["page_cache"]) == (2, "warm")
    assert start["total"]["median"] == pytest.approx(0.02 + 1.0 + 0.1 + 0.5 + 0.01 + 0.05)
    assert list(start["phases"]) == ["process", "import", "open", "weights", "place", "first_token"]


def test_what_was_measured_before_an_interruption_is_kept_and_marked():
    opened = []

    class Interrupting(benching.Planted):
        def ask(self, work):
            if self.count == 5:
                raise KeyboardInterrupt
            return super().ask(work)

    def opening(contender, threads):
        opened.append(Interrupting(contender, benching.Clock(), benching.steady, []))
        return opened[-1]

    found, contenders, _ = benching.ran(TWO, num_iters=10, opening=opening)
    assert found.interrupted == "interrupted after 5 of 10 rounds"
    assert all(one.closed for one in opened)
    made = report(benching.artifact(), (benching.WORK,), found, "glmc bench x", contenders)
    check(made, REPORT, "report.json")
    assert made["complete"] is False
    assert [one["rounds_kept"] for one in made["results"]] == [5, 5]
    assert "partial: interrupted after 5 of 10 rounds" in markdown(made)


def test_an_interruption_before_the_first_request_leaves_nothing_to_report():
    def opening(contender, threads):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        benching.ran(TWO, opening=opening)


def failing(at, name="eager"):
    class Failing(benching.Planted):
        def ask(self, work):
            if self.contender.name == name and self.count == at:
                raise PeerFailed("it fell over", found="status 1")
            return super().ask(work)

    def opening(contender, threads):
        if contender.name == name and at is None:
            raise PeerFailed("it never opened")
        return Failing(contender, benching.Clock(), benching.steady, [])

    return opening


@pytest.mark.parametrize("at", [None, 4])
def test_a_peer_that_fails_is_left_out_with_its_reason(at):
    found, contenders, _ = benching.ran(TWO, opening=failing(at))
    made = report(benching.artifact(), (benching.WORK,), found, "glmc bench x", contenders)
    check(made, REPORT, "report.json")
    assert made["complete"] is False
    assert made["contenders"][1]["failed"]["what"].startswith("it ")
    assert made["results"][0]["rounds_kept"] == 10
    assert "eager was not measured to the end" in markdown(made)


def test_the_artefact_itself_must_not_fail():
    with pytest.raises(PeerFailed, match="never opened"):
        benching.ran(TWO, opening=failing(None, "glmc"))


def test_works_lie_within_the_bounds():
    bounds = {"max_len": 100, "max_batch": 2}
    assert [one.name for one in works([8, 16], [4], [1, 2], bounds)] == ["pp8+tg4", "pp16+tg4", "pp8+tg4 b2", "pp16+tg4 b2"]
    for wrong in (([90], [20], [1]), ([8], [4], [3])):
        with pytest.raises(RequestOutOfBounds):
            works(*wrong, bounds)
    for wrong in (([], [4], [1]), ([8], [1], [1]), ([8], [4], [0])):
        with pytest.raises(UsageError):
            works(*wrong, bounds)


def test_the_digest_is_of_source_and_requests():
    one = [Work(8, 4)]
    assert digest("a", one) == digest("a", [Work(8, 4)])
    assert len({digest("a", one), digest("b", one), digest("a", [Work(9, 4)]), digest("a", [Work(8, 4, 2)])}) == 4
    assert Work(8, 4, 2).prompts(50) == Work(8, 9, 2).prompts(50)
    first, second = Work(8, 4, 2).prompts(50)
    assert first != second
    assert max(first + second) < 50


def test_a_busy_machine_is_told(tmp_path):
    (tmp_path / "stat").write_text("cpu 1 2\n" + "".join(f"cpu{n} 100 0 50 9000 10 0 0 5 0 0\n" for n in range(512)))
    assert look([], tmp_path).busy > 0
    assert look([], tmp_path / "absent") is None
    assert foreign_share(Look(0, 10, 10), Look(1, 10.0, 10.0)) == 0
    assert foreign_share(Look(0, 10, 10), Look(1, 10.5, 10.5)) == 0
    assert foreign_share(Look(0, 10, 10), Look(1, 10.5, 10.0)) > 0
    assert foreign_share(None, None) is None
    assert told([0.2, 0.3, 0.4], [1], [2])["quiet"] is False
    assert told([0.0, 0.01, 0.9], [1], [2])["quiet"] is True
    assert told([None], [1], [2])["quiet"] is None


def test_under_load_the_report_says_so():
    found, contenders, _ = benching.ran({"glmc": benching.steady})
    found.foreign = [0.4] * 10
    found.probes[3] = {**found.probes[3], "read_gb_per_second": 5.0}
    made = report(benching.artifact(), (benching.WORK,), found, "glmc bench x", contenders)
    assert made["noise"]["quiet"] is False
    assert "others had 40% of the cores" in markdown(made)
    assert "read bandwidth lay between 5 and 20" in markdown(made)


def test_a_prompt_that_the_server_counts_otherwise_is_told():
    found, contenders, _ = benching.ran(TWO)
    found.ready["eager"]["facts"]["prompt_tokens"] = 133
    made = report(benching.artifact(), (benching.WORK,), found, "glmc bench x", contenders)
    assert "eager counted 133 tokens in its last prompt, which were to be 128" in made["noise"]["said"]


def test_the_bound_of_sparse_attention_is_of_what_is_attended():
    dense, sparse = (Traffic(**benching.TRAFFIC, most_attended=most) for most in (0, 50))
    assert sparse.decode(Work(20, 2)) == dense.decode(Work(20, 2))
    assert sparse.decode(Work(400, 2)) == dense.decode(Work(49, 2))
    assert sparse.prefill(Work(400, 2))[1] < dense.prefill(Work(400, 2))[1]


def test_energy_is_read_where_it_is_counted(tmp_path):
    assert energy.counters(tmp_path / "absent") == []
    for name, now in (("intel-rapl:0", 900), ("intel-rapl:0:0", 5), ("intel-rapl:1", 50)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "energy_uj").write_text(f"{now}\n")
        (tmp_path / name / "max_energy_range_uj").write_text("1000\n")
    found = energy.counters(tmp_path)
    assert [zone.name for zone in found] == ["intel-rapl:0", "intel-rapl:1"]
    before = energy.read(found)
    (tmp_path / "intel-rapl:0" / "energy_uj").write_text("100\n")
    (tmp_path / "intel-rapl:1" / "energy_uj").write_text("150\n")
    assert energy.joules(found, before, energy.read(found)) == pytest.approx((200 + 100) / 1e6)
