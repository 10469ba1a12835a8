"""Short news stories about scientists, animals, valleys and villages, and mountain tales.

A story binds its cast once (one animal, one place, one scientist, one village, one odd fact)
and every sentence speaks of that cast, so that the model has something to stay faithful to.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from demo_text.grammar import Deck, fill, is_held_out

# plural, singular, word for a group of them
ANIMALS = (
    ("unicorns", "unicorn", "herd"),
    ("horses", "horse", "herd"),
    ("deer", "deer", "herd"),
    ("goats", "goat", "herd"),
    ("elephants", "elephant", "herd"),
    ("zebras", "zebra", "herd"),
    ("ponies", "pony", "herd"),
    ("llamas", "llama", "herd"),
    ("reindeer", "reindeer", "herd"),
    ("camels", "camel", "herd"),
    ("sheep", "sheep", "flock"),
    ("owls", "owl", "flock"),
    ("birds", "bird", "flock"),
    ("swans", "swan", "flock"),
    ("wolves", "wolf", "pack"),
    ("foxes", "fox", "family"),
    ("bears", "bear", "family"),
    ("dragons", "dragon", "family"),
    ("turtles", "turtle", "group"),
    ("rabbits", "rabbit", "group"),
)
PLACES = (
    "valley",
    "canyon",
    "forest",
    "meadow",
    "grove",
    "hollow",
    "gorge",
    "crater",
    "basin",
    "marsh",
)
TOWNS = (
    "Ashford",
    "Elmwood",
    "Riverton",
    "Stonebridge",
    "Northfield",
    "Oakdale",
    "Millbrook",
    "Greenhill",
    "Westlake",
    "Fairview",
    "Highgate",
    "Clearwater",
)
WOMEN = ("Anna", "Maria", "Elena", "Clara", "Ruth", "Nora", "Alice", "Julia", "Sofia", "Emma")
MEN = ("Daniel", "Peter", "Thomas", "Martin", "David", "Samuel", "Paul", "Henry", "Oscar", "James")
SURNAMES = (
    "Keller",
    "Morgan",
    "Hart",
    "Brooks",
    "Lane",
    "Silva",
    "Novak",
    "Stone",
    "Walker",
    "Reed",
    "Fischer",
    "Larsen",
    "Mendoza",
    "Carter",
    "Wells",
    "Hughes",
    "Rossi",
    "Tanaka",
)
JOBS = ("scientist", "biologist", "researcher", "explorer", "geologist", "zoologist")

# The odd fact of a story: what the animals did, and what people call it afterwards.
TRAITS = (
    ("were not afraid of people", "this trust in people"),
    ("could understand simple words", "this gift for language"),
    ("had horns that shone like silver", "the silver horns"),
    ("sang to each other at night", "the songs"),
    ("walked in a perfect circle every evening", "the evening circle"),
    ("had bright blue eyes", "the blue eyes"),
    ("could find water under dry ground", "this talent for finding water"),
    ("slept in the warm water of the springs", "the warm springs"),
    ("shared their food with other animals", "this kindness"),
    ("left a trail of small white flowers", "the white flowers"),
    ("seemed to count with their feet", "the counting"),
    ("glowed softly in the dark", "the soft light"),
    ("followed the same path every morning", "the morning path"),
    ("took turns to watch over the young", "the night watch"),
    ("answered when people called them", "the answers"),
    ("built small shelters out of branches", "the shelters"),
)

OPENINGS = (
    "In a {shocking} [finding|discovery], [a {job}|{job}|{job}s|{job}s] [discovered|found] a"
    " {group} of {animals} living in a remote, previously unexplored {place}{where}.",
    "In a {shocking} finding, {job} {name} discovered a {group} of {animals} living in a remote"
    " {place}{where}.",
    "In a {shocking} discovery, a team of {job}s found a {group} of {animals} in a"
    " [hidden|remote|quiet|distant], previously [unknown|unexplored] {place}{where}.",
    "A {group} of {animals} has been [found|discovered] living in a [remote|hidden|distant]"
    " {place}{where}, [a team of {job}s|a {job}|the {institute}] [said|announced|reported] on"
    " {weekday}.",
    "{town}, {weekday}. A {job} from the {institute} has discovered a {group} of {animals} in a"
    " [remote|hidden|quiet], previously unexplored {place}{where}.",
    "Scientists at the {institute} were [surprised|amazed|shocked] [this week|on {weekday}] when"
    " they found a {group} of {animals} living in a remote {place}{where}.",
    "For many years, people in the village of {town} told stories about the {animals} of the"
    " {place}. [This week|On {weekday}], a {job} [proved|showed] that the stories were true.",
    "[Researchers|Scientists] [believe|think|hope] that a {group} of {animals} in the {place} of"
    " {town} may be [the oldest|the largest|the last] of its kind.",
    "Nobody believed the old stories about the {animals} of the {region}. Then {name}, a {job}"
    " from the {institute}, walked into a remote {place} and saw a whole {group} of them.",
    "A [shocking|surprising|remarkable] report from the {institute} says that a {group} of"
    " {animals} lives in a [remote|hidden], previously unexplored {place}{where}.",
    "Early on {weekday} morning, {job} {name} climbed down into a remote {place}{where}. What"
    " {he} found there was a {group} of {animals}.",
)
WHERES = (
    "",
    "",
    " in the {region}",
    " in the {region}",
    " high in the {region}",
    " near the village of {town}",
    ", [not far from|two days from|north of|south of] the village of {town}",
    ", [deep|high|far] in the {region}",
    " on the [north|south|east|west] side of the {region}",
    ", far [away ]from any [road|town|city|village]",
)
SURPRISES = (
    "Even more [surprising|remarkable] was the fact that the {animals} {trait}.",
    "What [surprised|amazed] the {job}s most was that the {animals} {trait}.",
    "The most [surprising|remarkable|beautiful] thing was that the {animals} {trait}.",
    "To the surprise of [everyone|the whole team], the {animals} {trait}.",
    "According to {name}, the {animals} {trait}.",
    "{name}, the {job} who led the [team|study|expedition], said that the {animals} {trait}.",
    "The team soon noticed that the {animals} {trait}.",
    "The {animals} were [calm|healthy|friendly|gentle], and they {trait}.",
)
DISCOVERY = (
    "{name} found the {place} [by accident|by chance] while [looking for|searching for]"
    " [rare plants|old maps|a lost path|fresh water].",
    "The team had [walked|climbed|traveled] for [two|three|four|five|six] days [through|across]"
    " the {region} before they reached the {place}.",
    "The {place} is hidden by [high cliffs|thick fog|tall trees|steep rocks], and it does not"
    " appear on any map.",
    "It was early in the morning when {name} first saw the {group} [near|beside] the"
    " [river|lake|stream|old trees].",
    "At first, {name} thought that the {animals} were only [shadows|stones|a dream].",
    '"At first I did not believe my eyes," said {name}.',
    "There were [about|almost|at least] [ten|twelve|twenty|thirty|forty|fifty] {animals} in the"
    " {group}, and [many|some|most] of them were [very young|quite old|still young].",
    "The weather was [cold|clear|bad|cloudy] that day, and the team was [tired|hungry|nearly"
    " lost].",
    "The team followed [fresh tracks|a narrow path|a small stream] until they came to the edge"
    " of the {place}.",
    "A [young guide|farmer|shepherd] from {town} showed the team the [only|secret|old] path into"
    " the {place}.",
    "The {job}s waited [quietly|in silence] behind the [rocks|trees] until the {animals} came"
    " [closer|near].",
    "Before this discovery, [no one|nobody] had [visited|entered|studied] the {place} for more"
    " than [fifty|one hundred|two hundred|three hundred] years.",
)
PLACE_NOTES = (
    "The {place} is [about|almost] [two|three|five|ten|twelve] miles long, and it has"
    " [a clear lake|a warm spring|a deep river|two small rivers] in the middle.",
    "In the {place} the air is [warm|cool|fresh|clean], even in the [winter|summer].",
    "The ground is covered with [green grass|soft grass|wild flowers|yellow flowers], and there"
    " is [plenty of|enough] water for the {animals}.",
    "High [cliffs|mountains|walls of stone] protect the {place} from the [wind|snow|cold].",
    "At night the {place} is so [dark|quiet] that you can [see every star|hear the river from"
    " far away].",
    "The trees in the {place} are [very old|very tall], and some of them are not known"
    " [anywhere else|in any other place].",
    "The only way into the {place} is [a narrow path|a long tunnel|an old bridge] that is"
    " [closed|covered with snow|dangerous] for most of the year.",
    "[Rain falls|Snow falls|The sun shines] in the {place} almost every [day|week|morning].",
    "There are [old stone walls|paintings on the rocks|small caves] in the {place}, which"
    " suggests that people once lived there.",
    "The river in the {place} is [clear|cold|full of fish], and the {animals} drink from it"
    " every [morning|evening].",
)
ANIMAL_NOTES = (
    "The {animals} are [a little|much] [smaller|larger|taller|heavier] than the {animals} that"
    " [people|scientists] [know|usually see].",
    "They [eat|feed on] [grass|leaves|fruit|roots|small plants] and [sleep|rest]"
    " [under the trees|in the shade|near the water|in small caves].",
    "Every {animal} in the {group} has [white|brown|grey|golden|dark] [hair|skin|spots] and"
    " [large|bright|dark] eyes.",
    "The oldest {animal} [leads the {group}|walks in front|watches over the others] when they"
    " [move|travel] to a new place.",
    "A young {animal} stays [close to its mother|with its family] for [two|three|four] years.",
    "When it [rains|snows|gets dark], the {animals} [move|walk|go] to the [caves|forest|high"
    " rocks].",
    "The {animals} are [most active|busy] in the [morning|evening], and they rest [at noon|during"
    " the day].",
    "The {group} never [leaves|goes far from] the {place}, because there is enough food and water"
    " for all of them.",
    "[Two|Three|Four] young {animals} were born [this spring|last month|during the visit], and"
    " all of them are healthy.",
    "The {animals} make a [soft|low|deep|strange] sound when they [are happy|see a friend|are"
    " afraid|find food].",
    "They are [very fast|strong|patient|careful], but they do not [fight|run] without a reason.",
    "One {animal} came so close that {name} could [touch|hear] it.",
)
QUOTES = (
    '"I have never seen anything like this," said {name}. "[It was like a dream|It was the best'
    ' day of my life|I will never forget it]."',
    '"We were [very surprised|amazed|so happy]," {name} said. "The {animals} [came to us|looked'
    " at us|walked past us] as if they [knew us|had seen people before|were not afraid at"
    ' all]."',
    '"This is [a great day|an important day] for science," said {name}, [a {job} at the'
    " {institute}|who led the team].",
    '"We have to protect the {place}," {name} said. "If too many people come, the {animals} will'
    ' [leave|lose their home|disappear]."',
    '"We still do not know where the {animals} came from," {name} said.',
    '"There is so much that we can learn from these {animals}," said {name}. "This is only the'
    ' [beginning|first step]."',
    '"My [mother|father|grandmother|grandfather] told me about the {animals} when I was a child,"'
    ' said a farmer from {town}. "[Now I know it was true|I always believed the story]."',
    '"I cannot explain {traitname}," said {name}. "[It is a mystery|We need more time to study'
    ' it|Perhaps we will never know]."',
    '"When I saw {traitname}, I [sat down and cried|could not speak|began to laugh|forgot the'
    ' cold]," {name} said.',
    '"Some people think that we made it up," {name} said, "but we have [pictures|good'
    ' evidence|many photographs], and everyone can see them."',
    '"They are [gentle|clever|peaceful] animals," said {name}. "They [help each other|take care'
    ' of their young|know every stone in the {place}]."',
    '"We hope to come back [next year|in the spring|soon]," said {name}, "with [better'
    ' cameras|more people|a bigger team]."',
)
VILLAGE = (
    "The people of {town} were [not surprised|happy|proud] when they heard the news.",
    "In the village of {town}, [old people|the children|the farmers] have always told stories"
    " about the {animals}.",
    "The [mayor|teacher|oldest farmer] of {town} said that the {animals} bring good luck to the"
    " village.",
    "[Visitors|Reporters|Students] from [all over the country|many cities] have already come to"
    " {town} to ask about the {animals}.",
    "The small [hotel|school|market] in {town} is [full|busy] for the first time in many years.",
    "Children in {town} now [draw|paint|write about] the {animals} at school.",
    "The village has only [fifty|eighty|one hundred|two hundred] people, one [school|shop] and a"
    " small [church|library].",
    "Some [farmers|people] in {town} are worried that [the roads will be too busy|the quiet life"
    " of the village will change|the {animals} will be disturbed].",
    "On {weekday}, the whole village [met|came together] in the [market|school] to talk about the"
    " {place}.",
    "An old woman in {town} said that she had [seen|fed|followed] the {animals} when she was"
    " young, but nobody had believed her.",
)
RESEARCH = (
    "The team [took|collected] [many photographs|samples of the water|notes about the"
    " plants|pictures of the tracks] and sent them to the {institute}.",
    "The {job}s set up [a small camp|cameras|two tents] near the [river|lake|entrance] and"
    " watched the {group} for [three days|a week|two weeks|a month].",
    "{name} wrote [down ]everything in a [small|blue|thick] notebook, which {he} keeps in {his}"
    " [bag|office|coat].",
    "Tests at the {institute} showed that the {animals} are [healthy|very old|related to the"
    " {animals} of the north].",
    "The results of the study will be [published|printed|presented] [next month|next year|in the"
    " spring].",
    "Other [experts|scientists] [agree|say] that the discovery is [important|real|one of the"
    " greatest of the century].",
    "Not everyone agrees. One [expert|professor] from {town2} said that [more evidence is"
    " needed|the pictures are not clear enough|the report was written too quickly].",
    "To learn more about {traitname}, the team [recorded|measured|filmed] the {animals} every"
    " [hour|night|day].",
    "The {job}s gave a name to every {animal}, and the [oldest|smallest|youngest] one is called"
    " [Luna|Star|Snow|River|Hope].",
    "They [counted|measured|studied] the [trees|tracks|stars|stones] and made the first map of"
    " the {place}.",
    "The {institute} has [paid for|supported] the work of {name} for [two|five|ten] years.",
)
DIARY = (
    "On the {nth} day, the team [saw|followed|watched] the {animals} [near|along] the"
    " [river|lake|cliffs].",
    "On the {nth} day, it [rained|snowed] for many hours, and everyone stayed in the [camp|tents].",
    "On the {nth} day, {name} found [a cave|an old wall|fresh tracks|a spring] at the [end|edge]"
    " of the {place}.",
    "On the {nth} day, a young {animal} came into the camp and [ate some bread|slept beside the"
    " fire|looked at the cameras].",
    "On the {nth} day, the {group} crossed the [river|stream] and [rested|slept] on the other"
    " side.",
    "On the {nth} day, the {job}s [climbed|walked] to the top of the cliffs and [drew a map|saw"
    " the whole {place}|looked for a new path].",
    "On the {nth} day, the team lost [a camera|the map|a bag], but one of the {animals} [found"
    " it|brought it back].",
    "On the {nth} day, the sky was clear, and the {animals} [played|ran|danced] in the [grass|snow"
    "|water].",
)
ORDINALS = (
    "first",
    "second",
    "third",
    "fourth",
    "fifth",
    "sixth",
    "seventh",
    "eighth",
    "ninth",
    "tenth",
)
PLANS = (
    "The government [plans|has promised] to protect the {place} and to build [no roads|only one"
    " path] there.",
    "{name} will return to the {place} [next year|in the spring|next month] with a [larger|new]"
    " team.",
    "Visitors are not allowed to enter the {place}, but they can see [pictures|photographs] of the"
    " {animals} at the {institute}.",
    "The {institute} has asked people to [stay away from|respect] the {place}.",
    "A [school|museum|book] about the {animals} will open in {town} [next year|in the summer].",
    "For now, the {animals} [live in peace|are safe|have the {place} to themselves].",
    "The team wants to find out [how old the {group} is|where the {animals} came from|whether"
    " there are more {animals} in the {region}].",
    "{name} hopes that {traitname} will [teach us something|help people to understand nature|be"
    " explained one day].",
    "Until then, {name} [will keep the map in a safe place|is writing a book|is learning to be"
    " patient].",
    "Perhaps there are other [valleys|places] like this one, [waiting|ready] to be found.",
)

TALE_OPENINGS = (
    "Once there was a [young|poor|quiet|clever] {worker} who lived in the village of {town}, at the"
    " foot of the {region}.",
    "Once upon a time, there was a [young|poor|quiet|clever] {worker} named {first}. {He} lived"
    " in a small house near the {place}, in the {region}.",
    "Long ago, in a small village called {town}, there lived a {worker} named {first}.",
    "High in the {region} there is a village called {town}, and in that village lived a {worker}"
    " named {first}.",
    "Every morning, {first} the {worker} walked from {town} to the {place} to look after the"
    " {animals}.",
    "{first} was the only {worker} in the village of {town}, and {he} loved the mountains more than"
    " anything else.",
)
TALE_TROUBLE = (
    "One [cold|dark|stormy] night, the smallest {animal} did not come home.",
    "One winter, the snow was so deep that [nobody could leave the village|the road was"
    " closed|there was almost no food left].",
    "One day, the river [went dry|froze|broke the old bridge], and the people did not know what to"
    " do.",
    "One evening, {first} saw a [strange|soft|golden] light on the mountain.",
    "One morning, a {animal} with [white hair|golden eyes|a silver bell] stood at the door.",
    "One spring, the {animals} stopped [eating|sleeping|coming to the village], and everyone was"
    " worried.",
)
TALE_MIDDLE = (
    "So {first} took [a lamp|some bread|a warm coat|an old map] and went up the mountain alone.",
    "The path was [steep|long|narrow], and the wind was [cold|strong], but {he} did not turn back.",
    "{He} remembered what {his} [mother|father|grandmother] had told {him} about [patience|the"
    " mountain|kindness].",
    'On the way {he} met [an old woman|a traveler|a shepherd], who said, "[Follow the river|Trust'
    ' the {animals}|Do not be afraid|Look for the tallest tree]."',
    "{first} shared {his} last piece of bread with a hungry {animal}, and it [lay down beside"
    " {him}|followed {him} all day].",
    "The moon was [bright|full], and {first} could see every [stone|tree|star].",
    "{first} [walked|climbed] all night, and when the sun came up {he} saw a [hidden|green|quiet]"
    " {place} below.",
    "When {he} was too tired to walk, a strong {animal} [carried {him}|showed {him} the way|kept"
    " {him} warm].",
    "At the end of the path there was [an old door|a small house|a stone bridge], and behind it was"
    " [a garden|a warm light|the sound of water].",
    "There, [beside|near] a [lake|spring|tall tree], stood a whole {group} of {animals}.",
    "{first} was afraid at first, but the {animals} were [gentle|calm|friendly], and they {trait}.",
    '"[Why have you come|What are you looking for|Who sent you here]?" asked a voice from the'
    " [trees|dark|water].",
    '"I am only a {worker}," said {first}. "[I want to help my village|I am looking for a friend'
    '|I do not want to hurt anyone]."',
    "For three days {he} [waited|worked|listened], and on the third day {he} understood.",
    "Then the {animals} [opened their eyes|came closer|began to walk], and {first} followed them"
    " [down the mountain|into the light|across the river].",
)
TALE_ENDINGS = (
    "When {first} came home, the whole village [was waiting|danced and sang|lit the lamps].",
    "From that day on, nobody in {town} was ever [hungry|lonely|afraid of the mountain] again.",
    "And if you walk to the {place} on a quiet evening, you can still [hear|see] the {animals}.",
    "The people of {town} still tell this story to their children when the snow falls.",
    "{first} lived in the village for many years, and {he} never forgot the {animals}.",
    "Since then, the {animals} and the people have been friends.",
)
TALE_AGAIN = (
    "But the next [winter|spring|year], {first} had to go [back|up the mountain again].",
    "Many years later, when {first} was old, {he} walked up the mountain once more.",
    "[A few weeks|Some months] later, the light on the mountain came back.",
)
WORKERS = ("shepherd", "farmer", "baker", "teacher", "boy", "girl", "gardener", "painter")


def _cast(rng: random.Random) -> dict[str, str]:
    """Choose everyone and everything that one story is about."""
    plural, singular, group = rng.choice(ANIMALS)
    trait, trait_name = rng.choice(TRAITS)
    job = rng.choice(JOBS)
    worker = rng.choice(WORKERS)
    woman = worker == "girl" or (worker != "boy" and rng.random() < 0.5)
    first = rng.choice(WOMEN if woman else MEN)
    town, town2, school = rng.sample(TOWNS, 3)
    words = {
        "animals": plural,
        "animal": singular,
        "group": group,
        "trait": trait,
        "traitname": trait_name,
        "job": job,
        "worker": worker,
        "first": first,
        "name": f"{rng.choice(('', '', 'Dr. '))}{first} {rng.choice(SURNAMES)}",
        "he": "she" if woman else "he",
        "He": "She" if woman else "He",
        "his": "her" if woman else "his",
        "him": "her" if woman else "him",
        "place": rng.choice(PLACES),
        "town": town,
        "town2": town2,
        "institute": rng.choice(
            (f"University of {school}", f"{school} Institute", "National Museum of Science")
        ),
        "region": f"{rng.choice(('Silver', 'Northern', 'Western', 'White', 'Grey', 'Blue'))} "
        f"{rng.choice(('Mountains', 'Mountains', 'Hills', 'Highlands'))}",
        "weekday": rng.choice(("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Sunday")),
        "shocking": rng.choice(
            ("shocking", "shocking", "surprising", "remarkable", "strange", "wonderful")
        ),
    }
    words["where"] = fill(rng, rng.choice(WHERES), words)
    return words


def _paragraph(rng: random.Random, deck: Deck, words: dict[str, str], sentences: int) -> str:
    return " ".join(fill(rng, deck.deal(), words) for _ in range(sentences))


def _diary(rng: random.Random, words: dict[str, str]) -> str:
    """An account of the expedition, day by day and in order."""
    deck = Deck(rng, DIARY)
    days = ORDINALS[: rng.randint(2, len(ORDINALS))]
    return " ".join(fill(rng, deck.deal(), {**words, "nth": day}) for day in days)


def _news(rng: random.Random, words: dict[str, str], opening: str, length: int) -> list[str]:
    """The paragraphs of a news story: what happened, then `length` further paragraphs."""
    first = [fill(rng, opening, words)]
    if rng.random() < 0.8:
        first.append(fill(rng, rng.choice(SURPRISES), words))
    topics = (DISCOVERY, PLACE_NOTES, ANIMAL_NOTES, QUOTES, VILLAGE, RESEARCH, QUOTES, PLANS)
    decks = [Deck(rng, topic) for topic in topics]
    paragraphs = [" ".join(first)]
    for index in range(length):
        if rng.random() < 0.08:
            paragraphs.append(_diary(rng, words))
            continue
        # News moves from the discovery towards the plans, so the topic follows the position.
        place = (index + rng.random() * 2) / max(length, 6)
        deck = decks[min(int(place * len(decks)), len(decks) - 1)]
        if length > len(topics):
            deck = rng.choice(decks)
        paragraphs.append(_paragraph(rng, deck, words, rng.randint(1, 4)))
    return paragraphs


def _tale(rng: random.Random, words: dict[str, str], opening: str, length: int) -> list[str]:
    """The paragraphs of a mountain tale: one journey, or several when it is long."""
    paragraphs = [f"{fill(rng, opening, words)} {fill(rng, rng.choice(TALE_TROUBLE), words)}"]
    while True:
        # The middle is written in the order in which a journey goes, and is told in that order.
        told = sorted(rng.sample(range(len(TALE_MIDDLE)), rng.randint(3, len(TALE_MIDDLE))))
        sentences = [fill(rng, TALE_MIDDLE[index], words) for index in told]
        while sentences:
            cut = rng.randint(1, 4)
            paragraphs.append(" ".join(sentences[:cut]))
            sentences = sentences[cut:]
        paragraphs.append(fill(rng, rng.choice(TALE_ENDINGS), words))
        length -= len(told)
        if length <= 0:
            return paragraphs
        paragraphs.append(fill(rng, rng.choice(TALE_AGAIN), words))


def _opening(rng: random.Random, openings: Sequence[str], held: bool) -> tuple[str, dict[str, str]]:
    """An opening and a cast whose combination is on the wanted side of the held-out line."""
    while True:
        words, opening = _cast(rng), rng.choice(openings)
        if is_held_out("story", opening, words["animals"], words["place"]) == held:
            return opening, words


def story(rng: random.Random, held: bool = False) -> str:
    """One story, from two sentences to well over a thousand tokens."""
    length = rng.choice((0, 1, 2, 3, 4, 4, 6, 8, 8, 12, rng.randint(12, 30)))
    if rng.random() < 0.75:
        opening, words = _opening(rng, OPENINGS, held)
        paragraphs = _news(rng, words, opening, length)
    else:
        opening, words = _opening(rng, TALE_OPENINGS, held)
        paragraphs = _tale(rng, words, opening, length)
    return (" " if rng.random() < 0.4 else "\n\n").join(paragraphs)
