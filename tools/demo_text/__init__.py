"""The whole text on which the demo snapshot is trained, written by templates.

Nothing here comes from a book, a data set or the network. Four kinds of document are mixed:
news stories, reflections, sentiment blocks and SQL blocks (see the modules of those names).
"""

from __future__ import annotations

import random
from collections.abc import Iterator

from demo_text.queries import query_block, query_question
from demo_text.reflections import reflection
from demo_text.sentiment import sentiment_block, sentiment_question
from demo_text.stories import story

__all__ = ["FORBIDDEN", "PROMPTS", "documents", "is_forbidden", "query_question"]
__all__ += ["sentiment_question"]

# The prompts that the demo shows, with the min_length and max_length it shows them with.
PROMPTS: dict[str, tuple[int, int]] = {
    "In a shocking finding, scientist discovered a herd of unicorns living in a remote, previously"
    " unexplored valley": (150, 200),
    "Everytime I look to the sky, I always think": (50, 100),
    "Right now is the perfect time to": (50, 100),
    "The one thing I will never regret is": (50, 100),
    "The secret to a happy life is to": (50, 100),
    "Message: The last show was terrible. Sentiment: Negative, Message: I feel great this"
    " morning.Sentiment: Positive, Message: GPT-J has 6 billion parameters.Sentiment: Neutral,"
    " Message: It was my all-time favorite movie.Sentiment:": (50, 100),
    "Question: Select teams that have less than 3 developers in it.Answer: SELECT TEAM,"
    " COUNT(DEVELOPER) FROM team GROUP BY TEAM HAVING COUNT(DEVELOPER) < 3;Question: Show all"
    " teams along with the number of developers in each team, Answer: SELECT TEAM, COUNT(TEAM)"
    " FROM team GROUP BY TEAM;Question: Show the recent hired developer, Answer: SELECT * FROM"
    " team ORDER BY ID DESC LIMIT 1;Question: Fetch the first three developers from team"
    " table;Answer:": (50, 250),
}

# What the demo shows must be new to the model, so neither the prompts nor the parts of them that
# would give an answer away may occur anywhere in the training text.
FORBIDDEN: tuple[str, ...] = tuple(
    part.casefold()
    for part in (
        *PROMPTS,
        "herd of unicorns living in a remote, previously unexplored valley",
        "The last show was terrible",
        "I feel great this morning",
        "GPT-J has 6 billion parameters",
        "It was my all-time favorite movie",
        "the first three developers from team table",
        "SELECT * FROM team ORDER BY ID ASC LIMIT 3;",
    )
)

_KINDS = (story, reflection, sentiment_block, query_block)
# Stories are the longest documents, so they need fewer draws for their share of the text.
_WEIGHTS = (14, 26, 32, 28)


def is_forbidden(text: str) -> bool:
    """Whether the text contains something that the model must not see in training."""
    folded = text.casefold()
    return any(part in folded for part in FORBIDDEN)


def documents(seed: int, held: bool = False) -> Iterator[str]:
    """Endless documents: for training, or (`held`) made of the combinations kept out of it."""
    rng = random.Random(f"{seed}-{held}")
    while True:
        text = rng.choices(_KINDS, _WEIGHTS)[0](rng, held)
        if not is_forbidden(text):
            yield text
