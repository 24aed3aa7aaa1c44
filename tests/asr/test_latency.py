import math

import pytest

from asr.errors import DataError
from asr.live import Response
from asr.score.latency import Delays, StreamStats, UtteranceTiming, measure_latency, summarize


def test_summary_of_known_numbers():
    found = summarize([0.3, 0.1, 0.2, 0.5, 0.4])
    assert found == Delays(5, pytest.approx(0.3), pytest.approx(0.3), pytest.approx(0.46), 0.5)
    assert str(found) == "mean 300 ms, median 300 ms, p90 460 ms, worst 500 ms (5)"
    assert str(summarize([])) == "not measured"
    assert math.isnan(summarize([]).p90_s)


def test_delays_by_definition():
    report = measure_latency(
        [
            UtteranceTiming([0.5, 1.0], [0.6, 1.3]),
            UtteranceTiming([0.4, 0.9, 1.5], [0.2, 1.6]),  # one word lost: first and last still count
        ]
    )
    assert report.first_token.mean_s == pytest.approx((0.1 - 0.2) / 2)
    assert report.final_token.mean_s == pytest.approx((0.3 + 0.1) / 2)
    assert report.words.count == 2
    assert report.words.mean_s == pytest.approx(0.2)
    assert report.silent == 0
    assert report.lines()[0].startswith("first-token delay  mean -50 ms")


def test_utterances_without_words_or_without_output():
    report = measure_latency(
        [UtteranceTiming([], [0.3]), UtteranceTiming([], []), UtteranceTiming([0.5], [])]
    )
    assert (report.first_token.count, report.silent) == (0, 1)
    assert report.lines()[-1] == "nothing recognised in 1 utterances"


@pytest.mark.parametrize("times", [[0.5, 0.4], [math.nan], [math.inf]])
def test_impossible_times_name_the_utterance(times):
    with pytest.raises(DataError, match="utterance u7: expected finite, increasing appearances"):
        measure_latency([UtteranceTiming([0.5], times, id="u7")])
    with pytest.raises(DataError, match="word ends"):
        measure_latency([UtteranceTiming(times, [0.5])])


def test_stream_stats_add_up():
    stats = StreamStats(state_bytes=1000).chunk(0.2, 0.01).chunk(0.2, 0.03)
    assert stats.real_time_factor == pytest.approx(0.1)
    assert stats.mean_chunk_s == pytest.approx(0.02)
    total = stats + StreamStats(1.6, 0.06, 8, 0.02, 500)
    assert total == StreamStats(pytest.approx(2.0), pytest.approx(0.1), 10, 0.03, 1000)
    assert str(total) == (
        "real-time factor 0.050 (0.10 s for 2.0 s of audio, 10 chunks, worst 30 ms), 1000 bytes of state"
    )
    assert math.isnan(StreamStats().real_time_factor)
    assert "real-time" not in str(StreamStats())
    said = "first token 100 ms, final 200 ms and 30 ms of computing"
    assert str(Response(0.1, 0.2, 0.03, math.nan)) == said
    assert str(Response(0.1, 0.2, 0.03, 0.5)) == f"{said}, real-time factor 0.500"
    assert math.isnan(StreamStats().mean_chunk_s)
