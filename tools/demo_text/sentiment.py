"""Few-shot blocks of messages with their sentiment: Positive, Negative or Neutral."""

from __future__ import annotations

import random
from typing import NamedTuple

from demo_text.grammar import fill, is_held_out

LABELS = ("Positive", "Negative", "Neutral")


def _list(text: str) -> tuple[str, ...]:
    return tuple(item.strip() for item in text.split(","))


# Things one can have an opinion about.
WORKS = _list("movie, film, show, book, song, concert, album, story, game, match, performance")
FOODS = _list("dinner, lunch, pizza, soup, coffee, cake, food, breakfast, tea")
PLACES = _list("restaurant, hotel, shop, beach, garden, city, museum, school")
THINGS = _list("phone, laptop, camera, screen, battery, app, website, product, car, computer")
PERSONS = _list("teacher, actor, staff, waiter, driver, team, support, doctor")
EVENTS = _list("trip, flight, meeting, party, weekend, lesson, course, day, holiday, interview")
OTHERS = _list("service, price, weather, update, music, picture, design, delivery, job, ending")
ALL = WORKS + FOODS + PLACES + THINGS + PERSONS + EVENTS + OTHERS
OWNED = THINGS + EVENTS[:3] + ("dinner", "room", "job", "book", "teacher")

GOOD = _list(
    "good, great, wonderful, amazing, excellent, fantastic, perfect, beautiful, lovely, brilliant,"
    " nice, awesome, delightful, superb, charming, outstanding, incredible, enjoyable, impressive,"
    " pleasant, fun, cool, exciting, magnificent"
)
BAD = _list(
    "bad, terrible, awful, horrible, boring, poor, disappointing, ugly, dreadful, annoying,"
    " useless, stupid, sad, worthless, painful, unpleasant, frustrating, disgusting, weak, lousy,"
    " mediocre, pathetic, cheap, messy"
)
GOOD_FOOD = _list("delicious, tasty, fresh, excellent, hot and fresh, great")
BAD_FOOD = _list("cold, disgusting, too salty, burnt, tasteless, awful")
GOOD_PERSON = _list("friendly, helpful, kind, patient, polite, brilliant, excellent")
BAD_PERSON = _list("rude, lazy, unfriendly, unhelpful, slow, impolite, useless")
GOOD_THING = _list("fast, easy to use, reliable, light, well made, powerful")
BAD_THING = _list("slow, broken, hard to use, too expensive, unreliable, too heavy")
GOOD_FEELING = _list(
    "great, happy, wonderful, fantastic, excited, proud, good, relaxed, grateful, amazing, hopeful,"
    " better, so happy, very lucky, cheerful"
)
BAD_FEELING = _list(
    "sad, angry, terrible, sick, lonely, awful, tired, upset, worried, disappointed, bad, afraid,"
    " so tired, very sad, miserable"
)
LIKES = _list("love, like, enjoy, adore, admire, recommend")
LIKED = _list("loved, liked, enjoyed, adored, admired, recommended")
HATES = _list("hate, dislike, regret, despise, cannot stand, am sick of")
HATED = _list("hated, disliked, regretted, despised, could not stand, was bored by")
BEST = _list("best, greatest, nicest, most beautiful, most exciting, finest")
WORST = _list("worst, most boring, ugliest, most annoying, weakest, saddest")
GOOD_NEWS = _list(
    "passed the exam, won the match, got the job, won a prize, met my best friend,"
    " got good news, found my lost dog, laughed all evening, had a lot of fun, got a nice present,"
    " made a new friend, received a kind letter, had a good dream, finally got better"
)
BAD_NEWS = _list(
    "failed the exam, lost the match, lost my job, missed the train, broke my arm,"
    " got bad news, lost my keys, cried all evening, had an accident, got sick,"
    " lost a good friend, received a rude letter, had a bad dream, wasted my money"
)
WHEN = _list("this morning, today, tonight, this week, right now, this evening")
PAST = _list("yesterday, last night, last week, this morning, on Monday, last year")


class Pattern(NamedTuple):
    """A template with {w} from `words` and {s} from `subjects`."""

    template: str
    words: tuple[str, ...]
    subjects: tuple[str, ...] = ALL


POSITIVE = (
    Pattern("[The|My|Our|This|The new|The last|The first] {s} [was|is] {w}", GOOD),
    Pattern("[The|My|Our|This|The last] {s} [was|is] [very|really|so|absolutely] {w}", GOOD),
    Pattern("What a {w} {s}", GOOD),
    Pattern("It was a [|really |very |truly ]{w} {s}", GOOD),
    Pattern("[The|Our|This] {s} [was|is] [|very |really ]{w}", GOOD_FOOD, FOODS),
    Pattern("[The|Our|My] {s} [was|is] [|very |really ]{w}", GOOD_PERSON, PERSONS),
    Pattern("[The|My|This] [new |]{s} is [|very |really ]{w}", GOOD_THING, THINGS),
    Pattern("[That|It|This] was the {w} {s} [of my life|I have ever had]", BEST),
    Pattern("This is the {w} {s} [ever|in the world|I know]", BEST),
    Pattern("It [was|is] [my|our] [all-time |]favorite {s}{w}", ("", "", " of the year", " ever")),
    Pattern("This is [my|our] [all-time |]favorite {s}{w}", ("", "", " of the year", " ever")),
    Pattern("I feel {w}[| about the {s}]", GOOD_FEELING),
    Pattern("I feel {w} {now}", GOOD_FEELING),
    Pattern("I am {w} {now}", GOOD_FEELING[1:]),
    Pattern("I am so {w} with my {s}", _list("happy, pleased, satisfied, lucky"), OWNED),
    Pattern("[I|We] [really |]{w} [this|the|that] {s}", LIKES),
    Pattern("[I|We|My family|My friends|Everyone] [really |]{w} the {s}[| {then}]", LIKED),
    Pattern("The {s} was not {w} at all", BAD),
    Pattern("The {s} was not {w}", BAD[:6]),
    Pattern("[I|We] could not be {w} with the {s}", _list("happier, more satisfied, more pleased")),
    Pattern("The {s} could not [be|have been] {w}", _list("better, nicer, more beautiful")),
    Pattern("[I|We] can't wait for the [next|new] {s}{w}", ("", " to start", " to arrive")),
    Pattern("The {s} {w} [me|us] [again|every time]", _list("surprised, impressed, helped")),
    Pattern("The {s} made me {w}", _list("smile, happy, laugh, feel at home, very happy")),
    Pattern("The {s} [was|is] [much |even ]{w} than [I expected|before]", _list("better, nicer")),
    Pattern("The start was slow, but the {s} was {w}", GOOD),
    Pattern("Thank you for the {w} {s}", GOOD),
    Pattern("I would {w} this {s} to [everyone|all my friends]", ("recommend", "gladly recommend")),
    Pattern("[I|We] had a {w} time at the {s}", GOOD, PLACES + EVENTS),
    Pattern("{w} {s}, [thank you|I will come back|highly recommended]", GOOD),
    Pattern("I never get tired of {w} {s}", _list("this, that, my, our"), WORKS + FOODS + PLACES),
    Pattern("[I|She|He] {w} {then}", GOOD_NEWS),
    Pattern("[Yesterday|Last night|Today|On Friday] [I|she|he] {w}", GOOD_NEWS),
    Pattern("[My brother|My sister|My best friend|My son] {w}", GOOD_NEWS),
)
NEGATIVE = (
    Pattern("[The|My|Our|This|The new|The last|The first] {s} [was|is] {w}", BAD),
    Pattern("[The|My|Our|This|The last] {s} [was|is] [very|really|so|absolutely] {w}", BAD),
    Pattern("What a {w} {s}", BAD),
    Pattern("It was a [|really |very |truly ]{w} {s}", BAD),
    Pattern("[The|Our|This] {s} [was|is] [|very |really ]{w}", BAD_FOOD, FOODS),
    Pattern("[The|Our|My] {s} [was|is] [|very |really ]{w}", BAD_PERSON, PERSONS),
    Pattern("[The|My|This] [new |]{s} is [|very |really ]{w}", BAD_THING, THINGS),
    Pattern("[That|It|This] was the {w} {s} [of my life|I have ever had]", WORST),
    Pattern("This is the {w} {s} [ever|in the world|I know]", WORST),
    Pattern("It [was|is] [my|our] least favorite {s}{w}", ("", " of the year", " ever")),
    Pattern("I feel {w}[| about the {s}]", BAD_FEELING),
    Pattern("I feel {w} {now}", BAD_FEELING),
    Pattern("I am {w} {now}", BAD_FEELING),
    Pattern("I am so {w} with my {s}", _list("unhappy, annoyed, angry, disappointed"), OWNED),
    Pattern("[I|We] [really |]{w} [this|the|that] {s}", HATES[:5]),
    Pattern("I {w} [this|the|that] {s}", HATES),
    Pattern("[I|We|My family|My friends|Everyone] [really |]{w} the {s}[| {then}]", HATED[:5]),
    Pattern("The {s} [was|is] not {w}[| at all]", GOOD),
    Pattern("[The|This] {s} [wasn't|isn't|was never] {w}", GOOD),
    Pattern("[I|We] [do not|don't|did not|didn't] {w} [the|this] {s}[| at all]", LIKES),
    Pattern("[I|We] [will|would] never {w} this {s}[| again]", _list("recommend, buy, use, visit")),
    Pattern("[I|We] can't stand {w} {s}", _list("this, that, the new, the old")),
    Pattern("The {s} could have been {w}", _list("better, nicer, more beautiful")),
    Pattern("The {s} made me {w}", _list("cry, angry, feel sick, fall asleep, sad")),
    Pattern("The {s} [was|is] [much |even ]{w} than [I expected|before]", _list("worse, uglier")),
    Pattern("The {s} was not as {w} as I hoped", GOOD),
    Pattern("The start was good, but the {s} was {w}", BAD),
    Pattern("[I|We] had a {w} time at the {s}", BAD, PLACES + EVENTS),
    Pattern("{w} {s}, [I want my money back|never again|do not buy]", BAD),
    Pattern(
        "[The|My] {s} {w} [again|after one day|{then}]", _list("broke, stopped working"), THINGS
    ),
    Pattern("The {s} was a {w}", _list("waste of time, waste of money, disaster, big mistake")),
    Pattern("I am tired of {w} {s}", _list("this, that, the new, the same old")),
    Pattern("[I|She|He] {w} {then}", BAD_NEWS),
    Pattern("[Yesterday|Last night|Today|On Friday] [I|she|he] {w}", BAD_NEWS),
    Pattern("[My brother|My sister|My best friend|My son] {w}", BAD_NEWS),
)
NEUTRAL = (
    Pattern("{m} has {big} {w}", _list("billion parameters, million parameters, layers, heads")),
    Pattern("{m} was [trained on|released in] {w}", _list("2019, 2020, 2021, June, text")),
    Pattern("{m} has a vocabulary of {big} {w}", _list("tokens, words, thousand tokens")),
    Pattern(
        "The {s} [starts|ends|begins] at {n} {w}",
        _list("o'clock, in the morning, pm"),
        WORKS[:2] + EVENTS,
    ),
    Pattern("The {s} [opens|closes] at {n} {w}", _list("o'clock, in the morning, pm"), PLACES),
    Pattern("The {s} is on {w}", _list("Monday, Tuesday, Friday, Sunday"), WORKS[:2] + EVENTS),
    Pattern("The {s} is on {w}", _list("the table, the chair, the second floor"), THINGS),
    Pattern("The {s} [takes|lasts|took] {n} {w}", _list("minutes, hours"), WORKS[:2] + EVENTS),
    Pattern("The {s} has {big} {w}", _list("pages, parts, pictures"), ("book", "story", "album")),
    Pattern("The {s} has {n} {w}", _list("rooms, windows, doors, floors"), PLACES),
    Pattern("The {s} costs {big} {w}", _list("dollars, euros"), FOODS + THINGS),
    Pattern("The {s} is {w}", _list("blue, red, green, square, round, made of wood"), THINGS),
    Pattern("The {s} was [made|built] in {w}", _list("1985, 1998, 2004, 2016"), THINGS + PLACES),
    Pattern("The {s} was [written|recorded] in {w}", _list("1985, 1998, 2004, 2016"), WORKS),
    Pattern("[My brother|My sister|My uncle|She|He] lives in {w}", _list("London, Paris, Berlin")),
    Pattern("[My brother|My sister|She|He] has {n} {w}", _list("cats, books, cousins, chairs")),
    Pattern("[My brother|My sister|She|He] works in a {s}{w}", ("", " in Rome"), PLACES),
    Pattern("There are {n} {w} in the [room|box|house|garden]", _list("people, chairs, books")),
    Pattern("Water [boils|freezes] at {big} {w}", _list("degrees")),
    Pattern(
        "The {s} [arrived|arrives] {w}", _list("on Tuesday, at noon, tomorrow"), THINGS + PERSONS
    ),
    Pattern(
        "I [bought|ordered] a {s} {w}", _list("yesterday, on Friday, last week"), THINGS + FOODS
    ),
    Pattern("I will [see|send|return] the {s} {w}", _list("tomorrow, on Monday"), THINGS + WORKS),
    Pattern("The {w} is next to the {s}", _list("key, chair, box, door, table, station"), PLACES),
    Pattern("[I am|We are] going to the {s} {w}", _list("tomorrow, at noon, by bus"), PLACES),
    Pattern("[I|We|They] went to the {s} {w}", _list("yesterday, on Sunday, by train"), PLACES),
    Pattern("The {s} comes in {n} {w}", _list("colors, sizes, boxes"), THINGS),
    Pattern("This is {w} {s}", _list("a, the second, another, the third, my brother's")),
)
PATTERNS = {"Positive": POSITIVE, "Negative": NEGATIVE, "Neutral": NEUTRAL}
MODELS = _list("GPT-J, GPT-J, GPT-2, BERT, The model, The network, T5")
NUMBERS = (2, 3, 4, 5, 6, 7, 8, 9, 10, 12)
BIG_NUMBERS = (*NUMBERS, 15, 20, 24, 28, 30, 50, 100, 110, 175, 200)
FIELDS = _list("Message, Message, Message, Message, Message, Review, Tweet, Text")


def message(rng: random.Random, label: str, held: bool = False) -> str:
    """A message with this sentiment, without its full stop."""
    while True:
        template, options, subjects = rng.choice(PATTERNS[label])
        word, subject = rng.choice(options), rng.choice(subjects)
        # A held-out message joins a template and a word that never meet in training. Where the
        # words are too few for that, the subject takes the place of the word.
        key = subject if len(options) < 6 and "{s}" in template else word
        if is_held_out("sentiment", template, key) == held:
            break
    words = {
        "w": word,
        "s": subject,
        "now": rng.choice(WHEN),
        "then": rng.choice(PAST),
        "m": rng.choice(MODELS),
        "n": str(rng.choice(NUMBERS)),
        "big": str(rng.choice(BIG_NUMBERS)),
    }
    text = fill(rng, template, words)
    return text[0].upper() + text[1:]


def _block(rng: random.Random, shots: list[tuple[str, str]]) -> str:
    """Lay the messages out in one of the many ways in which people write such prompts."""
    field = rng.choice(FIELDS)
    gaps = rng.choice(((" ",), ("",), (" ", ""), (" ", ""), ("\n",)))
    between = rng.choice((", ", ", ", ", ", " ", "\n", "\n\n"))
    stops = rng.choice(((".",), (".",), (".", "!"), (".", "")))
    parts = []
    for text, label in shots:
        stop, gap = rng.choice(stops), rng.choice(gaps)
        parts.append(f"{field}: {text}{stop}{gap or ('' if stop else ' ')}Sentiment: {label}")
    return between.join(parts)


def sentiment_block(rng: random.Random, held: bool = False) -> str:
    """A block of one to twelve labelled messages, now and then of many more."""
    count = rng.randint(1, 12) if rng.random() < 0.93 else rng.randint(13, 40)
    labels = [rng.choice(LABELS) for _ in range(count)]
    return _block(rng, [(message(rng, label, held), label) for label in labels])


def sentiment_question(rng: random.Random, shots: int) -> tuple[str, str]:
    """A few-shot prompt that ends before the label of a held-out message, and that label."""
    labels = [rng.choice(LABELS) for _ in range(shots)]
    asked = rng.choice(LABELS)
    examples = [(message(rng, label), label) for label in labels]
    text = _block(rng, [*examples, (message(rng, asked, held=True), asked)])
    return text[: -len(f" {asked}")], asked
