"""What the demo pipeline draws: the chosen Noto Emoji names, the colour words and the captions."""

from __future__ import annotations

import random

# Whole categories first, then single names: a few hundred subjects that read at 128 px.
CATEGORIES = ("Animals & Nature", "Food & Drink", "Travel & Places")

# Near-duplicates, lettered signs and scenes that a small network only blurs.
LEFT_OUT = frozenset(
    """
    aerial-tramway airplane-arrival airplane-departure articulated-lorry auto-rickshaw badger bank beverage-box
    bison boar bowl-with-spoon bridge-at-night building-construction bus-stop bullet-train canned-food carousel-horse
    cityscape cityscape-at-dusk classical-building clinking-beer-mugs clinking-glasses cloud-with-lightning-and-rain
    cockroach comet construction convenience-store cooking cow-face curry-rice cyclone dango department-store
    derelict-house desert-island dodo dumpling empty-nest ewe factory fallen-leaf falafel first-quarter-moon
    first-quarter-moon-face fish-cake-with-swirl flatbread fog foggy fork-and-knife fork-and-knife-with-plate
    front-facing-baby-chick full-moon full-moon-face globe-showing-asia-australia globe-showing-europe-africa
    globe-with-meridians green-salad guide-dog hatching-chick herb high-speed-train hindu-temple
    horizontal-traffic-light horse-face hot-springs hotel hospital houses hut japanese-castle japanese-post-office
    kaaba landslide last-quarter-moon last-quarter-moon-face leaf-fluttering-in-wind leafless-tree leafy-green
    light-rail love-hotel luggage manual-wheelchair map-of-japan mate metro microbe milky-way minibus monkey
    monorail mosque motor-boat motorized-wheelchair motorway mountain mountain-cableway mountain-railway mouse
    national-park new-moon new-moon-face night-with-stars oden office-building oil-drum oncoming-automobile
    oncoming-bus oncoming-police-car oncoming-taxi ox oyster passenger-ship phoenix pig-nose playground-slide
    poodle post-office pot-of-food pouring-liquid rabbit railway-car railway-track ram rat rice-cracker rosette
    roasted-sweet-potato root-vegetable sake school seat service-dog shallow-pan-of-food sheaf-of-rice
    shinto-shrine ship soft-ice-cream speedboat sport-utility-vehicle stadium star station steaming-bowl
    stuffed-flatbread sun-behind-cloud sun-behind-large-cloud sun-behind-small-cloud sunrise
    sunrise-over-mountains sunset suspension-railway synagogue tamale tiger-face tokyo-tower tram tram-car
    trolleybus two-hump-camel umbrella-on-ground umbrella-with-rain-drops vertical-traffic-light
    waning-crescent-moon waning-gibbous-moon water-buffalo water-wave waxing-crescent-moon waxing-gibbous-moon
    wedding whale wheel white-flower wilted-flower wind-face wing wood world-map salt beach-with-umbrella
    beetle blossom bouquet cherry-blossom cloud-with-lightning cloud-with-rain cloud-with-snow camping
    cooked-rice cut-of-meat fondue fountain hyacinth ice kitchen-knife nest-with-eggs paw-prints rock spoon
    snowman-without-snow hourglass-not-done teacup-without-handle tumbler-glass kick-scooter worm fly
    """.split()
)
ADDED = tuple(
    """
    alien alien-monster ghost robot pile-of-poo skull red-heart smiling-face-with-sunglasses grinning-face
    christmas-tree jack-o-lantern kite magic-wand soccer-ball basketball teddy-bear trophy wrapped-gift balloon
    artist-palette accordion alarm-clock axe backpack banjo bathtub bell bomb books broom camera candle
    chair crown door dress drum gem-stone glasses guitar hammer headphone key light-bulb locked magnet megaphone
    microscope paintbrush pencil ring running-shoe saxophone scissors shield shopping-cart socks sunglasses
    t-shirt telephone telescope television top-hat toothbrush treasure-chest trumpet violin video-game
    """.split()
)
RENAMED = {
    "automobile": "car",
    "doughnut": "donut",
    "hot-beverage": "cup of coffee",
    "globe-showing-americas": "planet earth",
    "glowing-star": "star",
    "grinning-face": "smiling face",
    "smiling-face-with-sunglasses": "cool face with sunglasses",
    "pile-of-poo": "poo",
    "jack-o-lantern": "pumpkin",
    "spouting-whale": "whale",
    "high-voltage": "lightning bolt",
    "flying-saucer": "ufo",
    "headphone": "headphones",
    "running-shoe": "shoe",
    "wrapped-gift": "gift",
    "gem-stone": "diamond",
    "locked": "padlock",
    "snow-capped-mountain": "mountain",
    "deciduous-tree": "tree",
    "evergreen-tree": "pine tree",
    "ear-of-corn": "corn",
    "t-rex": "dinosaur",
    "sauropod": "long neck dinosaur",
    "lady-beetle": "ladybug",
    "hot-pepper": "chili pepper",
    "police-car-light": "siren",
    "honeybee": "bee",
    "kiwi-fruit": "kiwi",
    "hourglass-done": "hourglass",
    "video-game": "game controller",
    "sun-behind-rain-cloud": "rain cloud",
    "beer-mug": "mug of beer",
    "glass-of-milk": "milk",
}

# Drawn in the README's sheet and never seen by any LoRA.
HELD_OUT = (
    "octopus",
    "pizza",
    "rocket",
    "castle",
    "rose",
    "bus",
    "cat face",
    "red apple",
    "turtle",
    "volcano",
    "birthday cake",
    "owl",
    "hamburger",
    "guitar",
    "sailboat",
    "penguin",
    "cactus",
    "crown",
    "strawberry",
    "tropical fish",
    "house",
    "mushroom",
    "butterfly",
    "robot",
)

# Hue in degrees; the words a caption may use for a recoloured subject.
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "gray")
BACKGROUNDS = {
    "red": (0.87, 0.25, 0.25),
    "orange": (0.98, 0.66, 0.32),
    "yellow": (0.98, 0.90, 0.45),
    "green": (0.45, 0.78, 0.45),
    "blue": (0.42, 0.66, 0.95),
    "purple": (0.62, 0.45, 0.82),
    "pink": (0.98, 0.72, 0.82),
    "gray": (0.65, 0.65, 0.67),
    "black": (0.07, 0.07, 0.09),
}
# Pairs kept out of the base's training: they show that a colour word composes with a subject.
HELD_OUT_PAIRS = frozenset(
    {
        ("blue", "apple"),
        ("purple", "bus"),
        ("green", "octopus"),
        ("pink", "car"),
        ("blue", "strawberry"),
        ("red", "turtle"),
        ("yellow", "house"),
        ("green", "cat face"),
        ("orange", "guitar"),
        ("purple", "mushroom"),
        ("blue", "rose"),
        ("red", "crown"),
    }
)
_COLOUR_WORDS = frozenset((*COLOURS, "black", "white", "brown"))


def chosen(categories: dict[str, list[str]]) -> list[tuple[str, str]]:
    """(icon name, subject name) of every subject, in a fixed order."""
    icons = [i for c in CATEGORIES for i in categories[c] if "thirty" not in i and "oclock" not in i]
    known = {i for v in categories.values() for i in v}
    icons = [i for i in icons if i not in LEFT_OUT] + [i for i in ADDED if i in known]
    return [(i, RENAMED.get(i, i.replace("-", " "))) for i in dict.fromkeys(icons)]


def without_colour(name: str) -> str:
    """'red apple' -> 'apple': a colour word of the artwork's own name gives way to another."""
    first, _, rest = name.partition(" ")
    return rest if rest and first in _COLOUR_WORDS else name


def caption(rng: random.Random, name: str, colour: str | None = None, background: str | None = None) -> str:
    """One caption, in one of the wordings that a user is likely to type."""
    if colour is not None:
        name = f"{colour} {without_colour(name)}"
    elif rng.random() < 0.15:
        name = without_colour(name)
    article = "an" if name[0] in "aeiou" else "a"
    wording = rng.choices(
        ("{n}", "{a} {n}", "emoji of {a} {n}", "{n} emoji", "picture of {a} {n}", "the {n}"),
        (35, 33, 12, 7, 8, 5),
    )[0]
    text = wording.format(n=name, a=article)
    if background is not None:
        text += rng.choice((" on {b} background", " on a {b} background", " with {b} background")).format(
            b=background
        )
    elif rng.random() < 0.05:
        text += " on white background"
    return text
