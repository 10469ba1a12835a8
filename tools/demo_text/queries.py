"""Few-shot blocks of questions about a table, each answered with one line of SQL.

Every question has exactly one right answer, so that exact-match accuracy means something.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from demo_text.grammar import fill, is_held_out

# Groups of people with the people in them, and collections with the things in them. The name
# of the group is also the name of the table.
PEOPLE_GROUPS = (
    "team",
    "department",
    "company",
    "school",
    "club",
    "office",
    "class",
    "band",
    "hospital",
    "project",
    "league",
    "group",
)
PEOPLE = (
    "developer",
    "employee",
    "student",
    "teacher",
    "player",
    "doctor",
    "member",
    "manager",
    "engineer",
    "worker",
    "customer",
    "writer",
    "driver",
    "artist",
)
THING_GROUPS = (
    "store",
    "library",
    "museum",
    "market",
    "shop",
    "garage",
    "catalog",
    "collection",
    "playlist",
    "warehouse",
)
THINGS = (
    "product",
    "book",
    "painting",
    "car",
    "order",
    "song",
    "movie",
    "ticket",
    "phone",
    "item",
)
PEOPLE_COLUMNS = ("salary", "age", "score", "bonus", "height")
THING_COLUMNS = ("price", "year", "weight", "rating", "size")
PEOPLE_WORDS = (("city", ("London", "Paris", "Berlin", "Rome", "Tokyo", "Madrid")),)
THING_WORDS = (("color", ("red", "blue", "green", "black", "white", "yellow")),)
NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
COMPARISONS = (
    ("less than", "<"),
    ("fewer than", "<"),
    ("more than", ">"),
    ("at least", ">="),
    ("at most", "<="),
    ("exactly", "="),
)
AGGREGATES = (
    ("average", "AVG"),
    ("highest", "MAX"),
    ("lowest", "MIN"),
    ("total", "SUM"),
    ("maximum", "MAX"),
    ("minimum", "MIN"),
)

SHOW = "[Show|Select|List|Fetch|Get|Find|Show me|Give me|Display]"
# "from team table" in its many forms; {maybe} leaves the table to the questions before.
FROM = "[from|in] [{t} table|the {t} table|the {t}|{t}|table {t}]"
# (question, answer). {t} table, {ts} tables, {p} member, {ps} members, {T}/{P} columns, {c}/{C}
# a number column, {k} a number, {K} its digits, {v} a larger number, {cmp}/{op} a comparison,
# {agg}/{AGG} an aggregate, {q}/{Q} a text column with its value {val}.
PATTERNS = (
    (
        f"{SHOW} [all |the |]{{ts}} [that have|with|which have] {{cmp}} {{k}} {{ps}}[| in it]",
        "SELECT {T}, COUNT({P}) FROM {t} GROUP BY {T} HAVING COUNT({P}) {op} {K};",
    ),
    (
        f"{SHOW} [all|the] {{ts}} [along with|with|and] the number of {{ps}} in each {{t}}",
        "SELECT {T}, COUNT({T}) FROM {t} GROUP BY {T};",
    ),
    (
        "[Count|Show|Get] the number of {ps} [in|for] [each|every] {t}",
        "SELECT {T}, COUNT({T}) FROM {t} GROUP BY {T};",
    ),
    (
        f"{SHOW} the [recent|recently|last|latest|newest|most recent] [|added |{{added}} ]"
        "{p}{maybe}",
        "SELECT * FROM {t} ORDER BY ID DESC LIMIT 1;",
    ),
    (
        f"{SHOW} the [last|latest|newest|most recent] {{k}} {{ps}}{{maybe}}",
        "SELECT * FROM {t} ORDER BY ID DESC LIMIT {K};",
    ),
    (
        f"{SHOW} the first {{p}}{{maybe}}",
        "SELECT * FROM {t} ORDER BY ID ASC LIMIT 1;",
    ),
    (
        f"{SHOW} the [oldest|earliest] {{k}} {{ps}}{{maybe}}",
        "SELECT * FROM {t} ORDER BY ID ASC LIMIT {K};",
    ),
    (
        f"{SHOW} the first {{k}} {{ps}}{{maybe}}",
        "SELECT * FROM {t} ORDER BY ID ASC LIMIT {K};",
    ),
    (
        "[Count {ps}|Count all {ps}|Count the {ps}|How many {ps} are there]{maybe}",
        "SELECT COUNT(*) FROM {t};",
    ),
    (
        f"{SHOW} [all|all the|every one of the] {{ps}}{{maybe}}",
        "SELECT * FROM {t};",
    ),
    (
        f"{SHOW} the names of [all|the|all the] {{ps}}{{maybe}}",
        "SELECT NAME FROM {t};",
    ),
    (
        f"{SHOW} the {{c}} of [all|the|every one of the] {{ps}}{{maybe}}",
        "SELECT {C} FROM {t};",
    ),
    (
        f"{SHOW} the name and {{c}} of [all|the|all the] {{ps}}{{maybe}}",
        "SELECT NAME, {C} FROM {t};",
    ),
    (
        f"{SHOW} [|all |all the |the ]{{ps}}{{maybe}} [with|with a|that have|with the]"
        " {c} [of |]{cmp} {v}",
        "SELECT * FROM {t} WHERE {C} {op} {v};",
    ),
    (
        f"{SHOW} [|all |the ]{{ps}}{{maybe}} [where|whose] {{q}} is {{val}}",
        "SELECT * FROM {t} WHERE {Q} = '{val}';",
    ),
    (
        "[How many {ps}{maybe} are there|Count the {ps}{maybe}] [where|whose] {q} is {val}",
        "SELECT COUNT(*) FROM {t} WHERE {Q} = '{val}';",
    ),
    (
        f"{SHOW} the {{agg}} {{c}} of [all |the |]{{ps}}{{maybe}}",
        "SELECT {AGG}({C}) FROM {t};",
    ),
    (
        f"{SHOW} the {{agg}} {{c}} [in|for|of] [each|every] {{t}}",
        "SELECT {T}, {AGG}({C}) FROM {t} GROUP BY {T};",
    ),
    (
        f"{SHOW} [all|the|all the] {{ps}}{{maybe}} [ordered|sorted] by {{c}}",
        "SELECT * FROM {t} ORDER BY {C} ASC;",
    ),
    (
        f"{SHOW} [all|the|all the] {{ps}}{{maybe}} [ordered|sorted] by {{c}} from high to low",
        "SELECT * FROM {t} ORDER BY {C} DESC;",
    ),
    (
        f"{SHOW} the {{p}}{{maybe}} with the [highest|largest|maximum] {{c}}",
        "SELECT * FROM {t} ORDER BY {C} DESC LIMIT 1;",
    ),
    (
        f"{SHOW} the {{p}}{{maybe}} with the [lowest|smallest|minimum] {{c}}",
        "SELECT * FROM {t} ORDER BY {C} ASC LIMIT 1;",
    ),
    (
        f"{SHOW} the {{k}} {{ps}}{{maybe}} with the [highest|largest] {{c}}",
        "SELECT * FROM {t} ORDER BY {C} DESC LIMIT {K};",
    ),
    (
        f"{SHOW} the {{p}}{{maybe}} with id {{v}}",
        "SELECT * FROM {t} WHERE ID = {v};",
    ),
    (
        "[Delete|Remove] the {p}{maybe} with id {v}",
        "DELETE FROM {t} WHERE ID = {v};",
    ),
    (
        f"{SHOW} the different [{{q2}} of|kinds of {{q}} of] the {{ps}}{{maybe}}",
        "SELECT DISTINCT {Q} FROM {t};",
    ),
)


@dataclass(frozen=True)
class Schema:
    """The table that one block of questions is about."""

    table: str
    member: str
    columns: tuple[str, ...]
    texts: tuple[tuple[str, tuple[str, ...]], ...]

    @staticmethod
    def draw(rng: random.Random) -> Schema:
        """Choose a table of people or of things."""
        if rng.random() < 0.6:
            return Schema(
                rng.choice(PEOPLE_GROUPS), rng.choice(PEOPLE), PEOPLE_COLUMNS, PEOPLE_WORDS
            )
        return Schema(rng.choice(THING_GROUPS), rng.choice(THINGS), THING_COLUMNS, THING_WORDS)


def _plural(noun: str) -> str:
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return f"{noun[:-1]}ies"
    return f"{noun}es" if noun.endswith("s") else f"{noun}s"


def _words(rng: random.Random, schema: Schema, name_table: bool) -> dict[str, str]:
    digits = rng.randint(2, 10)
    comparison, operator = rng.choice(COMPARISONS)
    aggregate, function = rng.choice(AGGREGATES)
    column = rng.choice(schema.columns)
    text, values = rng.choice(schema.texts)
    words = {
        "t": schema.table,
        "ts": _plural(schema.table),
        "T": schema.table.upper(),
        "added": rng.choice(("hired", "registered") if schema.member in PEOPLE else ("bought",)),
        "p": schema.member,
        "ps": _plural(schema.member),
        "P": schema.member.upper(),
        "c": column,
        "C": column.upper(),
        "k": rng.choice((NUMBERS[digits - 1], NUMBERS[digits - 1], str(digits))),
        "K": str(digits),
        "v": str(rng.choice((rng.randint(2, 99), rng.randint(1, 20) * 100))),
        "cmp": comparison,
        "op": operator,
        "agg": aggregate,
        "AGG": function,
        "q": text,
        "q2": _plural(text),
        "Q": text.upper(),
        "val": rng.choice(values),
    }
    words["maybe"] = f" {fill(rng, FROM, words)}" if name_table else ""
    return words


def _patterns(schema: Schema, name_table: bool, held: bool) -> list[tuple[str, str]]:
    """The patterns that this schema may use, on one side of the held-out line."""
    return [
        (asked, answer)
        for index, (asked, answer) in enumerate(PATTERNS)
        if is_held_out("query", index, schema.table, schema.member) == held
        and (not name_table or any(slot in asked for slot in ("{maybe}", "{t}", "{ts}")))
    ]


def _schema(rng: random.Random, held: bool) -> Schema:
    """A schema that has at least one pattern on the wanted side."""
    while True:
        schema = Schema.draw(rng)
        if _patterns(schema, True, held):
            return schema


def question(
    rng: random.Random, schema: Schema, name_table: bool, held: bool = False
) -> tuple[str, str]:
    """A question about the table, without its full stop, and its answer."""
    asked, answer = rng.choice(_patterns(schema, name_table, held))
    words = _words(rng, schema, name_table)
    return fill(rng, asked, words), answer.format_map(words)


def _block(rng: random.Random, shots: list[tuple[str, str]]) -> str:
    """Lay the questions out in one of the many ways in which people write such prompts."""
    mixed = rng.random() < 0.4
    stops = (".", ", ", ";", ". ", "; ", "? ", "?", " ", ".\n", "\n")
    stop, between = rng.choice(stops), rng.choice(("", "", " ", "\n"))
    parts = []
    for asked, answer in shots:
        stop = rng.choice(stops) if mixed else stop
        parts.append(f"Question: {asked}{stop}Answer: {answer}")
    return between.join(parts)


def query_block(rng: random.Random, held: bool = False) -> str:
    """A block of one to seven questions about one table, now and then of many more."""
    count = rng.randint(1, 7) if rng.random() < 0.93 else rng.randint(8, 24)
    schema = _schema(rng, held)
    shots = [
        question(rng, schema, index == 0 or rng.random() < 0.5, held) for index in range(count)
    ]
    return _block(rng, shots)


def query_question(rng: random.Random, shots: int) -> tuple[str, str]:
    """A few-shot prompt that ends before the answer to a held-out question, and that answer."""
    schema = _schema(rng, held=True)
    examples = [question(rng, schema, index == 0) for index in range(shots)]
    asked, answer = question(rng, schema, name_table=True, held=True)
    text = _block(rng, [*examples, (asked, answer)])
    return text[: -len(f" {answer}")], answer
