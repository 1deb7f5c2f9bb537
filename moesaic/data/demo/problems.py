"""The arithmetic word problems as data: what is given, how it may be asked, and the steps to the answer.

Knows no numbers and no names in particular: `math` draws them. The wordings are in the grammar of `phrases`.
"""

from collections.abc import Sequence
from typing import NamedTuple


class Step(NamedTuple):
    """One calculation, `result = left operator right`, and the sentence that says it, with `{eq}` for the equation."""

    result: str
    left: str
    operator: str
    right: str
    saying: str

    @property
    def equation(self) -> str:
        """The calculation as it is printed, its numbers still open."""
        left, right = (word if word.isdigit() else f"{{{word}}}" for word in (self.left, self.right))
        return f"{left} {self.operator} {right} = {{{self.result}}}"


class Problem(NamedTuple):
    """One structure of problem: the numbers it may draw, several questions, and the steps, the answer last."""

    numbers: dict[str, Sequence[int]]
    questions: tuple[str, ...]
    steps: tuple[Step, ...]


def step(calculation: str, saying: str) -> Step:
    """A step written as it is read: `step("cost = price * count", "Together that is {eq}.")`."""
    result, _, left, operator, right = calculation.split()
    return Step(result, left, operator, right, saying)


# Each key names slots that are filled with different members of the pool.
POOLS: dict[str, tuple[str, ...]] = {
    "name other third": (
        "Amara", "Ben", "Chiara", "Dmitri", "Elif", "Farid", "Greta", "Hugo", "Ines", "Jonas", "Kaito", "Lena",
        "Mateo", "Nadia", "Oskar", "Priya", "Quentin", "Rosa", "Samir", "Tove", "Umar", "Vera", "Wanda", "Yusuf", "Zoe",
    ),
    "things goods": (
        "mugs", "pens", "notebooks", "candles", "plates", "postcards", "lamps", "scarves", "puzzles", "brushes",
        "baskets", "kites", "cushions", "stamps", "batteries", "bulbs", "toy cars", "picture frames",
    ),
    "food snack": (
        "apples", "pears", "plums", "muffins", "rolls", "oranges", "peaches", "pancakes", "biscuits", "eggs", "figs",
        "lemons", "pastries", "dumplings", "tomatoes",
    ),
    "container": ("bag", "crate", "tray", "pack", "basket", "carton", "case", "tin", "bucket"),
    "coin": ("dollars", "euros", "pounds", "crowns", "francs", "pesos"),
    "shop": ("market", "corner shop", "department store", "village fair", "museum shop", "station kiosk", "bazaar"),
    "town city": (
        "Alderbay", "Brimstead", "Corvale", "Dunmere", "Eastbrook", "Fernhill", "Grayport", "Hollowell", "Ilmford",
        "Kestrel Point", "Larkham", "Millbrook",
    ),
    "vehicle": ("train", "bus", "van", "truck", "car", "coach"),
    "plant": ("rose bushes", "tulips", "cabbages", "bean plants", "pepper plants", "young trees", "sunflowers"),
    "day": ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"),
    "product": ("chairs", "bicycles", "shirts", "clocks", "radios", "kettles", "toys", "backpacks", "umbrellas"),
    "worker": ("baker", "painter", "gardener", "waiter", "carpenter", "tutor", "courier", "photographer", "plumber"),
    "group": ("school class", "choir", "hiking club", "sports team", "brass band", "drama group", "chess club"),
    "field": ("garden", "meadow", "playground", "yard", "field", "vineyard", "car park"),
    "room": ("kitchen", "hall", "bedroom", "workshop", "lounge", "living room", "library"),
    "wish": ("bicycle", "guitar", "camera", "tent", "telescope", "skateboard", "violin", "sewing machine", "tablet"),
}  # fmt: skip

SMALL, MEDIUM, LARGE = range(2, 13), range(10, 60), range(50, 500)
TENS, HUNDREDS = range(20, 200, 10), range(100, 2000, 100)

PROBLEMS: tuple[Problem, ...] = (
    Problem(
        {"price": range(2, 16), "count": SMALL, "paid": (20, 50, 100, 200)},
        (
            "{name} buys {count} {things} at {price} {coin} each and pays with [a note of |]{paid} {coin}. "
            "[How much change does {name} get?|How many {coin} does {name} get back?|What is the change?]",
            "At the {shop}, {things} cost {price} {coin} each. {name} [takes|chooses|picks] {count} of them and hands "
            "over {paid} {coin}. How many {coin} [should come back|are returned]?",
            "[Suppose|Say] you pay {paid} {coin} for {count} {things} [that cost|priced at] {price} {coin} each. "
            "[How much do you get back|What change do you receive]?",
        ),
        (
            step(
                "cost = price * count", "[The {things} cost|All the {things} together cost|The price is] {eq} {coin}."
            ),
            step("change = paid - cost", "[What comes back is|The change is|That leaves] {eq} {coin}."),
        ),
    ),
    Problem(
        {"a": SMALL, "p": range(2, 20), "b": SMALL, "q": range(2, 20)},
        (
            "{name} [orders|buys|needs] {a} {things} at {p} {coin} each and {b} {goods} at {q} {coin} each. "
            "[What is the bill|What does that cost in total|How much is that altogether]?",
            "A {container} of {food} costs {p} {coin} and a {container} of {snack} costs {q} {coin}. {name} "
            "[takes|buys] "
            "{a} of the first and {b} of the second. [How much must {name} pay?|What is the total price?]",
            "In the {shop}, {name} finds {things} for {p} {coin} and {goods} for {q} {coin} [apiece|each]. What do {a} "
            "{things} and {b} {goods} cost [together|altogether|in all]?",
        ),
        (
            step("first = a * p", "The first [purchase|part|item] comes to {eq} {coin}."),
            step("second = b * q", "The second [comes to|costs|adds] {eq} {coin}."),
            step("total = first + second", "[Together|In total|Altogether] that is {eq} {coin}."),
        ),
    ),
    Problem(
        {"boxes": SMALL, "each": range(4, 30), "loose": SMALL},
        (
            "{name} has {boxes} {container}s with {each} {food} in each, and {loose} [loose|single|more] {food}. "
            "[How many {food} are there|How many {food} does {name} have] [in all|altogether]?",
            "A shelf [holds|carries] {boxes} full {container}s of {things} and {loose} {things} that did not fit. One "
            "{container} takes {each}. How many {things} are [there|on the shelf]?",
            "[On {day}|Yesterday|This morning], {name} [packed|filled] {boxes} {container}s with {each} {food} each "
            "and "
            "had {loose} left over. How many {food} were there [at first|to begin with|before packing]?",
        ),
        (
            step("packed = boxes * each", "The {container}s hold {eq}."),
            step("total = packed + loose", "[With|Counting] the [others|rest], there are {eq}."),
        ),
    ),
    Problem(
        {"total": range(20, 300), "people": range(3, 13)},
        (
            "{total} {food} are [shared|divided] [equally|fairly|evenly] among {people} [children|friends|neighbours]. "
            "How many does each [get|receive]?",
            "{name} [wants to put|puts|sorts] {total} {things} into {people} {container}s, the same number in each. "
            "How "
            "many {things} [go into|are in] one {container}?",
            "{people} [friends|cousins|colleagues] win {total} {coin} and split the prize [equally|evenly]. [How "
            "much is "
            "one share|How many {coin} does each of them get]?",
        ),
        (step("share = total / people", "[Each share is|Dividing equally gives|One part is] {eq}."),),
    ),
    Problem(
        {"total": range(30, 200), "gone": range(3, 40), "people": range(3, 10)},
        (
            "{name} bakes {total} {food}. {gone} of them [burn|go to {other}|are sold at once], and {people} guests "
            "share "
            "the rest [equally|evenly]. How many does each guest get?",
            "Of {total} {things} in a delivery, {gone} are [broken|damaged|missing]. The good ones are "
            "[spread|divided] "
            "evenly over {people} shelves. How many {things} are on each shelf?",
            "A {group} collects {total} {coin}, spends {gone} on [posters|snacks|stamps], and divides what is left "
            "[equally |]among {people} charities. [How much does each charity receive|What does each charity get]?",
        ),
        (
            step("left = total - gone", "[Left over are|What remains is|That leaves] {eq}."),
            step("share = left / people", "[Shared equally, that is|Each part is|Divided, that makes] {eq}."),
        ),
    ),
    Problem(
        {"u": range(30, 121, 5), "s": range(2, 7), "v": range(30, 121, 5), "t": range(2, 7)},
        (
            "A {vehicle} [drives|travels] for {s} hours at {u} km/h and then for {t} hours at {v} km/h. [How far "
            "does it "
            "go|How many kilometres is that|What distance does it cover] [in all|altogether]?",
            "On the way from {town} to {city}, {name} drives {s} hours at {u} km per hour and, [after a break|past the "
            "hills|on the motorway], {t} hours at {v} km per hour. How [long is the way|far apart are the towns]?",
        ),
        (
            step("first = u * s", "The first [stretch|part] is {eq} km long."),
            step("second = v * t", "The second [stretch|part] is {eq} km long."),
            step("way = first + second", "[The whole way is|Together they are|In all this makes] {eq} km."),
        ),
    ),
    Problem(
        {"way": range(60, 900, 10), "speed": range(20, 130, 10)},
        (
            "It is {way} km from {town} to {city}. How many hours does a {vehicle} need at [a steady |]{speed} km/h?",
            "A {vehicle} [covers|travels] {speed} km every hour. [How long does it take|How many hours pass] until "
            "it has "
            "[covered|gone|travelled] {way} km?",
            "{name} [has to drive|is driving] {way} km to [visit {other}|see {other}|reach {town}] and manages "
            "{speed} km "
            "an hour. How many hours does the [trip|drive|journey] take?",
        ),
        (step("hours = way / speed", "[The time needed is|That takes|The trip lasts] {eq} hours."),),
    ),
    Problem(
        {"weekly": range(3, 40), "weeks": SMALL, "spent": range(10, 100)},
        (
            "{name} [saves|puts aside] {weekly} {coin} a week. After {weeks} weeks {name} [spends {spent} {coin} on "
            "{things}|pays {spent} {coin} for a {wish}]. How much is [left|still there]?",
            "Every {day}, {name} [drops|puts] {weekly} {coin} into a jar. {weeks} weeks later, {spent} {coin} are "
            "[taken "
            "out|lent to {other}|given to {other}]. How many {coin} [remain|stay] in the jar?",
        ),
        (
            step("saved = weekly * weeks", "[The savings grow to|In that time {name} saves|That makes] {eq} {coin}."),
            step("left = saved - spent", "[Afterwards|After that|Now] there are {eq} {coin} left."),
        ),
    ),
    Problem(
        {"price": range(60, 600, 5), "have": range(10, 100, 5), "weekly": range(5, 31, 5)},
        (
            "A {wish} costs {price} {coin}. {name} [already has|owns] {have} {coin} and saves {weekly} {coin} each "
            "week. "
            "[How many weeks will it take|For how many weeks must {name} save]?",
            "{name} [dreams of|would like] a {wish} for {price} {coin}. There are {have} {coin} in the [bank|piggy "
            "bank|"
            "drawer], and {weekly} more come in every week. After how many weeks [is it enough|can {name} buy it]?",
        ),
        (
            step("missing = price - have", "[Still missing are|{name} still needs|The gap is] {eq} {coin}."),
            step("weeks = missing / weekly", "[Saving that takes|That needs|It takes] {eq} weeks."),
        ),
    ),
    Problem(
        {"price": range(20, 800, 20), "percent": range(5, 80, 5)},
        (
            "A {wish} [that costs|priced at] {price} {coin} is reduced by {percent} percent. [What does it cost "
            "now|What "
            "is the new price|How many {coin} must be paid]?",
            "The {shop} [gives|offers] {percent} percent off everything. [How much does {name} pay for|What is the "
            "price "
            "of] a {wish} that used to cost {price} {coin}?",
            "[Members|Students|Children] get a discount of {percent} percent. The normal price is {price} {coin}. What "
            "[is the reduced price|do they pay]?",
        ),
        (
            step("times = price * percent", "[First multiply by the percentage|For the percentage, multiply]: {eq}."),
            step("off = times / 100", "[The discount is|The price falls by] {eq} {coin}."),
            step("now = price - off", "[The new price is|What remains to pay is|So it costs] {eq} {coin}."),
        ),
    ),
    Problem(
        {"total": range(20, 1000, 20), "percent": range(5, 100, 5)},
        (
            "Of the {total} [people at a concert|visitors of a fair|passengers on a ferry], {percent} percent [are "
            "children|come from {town}|bought their ticket early]. How many [others are there|do not belong to them]?",
            "A farmer [harvests|picks] {total} {food}, and {percent} percent of them are [sold|eaten] on {day}. How "
            "many "
            "[are left|remain]?",
            "{percent} percent of the {total} [seats|tickets] in the [theatre|stadium] are already taken. How many are "
            "[still |]free?",
        ),
        (
            step("times = total * percent", "[Multiply by the percentage|For the percentage, multiply]: {eq}."),
            step("part = times / 100", "[Divided by a hundred, that is|The percentage stands for] {eq}."),
            step("rest = total - part", "[The others are|That leaves|The rest is] {eq}."),
        ),
    ),
    Problem(
        {"age": range(5, 60), "more": range(2, 15), "years": range(2, 20)},
        (
            "{name} is {age} years old, and {other} is {more} years older. How old will {other} be in {years} years?",
            "[Today|This year] {name} [turns|is] {age}. {other} is {more} years older[ than {name}|]. What age will "
            "{other} [reach|have reached] {years} years from now?",
            "{other} was born {more} years before {name}, who is {age} [now|today|years old]. In {years} years, how "
            "old "
            "[is|will] {other}[ going to be| be|]?",
        ),
        (
            step("now = age + more", "[Now|Today|At present] {other} is {eq} years old."),
            step("then = now + years", "In {years} years {other} will be {eq}."),
        ),
    ),
    Problem(
        {"age": range(3, 15), "times": range(2, 6)},
        (
            "{name} is {age}. {other} is {times} times as old. [How old are they together|What is the sum of their "
            "ages]?",
            "{other}'s age is {times} times {name}'s, and {name} is {age} [years old|]. [What do the two ages add up "
            "to|"
            "How many years old are the two together]?",
        ),
        (
            step("older = age * times", "{other} is {eq} years old."),
            step("both = older + age", "[Together they are|The two ages add up to|Their sum is] {eq} years."),
        ),
    ),
    Problem(
        {"long": range(8, 60), "wide": range(5, 40), "price": range(2, 20)},
        (
            "A rectangular {field} is {long} m long and {wide} m wide. [What does a fence around it cost|How much is a "
            "fence all around] if one metre costs {price} {coin}?",
            "{name} [fences in|encloses] a {field} of {long} by {wide} metres. Every metre of fence costs {price} "
            "{coin}. "
            "[What is the price of the whole fence|How much does {name} pay]?",
        ),
        (
            step("half = long + wide", "One long and one short side [measure|are] {eq} m[ together|]."),
            step("around = half * 2", "[All the way around|The perimeter] is {eq} m."),
            step("cost = around * price", "The fence costs {eq} {coin}."),
        ),
    ),
    Problem(
        {"long": range(3, 20), "wide": range(2, 15), "price": range(4, 40)},
        (
            "The floor of a {room} is {long} m long and {wide} m wide. [New boards|Tiles|Carpets] cost {price} "
            "{coin} per "
            "square metre. [What does the floor cost|How much is a new floor]?",
            "{name} [is painting|paints|tiles] a [wall|ceiling|terrace] of {long} by {wide} metres. The material for "
            "one "
            "square metre costs {price} {coin}. [How much is the material|What does it all cost]?",
        ),
        (
            step("area = long * wide", "The area is {eq} square metres."),
            step("cost = area * price", "[The price is|So it costs|At that rate it comes to] {eq} {coin}."),
        ),
    ),
    Problem(
        {"rate": range(9, 45), "hours": range(2, 10), "days": range(2, 7), "tax": range(10, 200, 5)},
        (
            "A {worker} earns {rate} {coin} an hour and works {hours} hours a day for {days} days. {tax} {coin} go to "
            "[taxes|insurance|the agency]. How much [is left|remains]?",
            "{name} [works|has a job] as a {worker}: {days} days, {hours} hours each, [paid|for] {rate} {coin} an "
            "hour. "
            "[Travel|Material|Rent for tools] costs {tax} {coin}. What does {name} [earn|keep] in the end?",
        ),
        (
            step("daily = rate * hours", "[One day brings|A day pays] {eq} {coin}."),
            step("wage = daily * days", "[All days together bring|The whole job pays] {eq} {coin}."),
            step("kept = wage - tax", "[After the costs there remain|In the end there are] {eq} {coin}."),
        ),
    ),
    Problem(
        {"pages": range(120, 700), "daily": range(5, 45), "days": SMALL},
        (
            "{name}'s [book|novel|textbook] has {pages} pages. [After reading|Having read] {daily} pages a day for "
            "{days} "
            "days, how many pages [are left|remain|does {name} still have to read]?",
            "{name} [reads|studies] {daily} pages [every evening|a day] in a [book|novel|biography] of {pages} "
            "pages. How "
            "many are [still |]unread after {days} days?",
        ),
        (
            step("read = daily * days", "[By then|In {days} days] {name} has read {eq} pages."),
            step("left = pages - read", "[Left are|That leaves|Still unread are] {eq} pages."),
        ),
    ),
    Problem(
        {"pages": range(80, 600), "read": range(10, 80), "daily": range(5, 40)},
        (
            "{name} has [finished|read] {read} of the {pages} pages of a [novel|report|script]. At {daily} pages a "
            "day, "
            "how many [more |]days does the rest take?",
            "A [translator|typist|proofreader] has done {read} pages of a text of {pages} and [manages|does] {daily} "
            "pages "
            "a day. [In how many days will the work be done|How many days of work remain]?",
        ),
        (
            step("rest = pages - read", "[Still to do are|There remain|The rest is] {eq} pages."),
            step("days = rest / daily", "[That takes|They need|So it will take] {eq} days."),
        ),
    ),
    Problem(
        {"a": MEDIUM, "b": MEDIUM, "c": MEDIUM},
        (
            "{name} [scores|gets] {a}, {b} and {c} points in three [games|rounds|tests]. What is the average[ score|]?",
            "A [shop|stand|kiosk] sells {a} {things} on the first day, {b} on the second and {c} on the third. How "
            "many is "
            "that per day on average?",
            "{name}, {other} and {third} are carrying {a}, {b} and {c} {things}. They [want to|decide to] carry "
            "equally "
            "many. How many [should each of them|will each] carry?",
        ),
        (
            step("two = a + b", "The first two [make|add up to|are] {eq}."),
            step("three = two + c", "[With the third|All three together], that is {eq}."),
            step("mean = three / 3", "[The average is|Divided by three|Each third is] {eq}."),
        ),
    ),
    Problem(
        {"grams": range(100, 1500, 50), "few": range(2, 7), "many": range(5, 21)},
        (
            "A recipe for {few} people [needs|asks for] {grams} g of [flour|rice|lentils|potatoes]. How [much|many "
            "grams] "
            "[is|are] needed for {many} people?",
            "[To feed {few} guests|For {few} portions], {name} cooks {grams} grams of [pasta|beans|rice]. How many "
            "grams "
            "does {name} need for {many} [guests|portions]?",
        ),
        (
            step("one = grams / few", "[One person needs|A single portion is|Per head that is] {eq} g."),
            step("all = one * many", "[For {many}, that makes|{many} of them need] {eq} g."),
        ),
    ),
    Problem(
        {"rows": range(5, 40), "seats": range(8, 40), "empty": range(5, 90)},
        (
            "A [hall|theatre|cinema] has {rows} rows of {seats} seats. At {day}'s show, {empty} seats stayed empty. "
            "How many "
            "[people came|visitors were there|seats were taken]?",
            "There are {rows} rows with {seats} chairs each in the [gym|tent|town hall], and all but {empty} are "
            "taken. How "
            "many [people are sitting|chairs are taken]?",
        ),
        (
            step("all = rows * seats", "[There are|The place has|In all there are] {eq} seats."),
            step("taken = all - empty", "[Taken are|Without the empty ones, that is|That leaves] {eq}."),
        ),
    ),
    Problem(
        {"start": range(15, 60), "off": range(3, 15), "on": range(3, 25), "last": range(3, 15)},
        (
            "A {vehicle} leaves {town} with {start} passengers. At the [first|next] stop {off} get off and {on} get "
            "on; at "
            "the [second|following] stop {last} get off. How many [are on board|passengers are left] now?",
            "{start} people are [riding|sitting] in a {vehicle}. In {city}, {off} of them leave and {on} others come "
            "in. "
            "Later {last} more leave. How many people are [in it|still riding] [then|at the end]?",
        ),
        (
            step("stay = start - off", "After the first ones have left there are {eq}."),
            step("more = stay + on", "[With the new ones|Then others join, which makes] {eq}."),
            step("end = more - last", "[At last|In the end|Finally] there are {eq}."),
        ),
    ),
    Problem(
        {"start": range(5, 20), "up": range(2, 16), "down": range(2, 14)},
        (
            "[In the morning|At dawn|At six] it is {start} degrees in {town}. By noon it gets {up} degrees warmer, "
            "and by "
            "[night|evening] it cools by {down} degrees. [What is the temperature then|How warm is it then]?",
            "The thermometer [shows|reads] {start} degrees. [First|Then] it rises by {up} and later it falls by "
            "{down}. What "
            "does it [show|read] [now|in the end]?",
        ),
        (
            step("noon = start + up", "[After the rise|At its warmest|First] it is {eq} degrees."),
            step("night = noon - down", "[After the fall|Later|Then] it is {eq} degrees."),
        ),
    ),
    Problem(
        {"each": range(3, 25), "count": range(3, 20), "pause": range(5, 60, 5)},
        (
            "{name} needs {each} minutes to [paint|wrap|repair|clean] one of the {count} {things} and takes a break of "
            "{pause} minutes in between. How many minutes [does it all take|pass until all are done]?",
            "[Grading|Checking|Reading] one [letter|test|form] takes {each} minutes. {name} has {count} of them and "
            "one pause "
            "of {pause} minutes. How [long does that take|many minutes is that] [in all|altogether]?",
        ),
        (
            step("work = each * count", "The work itself takes {eq} minutes."),
            step("all = work + pause", "With the [break|pause] it is {eq} minutes."),
        ),
    ),
    Problem(
        {"full": TENS, "have": range(10, 150, 5), "rate": range(3, 16)},
        (
            "A tank [holds|takes] {full} litres and [contains|already has] {have}. A [pump|hose|tap] adds {rate} "
            "litres a "
            "minute. [After how many minutes is it full|How many minutes until it is full]?",
            "{name} fills a [pond|pool|barrel] of {full} litres in which there [already |]are {have} litres. {rate} "
            "litres "
            "flow in per minute. How many minutes does [it|the filling] take?",
        ),
        (
            step("missing = full - have", "[Missing are|There is room for|Still needed are] {eq} litres."),
            step("minutes = missing / rate", "[Filling takes|That needs|They flow in within] {eq} minutes."),
        ),
    ),
    Problem(
        {"machines": SMALL, "rate": range(3, 30), "hours": range(3, 13), "bad": range(3, 50)},
        (
            "A factory has {machines} machines that each make {rate} {product} an hour. In a shift of {hours} hours, "
            "{bad} "
            "{product} are [faulty|rejected]. How many good {product} [are there|does the shift make]?",
            "{machines} [robots|workers] [build|assemble] {rate} {product} an hour each. After {hours} hours {bad} "
            "{product} [fail the test|must be thrown away]. How many [pass|are left]?",
        ),
        (
            step("hourly = machines * rate", "[In one hour|Every hour|Per hour] they make {eq} {product}."),
            step("made = hourly * hours", "[In {hours} hours|During the whole time] that is {eq}."),
            step(
                "good = made - bad",
                "[Without the bad ones there are|The good ones are|Subtracting the bad ones leaves] {eq}.",
            ),
        ),
    ),
    Problem(
        {"total": range(12, 200), "part": range(3, 10), "more": range(2, 20)},
        (
            "{name} has {total} {things} and gives one part in {part} of them to {other}, then {more} to {third}. "
            "How many "
            "does {name} [keep|have left]?",
            "One in {part} of the {total} {food} in a {container} is [rotten|green|too small], and {more} of the "
            "others "
            "[are eaten|have been sold]. How many [good ones are left|good ones remain]?",
        ),
        (
            step("share = total / part", "One part in {part} is {eq}."),
            step("rest = total - share", "[Without it|Taking that away leaves|That leaves] {eq}."),
            step("left = rest - more", "[In the end|After that|Finally] there are {eq}."),
        ),
    ),
    Problem(
        {"a": range(3, 30), "b": range(3, 30), "hours": SMALL},
        (
            "{name} [folds|packs|labels] {a} [letters|parcels|boxes] an hour and {other} {b}. How many do they finish "
            "together in {hours} hours?",
            "Two [printers|pumps|machines] work side by side: one makes {a} [rounds|pieces] an hour, the other {b}. "
            "How many "
            "[is that|do they make] in {hours} hours[ together|]?",
        ),
        (
            step("both = a + b", "[Together they do|In an hour, both do|Per hour that is] {eq}."),
            step("all = both * hours", "[In {hours} hours|After {hours} hours|Over the whole time] that makes {eq}."),
        ),
    ),
    Problem(
        {"a": range(5, 40), "b": range(3, 39), "count": SMALL},
        (
            "At the {shop} {things} cost {a} {coin} each, on the internet only {b}. How much does {name} save [by "
            "ordering "
            "|on ]{count}[ of them| {things}] online?",
            "{name} pays {a} {coin} for each of {count} {things}; {other} [finds|gets] the same ones for {b} {coin}. "
            "How much "
            "[more|extra] does {name} pay [in all|altogether]?",
        ),
        (
            step("gap = a - b", "[Each one differs by|The difference on one is|Per piece that is] {eq} {coin}."),
            step("all = gap * count", "[For {count}|On all of them|Taken {count} times], that is {eq} {coin}."),
        ),
    ),
    Problem(
        {"adults": SMALL, "price": range(8, 30), "kids": SMALL, "less": range(3, 8)},
        (
            "A ticket [for the zoo|to the museum|for the boat] costs {price} {coin}, for children {less} {coin} "
            "less. What do "
            "{adults} adults and {kids} children pay [together|in all]?",
            "{adults} grown-ups and {kids} children [visit|go to] a [castle|planetarium|circus]. Grown-ups pay "
            "{price} {coin}; "
            "children pay {less} {coin} less. [How much is that in total|What do all the tickets cost]?",
        ),
        (
            step("child = price - less", "A child's ticket costs {eq} {coin}."),
            step("big = adults * price", "The adults pay {eq} {coin}."),
            step("small = kids * child", "The children pay {eq} {coin}."),
            step("all = big + small", "[Together|In total|All tickets together], that is {eq} {coin}."),
        ),
    ),
    Problem(
        {"rows": range(3, 20), "each": range(4, 25), "dead": range(2, 30), "fruit": range(2, 9)},
        (
            "{name} sets {rows} rows of {each} {plant}. {dead} of them [wither|do not grow|are eaten by snails], and "
            "{fruit} "
            "flowers open on each of the others. How many flowers [is that|are there]?",
            "In a [nursery|greenhouse|park] there are {rows} beds with {each} {plant} each. {dead} are [sold|moved], "
            "the rest "
            "need {fruit} litres of water each. How many litres [are needed|is that]?",
        ),
        (
            step("all = rows * each", "[There are|At first there are|It starts with] {eq} {plant}."),
            step("left = all - dead", "[Of these, there remain|Left over are] {eq}."),
            step("sum = left * fruit", "[Times {fruit}|With {fruit} each], that is {eq}."),
        ),
    ),
    Problem(
        {"start": range(3, 60), "growth": range(2, 5), "more": range(5, 50)},
        (
            "[On the first day|At first] {start} people [follow|read|visit] {name}'s [blog|page|channel]. The next "
            "day it is "
            "{growth} times as many, and on the third day {more} more come on top. How many [is that|are there then]?",
            "A [colony|pond|field] counts {start} [frogs|ants|rabbits]. A year later there are {growth} times as "
            "many, and "
            "then {more} more [move in|are born]. How many [are there now|animals is that]?",
        ),
        (
            step("grown = start * growth", "[The number grows to|Multiplied, that makes|Then there are] {eq}."),
            step(
                "all = grown + more", "[With the new ones, that is|Adding the others gives|In the end there are] {eq}."
            ),
        ),
    ),
    Problem(
        {"total": LARGE, "a": range(10, 200), "b": range(10, 200)},
        (
            "{name}, {other} and {third} [collect|own|count] {total} {things} [altogether|in all]. {name} has {a} "
            "and {other} "
            "{b}. How many [belong to {third}|does {third} have]?",
            "On three days, {total} [tickets|papers|meals] were sold: {a} on the first and {b} on the second. [How "
            "many were "
            "sold on the third|What about the third day]?",
            "A [rope|cable|ribbon] of {total} cm is cut into three pieces. Two of them are {a} cm and {b} cm long. "
            "[How long "
            "is the third|What is the length of the last one]?",
        ),
        (
            step("known = a + b", "[The two known ones make|What is known adds up to] {eq}."),
            step("third_one = total - known", "[For the third there remain|The third is|That leaves] {eq}."),
        ),
    ),
    Problem(
        {"gap": range(20, 400, 10), "fast": range(30, 121, 10), "slow": range(10, 100, 10)},
        (
            "A {vehicle} [at|going] {slow} km/h is {gap} km ahead of a [motorbike|police car|racing car] at {fast} "
            "km/h. How "
            "many hours [until|pass until] it is [caught up|overtaken]?",
            "{name} [drives|rides] at {slow} km/h and has a lead of {gap} km; {other} follows at {fast} km/h. After "
            "how many "
            "hours [do they meet|does {other} catch up|are they side by side]?",
        ),
        (
            step("closing = fast - slow", "[Every hour the gap shrinks by|The follower gains] {eq} km."),
            step("hours = gap / closing", "[It is closed after|Closing the gap takes|So it takes] {eq} hours."),
        ),
    ),
    Problem(
        {"total": range(30, 600, 6), "a": range(2, 7), "b": range(2, 7)},
        (
            "{name} and {other} [divide|share] {total} {coin} in the ratio {a} to {b}. How much does {name} "
            "[get|receive]?",
            "[Sand and gravel|Juice and water|Red and blue paint] are [mixed|used] in the ratio {a} to {b}. How much "
            "of the "
            "first is in {total} [litres|kilograms] of the mixture?",
            "For every {a} [teachers|boys|cats] there are {b} [pupils|girls|dogs], {total} [in all|altogether]. How "
            "many of "
            "the first kind are there?",
        ),
        (
            step("parts = a + b", "There are {eq} parts[ in all|]."),
            step("part = total / parts", "[One part is|A single part makes] {eq}."),
            step("share = part * a", "[The first one's share is|{a} parts are|So the first share is] {eq}."),
        ),
    ),
    Problem(
        {"base": range(5, 40), "free": range(2, 20), "used": range(5, 60), "price": range(2, 9)},
        (
            "A phone plan costs {base} {coin} a month, with {free} [gigabytes|hours of calls] included; each one "
            "beyond that "
            "costs {price} {coin}. [What does {name} pay for|What is the bill for] {used}?",
            "[Renting a boat|A parking space|Hiring a bike] costs {base} {coin}, {free} hours included. Every "
            "further hour "
            "costs {price} {coin}. {name} [stays|needs] {used} hours. How much is that?",
        ),
        (
            step("extra = used - free", "[Beyond what is included are|Not included are] {eq}."),
            step("more = extra * price", "They [cost|add] {eq} {coin}."),
            step("bill = base + more", "[With the basic price, it|The whole bill|In total that] is {eq} {coin}."),
        ),
    ),
    Problem(
        {"lap": range(200, 900, 50), "laps": range(3, 15), "days": range(2, 8)},
        (
            "One lap around the [lake|park|stadium] is {lap} m. {name} [runs|walks] {laps} laps on each of {days} "
            "days. How "
            "many metres is that [in all|altogether|in total]?",
            "{name} [swims|jogs|cycles] a [round|circuit] of {lap} metres {laps} times a day. [What distance is "
            "covered in|How "
            "many metres does that make in] {days} days?",
        ),
        (
            step("daily = lap * laps", "[On one day it is|A day makes|Each day has] {eq} m."),
            step("way = daily * days", "[In {days} days|After {days} days|All days together], that is {eq} m."),
        ),
    ),
    Problem(
        {"floors": range(3, 15), "steps": range(10, 25), "trips": range(2, 7)},
        (
            "{name}'s flat is {floors} floors up, with {steps} steps [to each floor|per floor]. {name} goes up and "
            "down {trips} "
            "times. How many steps is that?",
            "A tower has {floors} [floors|landings] with {steps} stairs to each. A [guard|guide|caretaker] climbs it "
            "{trips} "
            "times, [always |]coming down again. How many stairs [does that make|are these]?",
        ),
        (
            step("up = floors * steps", "[One way up has|Going up once takes|Up, there are] {eq} steps."),
            step("both = up * 2", "[Up and down|There and back], that is {eq}."),
            step("all = both * trips", "[{trips} times that is|All the trips make] {eq}."),
        ),
    ),
    Problem(
        {"five": range(3, 30), "twenty": range(2, 20), "price": TENS},
        (
            "{name} counts {five} coins of 5 and {twenty} notes of 20 {coin}. After paying {price} {coin} for "
            "{things}, how "
            "[much|many {coin}] [is|are] left?",
            "In the [till|purse|cash box] there are {five} fives and {twenty} twenties, in {coin}. {price} {coin} "
            "are [paid "
            "out|taken out|stolen]. How much [remains|is still in it]?",
        ),
        (
            step("low = five * 5", "The fives are worth {eq} {coin}."),
            step("high = twenty * 20", "The twenties are worth {eq} {coin}."),
            step("sum = low + high", "[Together|In all], that is {eq} {coin}."),
            step("left = sum - price", "[Left are|After paying, there are|What remains is] {eq} {coin}."),
        ),
    ),
    Problem(
        {"need": range(40, 400), "size": range(6, 25), "price": range(3, 20)},
        (
            "A {group} needs {need} {food}, which come in {container}s of {size} for {price} {coin}. [What do they "
            "cost|How much "
            "must be paid]?",
            "{name} [orders|wants] {need} {things}. They are sold only by the {container}, with {size} in each, and a "
            "{container} costs {price} {coin}. [What does the order cost|How much is the order]?",
        ),
        (
            step("packs = need / size", "[That takes|Needed are|They fill] {eq} {container}s."),
            step("cost = packs * price", "[These cost|The price of these is|Together they cost] {eq} {coin}."),
        ),
    ),
    Problem(
        {"hours": range(2, 9), "minutes": range(5, 60, 5), "used": range(20, 300, 5)},
        (
            "A [battery|lamp|camera] lasts {hours} hours and {minutes} minutes. It has been [on|running] for {used} "
            "minutes. For "
            "how many [more |]minutes will it last?",
            "The [flight|film night|concert] takes {hours} hours and {minutes} minutes, of which {used} minutes are "
            "over. How "
            "many minutes [are left|remain]?",
        ),
        (
            step("whole = hours * 60", "The hours are {eq} minutes."),
            step("all = whole + minutes", "[In all|With the rest|Together], that is {eq} minutes."),
            step("left = all - used", "[There remain|Still left are|That leaves] {eq} minutes."),
        ),
    ),
    Problem(
        {"weight": HUNDREDS, "empty": range(50, 300, 50), "count": range(3, 13)},
        (
            "A full {container} of {food} weighs {weight} g; the empty {container} weighs {empty} g. There are "
            "{count} {food} in "
            "it, all alike. [How heavy is one|What does each weigh]?",
            "{name} [weighs|puts on the scales] a box with {count} equal {things}: {weight} grams. The box alone "
            "weighs {empty} "
            "grams. How many grams does [a single one|each one] weigh?",
        ),
        (
            step("net = weight - empty", "[Without the packing|The contents weigh|Inside there are] {eq} g."),
            step("one = net / count", "[Each one weighs|One of them weighs|Divided, that is] {eq} g."),
        ),
    ),
)
