"""First-person thoughts about the sky, time, regret and a happy life.

Each text settles on a mood (people, nature, craft, rest or courage) and mostly stays in it.
"""

from __future__ import annotations

import random

from demo_text.grammar import Deck, fill, is_held_out

# mood -> things to do, each as infinitive, gerund and past tense
ACTIONS: dict[str, tuple[tuple[str, str, str], ...]] = {
    "people": (
        ("call an old friend", "calling an old friend", "called an old friend"),
        ("spend time with your family", "spending time with my family", "spent time with family"),
        ("listen to other people", "listening to other people", "listened to other people"),
        ("forgive someone", "forgiving my brother", "forgave my brother"),
        ("write a letter to someone you love", "writing that letter", "wrote that letter"),
        ("say thank you", "saying thank you to my parents", "said thank you to my parents"),
        ("share what you have", "sharing what I had", "shared what I had"),
        ("visit your grandparents", "visiting my grandparents", "visited my grandparents"),
        ("make a new friend", "making new friends", "made a new friend"),
        ("be kind to strangers", "being kind to a stranger", "was kind to a stranger"),
        ("cook dinner for your friends", "cooking for my friends", "cooked for my friends"),
        ("help a neighbor", "helping my neighbor", "helped my neighbor"),
        ("tell people that you love them", "telling her that I loved her", "told her the truth"),
    ),
    "nature": (
        ("go for a long walk", "walking in the mountains", "walked in the mountains"),
        ("watch the sunrise", "watching the sunrise by the sea", "watched the sunrise by the sea"),
        ("plant a tree", "planting that tree", "planted that tree"),
        ("look at the stars", "sleeping under the stars", "slept under the stars"),
        ("start a small garden", "starting a small garden", "started a small garden"),
        ("swim in a cold lake", "swimming in the cold lake", "swam in the cold lake"),
        ("listen to the rain", "standing in the rain", "stood in the rain"),
        ("feed the birds", "feeding the birds in winter", "fed the birds in winter"),
        ("enjoy the fresh air", "moving to the country", "moved to the country"),
        ("walk by the river", "walking by the river every day", "walked by the river every day"),
    ),
    "craft": (
        ("learn something new", "learning something new", "learned something new"),
        ("read a good book", "reading that old book", "read that old book"),
        ("write down your ideas", "writing down my ideas", "wrote down my ideas"),
        ("learn to play the piano", "learning to play the piano", "learned to play the piano"),
        ("paint a picture", "painting that picture", "painted that picture"),
        ("build something with your hands", "building my own house", "built my own house"),
        ("learn a new language", "learning another language", "learned another language"),
        ("do work that you enjoy", "leaving my old job", "left my old job"),
        ("ask good questions", "asking so many questions", "asked so many questions"),
        ("finish what you started", "finishing school", "finished school"),
    ),
    "rest": (
        ("slow down", "slowing down", "slowed down"),
        ("turn off the phone", "turning off my phone", "turned off my phone"),
        ("take a deep breath", "taking a year off", "took a year off"),
        ("sleep well", "sleeping in on Sunday", "slept until noon"),
        ("do nothing for an hour", "doing nothing for a day", "did nothing for a day"),
        ("enjoy the small things", "enjoying the small things", "enjoyed the small things"),
        ("own fewer things", "giving away most of my things", "gave away most of my things"),
        ("drink a cup of tea", "drinking tea with my mother", "drank tea with my mother"),
        ("live in the moment", "living in the moment", "lived in the moment"),
        ("sit in the sun", "sitting in the sun", "sat in the sun"),
    ),
    "courage": (
        ("start again", "starting again", "started again"),
        ("follow your dreams", "following my dreams", "followed my dreams"),
        ("try something difficult", "trying something difficult", "tried something difficult"),
        ("travel to a place you do not know", "traveling alone", "traveled alone"),
        ("change your mind", "changing my mind", "changed my mind"),
        ("be honest with yourself", "being honest", "told the truth"),
        ("make a decision", "making that decision", "made that decision"),
        ("let go of the past", "letting go of the past", "let go of the past"),
        ("believe in yourself", "believing in myself", "believed in myself"),
        ("take a chance", "taking that chance", "took that chance"),
        ("ask for help", "asking for help", "asked for help"),
    ),
}

# Things one looks at, and what they make one think of.
SIGHTS = (
    "the sky",
    "the sky",
    "the sky",
    "the stars",
    "the moon",
    "the sea",
    "the clouds",
    "the mountains",
    "the river",
    "old photographs",
    "my children",
    "the night sky",
)
THOUGHTS = (
    "about [my grandmother|my grandfather|my father|my mother|my family|my old friends|my home]",
    "about [the future|the past|my childhood|the people I love|the people I miss]",
    "of [the summer|the house|the garden|the village] where I [grew up|was happy|learned to swim]",
    "of the [people|friends] who are [far away|no longer here|looking at the same {sightname}]",
    "that [life|the world|time] is [beautiful|short|a gift|bigger than we know]",
    "that [I am very small|we are all connected|everything will be fine|nothing lasts forever]",
    "that there must be [someone|something] out there[| who feels the same way]",
    "that I should [{do}|{do}|be more patient|be more grateful]",
    "how [lucky|small|happy|free] I am",
    "how [big|beautiful|quiet|strange] the world is",
    "about how [much time|many years] we spend on things that do not matter",
)
REASONS = {
    "people": (
        "In the end, the people around us are the only thing that matters.",
        "A few kind words can change [a whole day|someone's life|everything].",
        "We [often forget|never know] how much [a friend|one word|a smile] can mean to someone.",
        "Friends do not have to be perfect. They only have to be there.",
        "My [mother|father|grandmother] used to say that love is something you do, not something"
        " you [say|feel].",
        "No one has ever been sorry for having been kind.",
        "When you are kind to others, it is easier to be kind to yourself.",
        "My best memories are not about [money|work|things], but about people.",
    ),
    "nature": (
        "Nature does not hurry, and yet everything gets done.",
        "[The trees|The mountains|The stars] do not care about our problems, and that is why they"
        " help us to forget them.",
        "After [an hour|a day] outside, my problems always look smaller.",
        "The [sky|sea|light] is different every day, and it costs nothing to look at it.",
        "There is a kind of peace that you can only find [under the trees|near the water|on a"
        " mountain].",
        "When the [wind|rain|sun] touches my face, I feel alive.",
        "A garden teaches you to wait, and to trust that something is growing even when you cannot"
        " see it.",
    ),
    "craft": (
        "You do not have to be good at something to enjoy it.",
        "Every [expert|artist|teacher] was once a beginner.",
        "If you do a little every day, after a year you will be surprised by how far you have"
        " come.",
        "A good [book|song|question] can open a door that you did not know was there.",
        "We learn more from our mistakes than from our success.",
        "The work itself is the reward, and everything else is extra.",
        "I am still not very good at it, but it makes me happy.",
    ),
    "rest": (
        "We spend too much time worrying about things that never happen.",
        "The world will still be there [tomorrow|in the morning|when you come back].",
        "Being busy is not the same as being alive.",
        "Most of the things we own, we do not really need.",
        "A quiet [hour|morning|evening] is worth more than [a busy week|any amount of money].",
        "There is always more work to do, but there is only one life.",
        "Sometimes the best thing you can do is to wait.",
    ),
    "courage": (
        "It is never too late to [begin|change|become the person you want to be].",
        "If you wait until you are ready, you will wait [forever|for the rest of your life].",
        "The first step is always the hardest.",
        "You cannot change [the past|the weather|other people], but you can change what you do"
        " next.",
        "Most of the doors that I was afraid of were not even locked.",
        "Being brave does not mean that you are not afraid. It means that you [go on|try] anyway.",
        "I have made many mistakes, but I have never been sorry that I tried.",
    ),
}
MEMORIES = (
    "[Last summer|Last year|Many years ago|When I was young|One winter], I {did}, and it changed"
    " [my life|the way I see the world|everything].",
    "I remember the day when I {did}. [I was so happy|It was raining|Nobody understood why|I was"
    " afraid, but I did it].",
    "When I was a child, I [often sat in the garden|used to lie in the grass|slept in a small"
    " room] and [looked at the sky|dreamed about the future|listened to the wind].",
    'My [grandmother|grandfather|father|mother|best friend] once [told me|said to me], "[Take your'
    ' time|Do not be afraid|Life is short|You already have everything you need|Look up]."',
    "I still think about that [summer|evening|day|winter], and it makes me [smile|happy|feel"
    " warm].",
    "A few years ago I was [sick|lonely|lost|very busy], and I [learned|understood] that"
    " [nothing is certain|time is precious|I needed other people].",
)
ADVICE = (
    "So if you [can|have a free hour|feel sad|are tired], {do}.",
    "You do not need [much money|a plan|a reason] to {do}.",
    "If I could give one piece of advice, it would be to {do}.",
    "Today I want to {plan}, and tomorrow I want to {plan2}.",
    "Maybe it is time to {do}.",
    "[Start small|Be patient|Do not worry]. You have more time than you think.",
    "I try to {plan} [every day|once a week|whenever I can], even when it is difficult.",
    "Why not {do}? [You have nothing to lose|It only takes a few minutes|Nobody will stop you].",
    "Some people {do2} when they are sad. I prefer to {plan}.",
)
WISDOM = (
    "Life is [short|a journey|not a race], and [every day|each morning|every moment] is a [gift|new"
    " beginning|chance].",
    "Happiness is not a place that you reach. It is [the way you walk|a habit|how you travel].",
    "Time [moves|goes by] quickly, and we cannot [stop it|buy more of it|turn it back].",
    "The [best|most important] things in life are [simple|free|not things].",
    "I do not know what the future will bring, but I am [not afraid|grateful|ready].",
    "There is [beauty|something good] in every day, if you [look for it|take the time to see it].",
    "We all want [to be happy|to be loved|a good life], but we [forget|do not know] where to look.",
    "It took me many years to [learn|understand] this.",
    "And that is [enough|all I need|fine with me].",
)

OPENINGS = (
    "[Everytime|Every time] I [look|look up] [to|at] {sight}, I [always think|think|often think]"
    " {thought}.",
    "[Everytime|Every time] I [look at|see] {sight}, I [always|often] [feel|feel that I am]"
    " [grateful|calm|happy|small|at peace|at home].",
    "When I look [to|at|up to] {sight}, I [always think|think|start to think] {thought}.",
    "[Right now|Today|This] is the [best|right|perfect] [time|moment|day] to {do}.",
    "[Right now|Today] is [a perfect|a good|the best] [time|moment|day] to {do}.",
    "There is no better time than [right now|today] to {do}.",
    "The one thing [I will never regret|I do not regret|that I will never regret|I will never"
    " forget] is {doing}.",
    "[One|The first|The last|The only] thing I will [never|always] [regret|remember|be proud of]"
    " is {doing}.",
    "I [will never|do not] regret {doing}.",
    "[The|A] [secret|key] to a [happy|good|long|quiet] [life|day|marriage|old age] is to {do}.",
    "The secret to [happiness|success|a good night|a good friendship] is to {do}.",
    "If you want to have a happy life, {do}.",
    "[I think|I believe|Some people say] that the [secret|key] to a happy life is {doing}.",
    "[This morning|Last night|Yesterday], I [sat by the window|walked home in the rain|woke up"
    " early] and thought {thought}.",
    "[My favorite memory is|I will always remember] the [summer|day|evening|winter] when I {did}.",
    "[Life|Time|Friendship|Happiness|Love] is [a gift|not a race|a journey|more than we"
    " understand], and [I am grateful for it|it took me many years to see that|we should not waste"
    " it].",
    "Sometimes I [ask myself|wonder] [why we are always so busy|what makes a good life|where the"
    " time has gone|what my grandmother would say].",
    "The best [advice|decision|gift] [I ever got|of my life] was to {plan}.",
)
# The opening sentence may run on instead of stopping at its full stop.
JOINS = (
    ", because [life is short|it makes me happy|time is precious|no one can do it for you].",
    ", even if [it is difficult|nobody is watching|you are afraid|it takes a long time].",
    ", and [I am grateful for that|it never gets old|I hope it will always be like that].",
)


def _spoken_by(action: str, reflexive: str, possessive: str, subject: str) -> str:
    """Turn advice to "you" into something that another person does."""
    action = action.replace(" yourself", f" {reflexive}").replace(" your", f" {possessive}")
    return f"{action} ".replace(" you ", f" {subject} ").rstrip()


def _bind(rng: random.Random, mood: str) -> dict[str, str]:
    first, second = rng.sample(ACTIONS[mood], 2)
    other, third = (rng.choice(ACTIONS[rng.choice(list(ACTIONS))]) for _ in range(2))
    sight = rng.choice(SIGHTS)
    words = {
        "do": first[0],
        "doing": first[1].replace("that ", "a ") if rng.random() < 0.3 else first[1],
        "did": second[2].replace("that ", "a "),
        "do2": _spoken_by(other[0], "themselves", "their", "they"),
        "plan": _spoken_by(second[0], "myself", "my", "I"),
        "plan2": _spoken_by(third[0], "myself", "my", "I"),
        "sight": sight,
        "sightname": "sky" if "sky" in sight else "stars",
    }
    words["thought"] = fill(rng, rng.choice(THOUGHTS), words)
    return words


def reflection(rng: random.Random, held: bool = False) -> str:
    """One reflective text of a few sentences to a few paragraphs."""
    while True:
        mood, opening = rng.choice(list(ACTIONS)), rng.choice(OPENINGS)
        words = _bind(rng, mood)
        key = words["thought"] if "{thought}" in opening else words["do"] + words["did"]
        if is_held_out("reflection", opening, key) == held:
            break
    first = fill(rng, opening, words)
    if rng.random() < 0.25:
        first = first[:-1] + fill(rng, rng.choice(JOINS), words)
    decks = [Deck(rng, items) for items in (REASONS[mood], MEMORIES, ADVICE, WISDOM)]
    paragraphs = [first]
    for _ in range(rng.choice((0, 1, 1, 2, 2, 3, 5, 8))):
        sentences = []
        for _ in range(rng.randint(2, 5)):
            words = {**_bind(rng, mood), "do": words["do"]}
            sentences.append(fill(rng, rng.choice(decks).deal(), words))
        paragraphs.append(" ".join(sentences))
    if len(paragraphs) > 1:
        paragraphs[:2] = [" ".join(paragraphs[:2])]
    return (" " if rng.random() < 0.3 else "\n\n").join(paragraphs)
