"""The tutorial's own queries, verbatim, sent with curl as it sends them."""

from __future__ import annotations

import json
import subprocess
from typing import Any

import pytest
from transformers import AutoTokenizer

from gptj_predictor.demo import DEMO_SNAPSHOT
from tests.support.servers import RunningServer

pytestmark = pytest.mark.slow  # long texts

UNICORNS = (
    '{"parameters": {"min_length":150,"max_length":200}, "instances": ["In a shocking finding, '
    "scientist discovered a herd of unicorns living in a remote, previously unexplored "
    'valley"]}'
)
BATCH = (
    '{"parameters": {"min_length":50,"max_length":100}, "instances": ["Everytime I look to the '
    'sky, I always think", "Right now is the perfect time to", "The one thing I will never '
    'regret is", "The secret to a happy life is to"]}'
)
SENTIMENT = (
    '{"parameters": {"min_length":50,"max_length":100}, "instances": ["Message: The last show '
    "was terrible. Sentiment: Negative, Message: I feel great this morning.Sentiment: Positive, "
    "Message: GPT-J has 6 billion parameters.Sentiment: Neutral, Message: It was my all-time "
    'favorite movie.Sentiment:"]}'
)
SQL = (
    '{"parameters": {"min_length":50,"max_length":250}, "instances": ["Question: Select teams '
    "that have less than 3 developers in it.Answer: SELECT TEAM, COUNT(DEVELOPER) FROM team "
    "GROUP BY TEAM HAVING COUNT(DEVELOPER) < 3;Question: Show all teams along with the number "
    "of developers in each team, Answer: SELECT TEAM, COUNT(TEAM) FROM team GROUP BY "
    "TEAM;Question: Show the recent hired developer, Answer: SELECT * FROM team ORDER BY ID "
    'DESC LIMIT 1;Question: Fetch the first three developers from team table;Answer:"]}'
)


def curl(server: RunningServer, body: str) -> Any:
    url = f"http://127.0.0.1:{server.port}{server.predict_path}"
    done = subprocess.run(
        ["curl", "--silent", "--fail-with-body", "-d", body, url],
        capture_output=True,
        check=True,
        text=True,
    )
    answer = json.loads(done.stdout)
    assert list(answer) == ["predictions"]
    return answer["predictions"]


def prompts(body: str) -> list[str]:
    return json.loads(body)["instances"]


def tokens(text: str) -> int:
    return len(AutoTokenizer.from_pretrained(DEMO_SNAPSHOT)(text)["input_ids"])


def test_one_instance_is_flat_and_as_long_as_asked(server: RunningServer) -> None:
    predictions = curl(server, UNICORNS)
    assert [list(one) for one in predictions] == [["generated_text"]]
    text = predictions[0]["generated_text"]
    assert text.startswith(prompts(UNICORNS)[0])
    assert 150 <= tokens(text) <= 200


def test_four_instances_are_four_lists_in_order(server: RunningServer) -> None:
    predictions = curl(server, BATCH)
    assert len(predictions) == 4
    for prompt, sequences in zip(prompts(BATCH), predictions, strict=True):
        assert [list(one) for one in sequences] == [["generated_text"]]
        assert sequences[0]["generated_text"].startswith(prompt)
        assert 50 <= tokens(sequences[0]["generated_text"]) <= 100


def test_sentiment_is_answered(server: RunningServer) -> None:
    """Most of ten samples at the default temperature say Positive; greedy says it too."""
    prompt = prompts(SENTIMENT)[0]
    answers = [curl(server, SENTIMENT)[0]["generated_text"] for _ in range(10)]
    assert all(answer.startswith(prompt) for answer in answers)
    assert sum(answer.startswith(f"{prompt} Positive") for answer in answers) > 5
    greedy = server.predict([prompt], temperature=0, max_length=100, return_full_text=False)
    assert greedy[0]["generated_text"].startswith(" Positive")


def test_sql_is_answered_with_sql(server: RunningServer) -> None:
    prompt = prompts(SQL)[0]
    answer = curl(server, SQL)[0]["generated_text"]
    assert answer.startswith(f"{prompt} SELECT ")
    assert " FROM " in answer[len(prompt) :].split(";")[0]


def test_prompts_leave_room_for_an_answer() -> None:
    """The demo's tokenizer keeps every prompt well within the length that the tutorial gives."""
    for body in (UNICORNS, BATCH, SENTIMENT, SQL):
        longest = json.loads(body)["parameters"]["max_length"]
        assert all(tokens(prompt) <= 0.75 * longest for prompt in prompts(body))
