"""The conversations as data: what may be said in each situation, which details it needs, and what may fill them.

Knows nothing about the order of turns: `dialogue` plays the scenarios. The wordings are in the grammar of `phrases`.
"""

from collections.abc import Sequence
from typing import NamedTuple


class Scenario(NamedTuple):
    """One situation: how a user opens it, the details to be settled, the outcome, and what may follow.

    `details` maps a slot to the assistant's question and the user's answer, asked where the opening did not say;
    `check` repeats the details and is left out in small talk; `extras` are questions for afterwards and their answers.
    """

    pools: dict[str, Sequence]
    openings: tuple[str, ...]
    details: dict[str, tuple[str, str]]
    done: str
    extras: tuple[tuple[str, str], ...]
    check: str = ""
    bye: str = ""


HELLO = "[Hello. |Hi, |Hi there, |Good morning. |Good evening. |Excuse me, |Hey, ||||||]"
READY = "[Certainly. |Of course. |Sure. |All right. |Okay. ||||]"
NOTED = "[Thank you. |All right. |I see. |||]"
GREAT = "[Perfect. |Great. |Thank you. |Wonderful. |All right. |Very well. |That works. |Good news: |||]"
MAYBE = "[I was thinking of|Maybe|Preferably|Let us say|I would say|]"
DOUBT = (
    "[Sorry, |Pardon, |Just to be sure: ][did you say {heard} or {misheard}?|was that {heard} or {misheard}?|I heard "
    "{heard}. Is that right?|do I understand you correctly: {heard}?]",
    "[I said {heard}.|{heard}, yes.|{heard}[, please|, exactly|].|Yes, {heard}.]",
)
CORRECTION = (
    "[No, sorry, |Almost: |Not quite: |Oh, wait, |Hmm, |Sorry, |][I meant {new}, not {old}.|it should be {new}, not "
    "{old}."
    "|{new}, not {old}, please.|that should be {new} instead of {old}.|I said {old}, but {new} is right.]"
)
YES = "[Yes|Exactly|That is right|Correct|Right|Yes, that is all correct][.|, please go ahead.|, thank you.|, please.]"
BYE = (
    "[That is all, thank you.|Great, thanks[ a lot| for your help|]!|Perfect, thank you[ very much|].|Thanks, "
    "bye!|Wonderful, that helps[ a lot|].|Thank you, you have been very [kind|helpful].|Okay, then I know "
    "everything. Thanks!]",
    "[You are welcome[.|!]|My pleasure.|Glad I could help.|Any time.|Thank you, too.] [Have a nice "
    "[day|evening|week].|Goodbye!|See you soon.|Take care.|All the best!||]",
)
CHAT_BYE = "[It was nice talking to you|I enjoyed our chat|Come back and tell me more|Until next time|Have fun][.|!]"

DAYS = (
    *("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"),
    *(f"{number} {month}" for number in range(2, 30, 9) for month in ("January", "March", "May", "June", "October")),
)
HOURS = ("eight", "nine", "ten", "eleven", "twelve", "one", "two", "three", "four", "five", "six", "seven")
TIMES = tuple(f"{part}{hour}" for part in ("", "half past ", "a quarter past ", "a quarter to ") for hour in HOURS)
PLACES = (
    "Alderbay",
    "Brimstead",
    "Corvale",
    "Dunmere",
    "Eastbrook",
    "Fernhill",
    "Grayport",
    "Hollowell",
    "Ilmford",
    "Larkham",
    "Millbrook",
    "Northwick",
    "Oakridge",
    "Penhollow",
    "Redwater",
    "Stonebury",
    "Thornley",
    "Westmere",
)
SURNAMES = (
    "Abara",
    "Bianchi",
    "Castillo",
    "Dubois",
    "Eriksen",
    "Farouk",
    "Grant",
    "Haddad",
    "Ivanova",
    "Jansen",
    "Kimura",
    "Lindqvist",
    "Moreau",
    "Novak",
    "Okafor",
    "Petrov",
    "Quinn",
    "Rossi",
    "Schmidt",
    "Tanaka",
    "Ueda",
    "Varga",
    "Weber",
    "Yilmaz",
    "Zhang",
)
STREETS = tuple(
    f"{number} {street}"
    for number in range(2, 90, 7)
    for street in (
        "Mill Lane",
        "Station Road",
        "Park Street",
        "Harbour Way",
        "Church Hill",
        "Elm Avenue",
        "Canal Street",
    )
)

# What every scenario may use.
POOLS: dict[str, Sequence] = {
    "day": DAYS,
    "time": TIMES,
    "place": PLACES,
    "town": PLACES[::-1],
    "surname": SURNAMES,
    "address": STREETS,
    "number": range(1000, 9999),
    "price": range(6, 95),
    "minutes": range(5, 55, 5),
    "few": ("two", "three", "four", "five", "six"),
}

NAME = (
    "[May I have your name?|What name [is it under|should I put down]?|Under which name?|And your name, please?]",
    "[My name is |It is |The name is |]{surname}.",
)
DAY = (
    "[Which day [suits you|would you like|do you prefer]?|On which day?|What day is it for?|When would that be?]",
    f"{MAYBE} {{day}}[, please|, if possible|].",
)
TIME = (
    "[What time [suits you|would you like|do you prefer]?|At what time?|And around what time?]",
    f"{MAYBE} {{time}}[, please|, if that works|, if possible|].",
)
TO = (
    "[Where would you like to go?|What is your destination?|Where to?|And where are you going?]",
    "[To {place}, please.|I am going to {place}.|{place}.|I need to get to {place}.]",
)
ADDRESS = (
    "[What is the address?|Which address is it?|Where exactly is that?|Can you tell me the address?]",
    "[It is |We are at |I live at |]{address}[, please|, on the [first|second|third] floor|].",
)

SCENARIOS: tuple[Scenario, ...] = (
    Scenario(
        pools={
            "party": ("two people", "three people", "four people", "five people", "six people", "eight people"),
            "spot": (
                "by the window",
                "in the garden",
                "near the fireplace",
                "upstairs",
                "on the terrace",
                "in the corner",
            ),
            "dish": ("mushroom risotto", "grilled trout", "lentil curry", "onion soup", "stuffed peppers", "lamb stew"),
        },
        openings=(
            HELLO
            + "[I would like to [book|reserve] a table for {day}.|[can|could] I [book|reserve] a table for {day}?]",
            HELLO + "[do you have|is there] [a|any] table [free|available] for {party} on {day}?",
            HELLO + "[we are looking for|we need] a table for {party} [this week|sometime soon].",
            HELLO
            + "[is it possible|would it be possible] to [have dinner|eat] at your [restaurant|place] at {time} on "
            "{day}?",
            "[A table|A reservation] for {party}[, please|, if you can], on {day} at {time}.",
        ),
        details={
            "party": (
                "[For how many people?|How many of you will there be?|How many guests?]",
                "[We are {party}.|For {party}.|{party}.|There will be {party}.]",
            ),
            "day": DAY,
            "time": TIME,
        },
        check="[So that is|Let me repeat:|I have noted] a table for {party} on {day} at {time}. [Is that "
        "right?|Correct?]",
        done=GREAT
        + "[Your table for {party} is booked for {day} at {time}.|I have reserved a table {spot} for {party}, {day} "
        "at {time}.|We will expect {party} on {day} at {time}; I have put you {spot}.]",
        extras=(
            (
                "[Do you have|Are there] [vegetarian|vegan] dishes[ on the menu|]?",
                "[Yes, [several|quite a few]; our {dish} is very popular.|About half of the menu, and it changes "
                "every week.]",
            ),
            (
                "[Can we|Is it possible to] sit {spot}?",
                "[I will make a note of it.|Yes, I can give you a table {spot}.|I cannot promise it, but I will try.]",
            ),
            (
                "[Can we bring|Are you fine with|Do you allow] [a dog|children|a birthday cake]?",
                "[Yes, no problem at all.|Of course, just tell the waiter when you arrive.|Certainly, many of our "
                "guests do.]",
            ),
            (
                "Is there [a car park|parking] [nearby|close by]?",
                "[There is one behind the house.|Yes, {minutes} minutes away on foot.|You may park in front after "
                "six.]",
            ),
        ),
    ),
    Scenario(
        pools={
            "kind": ("bus", "train", "coach", "ferry", "tram"),
            "stop": ("the main square", "platform 3", "the north gate", "the old bridge", "platform 11", "the harbour"),
        },
        openings=(
            HELLO + "[when does|at what time does|when is] the [next|first|last] {kind} to {place}[ leave|]?",
            HELLO + "[how do I|how can I] get to {place} [from here|by {kind}|on {day}]?",
            HELLO + "[I need|I would like] a [ticket|seat] for the {kind} on {day}[, please|].",
            "[Is there|Does anyone run] a {kind} to {place} on {day}?",
            "[One ticket|A return ticket|A single] to {place}[, please|].",
        ),
        details={
            "place": TO,
            "day": DAY,
        },
        check="[So you|I see: you] want to [go|travel] to {place} on {day}. [Is that right?|Did I get that right?]",
        done=GREAT
        + "[The {kind} to {place} leaves at {time} on {day} from {stop}.|On {day} there is a {kind} to {place} at "
        "{time}, from {stop}; it takes {minutes} minutes.|You can take the {kind} from {stop}; the one to {place} "
        "goes at {time} on {day}.]",
        extras=(
            (
                "[How much is it|What does it cost|How much is a ticket]?",
                "[A single costs|It is|One way costs] {price} crowns, [a return a little less than double|half price "
                "for children|and you can pay on board].",
            ),
            (
                "Do I have to change?",
                "[No, it is direct.|Once, in {town}, where you wait {minutes} minutes.|Yes, in {town}, but the other "
                "one waits.]",
            ),
            (
                "[And how long does it take|How long is the ride]?",
                "[About {minutes} minutes.|Roughly {few} hours, with a stop in {town}.|A good {minutes} minutes if "
                "the traffic is light.]",
            ),
            (
                "Can I take [my bicycle|a large suitcase|my dog] [along|with me]?",
                "[Yes, for a small fee.|Yes, but only outside rush hour.|There is room for it in the last "
                "carriage.|I am afraid it is not allowed before nine.]",
            ),
        ),
    ),
    Scenario(
        pools={
            "pain": (
                "a sore throat",
                "a bad cough",
                "a stiff neck",
                "back pain",
                "an earache",
                "a rash on my arm",
                "a headache that will not go away",
                "a swollen ankle",
                "trouble sleeping",
            ),
            "doctor": ("Dr. Okafor", "Dr. Lindqvist", "Dr. Rossi", "Dr. Yilmaz", "Dr. Tanaka"),
        },
        openings=(
            HELLO + "I have {pain} [and would like to see a doctor|and need an appointment|since {day}].",
            HELLO + "[can I|could I] [see|get an appointment with] {doctor} on {day}?",
            HELLO + "[this is|my name is] {surname}. I [need|would like] an appointment[, please|].",
            "[I am not feeling well|I feel quite ill]: {pain}. [Can you fit me in|Is there a free slot] "
            "[today|soon|this week]?",
        ),
        details={"surname": NAME, "day": DAY},
        check="[I have|So that is] an appointment for {surname} on {day} at {time} with {doctor}. [Does that suit "
        "you?|All right?]",
        done=GREAT
        + "[You can come on {day} at {time}.|{doctor} can see you on {day} at {time}.|I have put {surname} down for "
        "{day} at {time}.] [Please bring your insurance card.|Please come {minutes} minutes early.||]",
        extras=(
            (
                "[What should I do|Is there anything I can do] until then?",
                "[Rest and drink enough.|Stay warm, and call us if it gets worse.|Avoid sport for now, and sleep as "
                "much as you can.]",
            ),
            (
                "[Should I bring anything|Do I need to bring anything]?",
                "[A list of the medicine you take would help.|Only your card.|Your last test results, if you have "
                "them.]",
            ),
            (
                "[Which floor is it|How do I find you]?",
                "[We are at {address}, second floor.|The practice is next to the pharmacy.|Take the lift to the "
                "third floor and turn left.]",
            ),
            (
                "Is it {doctor} whom I will see?",
                "[Yes, as always.|Yes, unless there is an emergency.|No, a colleague is standing in this week.]",
            ),
        ),
    ),
    Scenario(
        pools={
            "book": (
                "The Salt Road",
                "A Year of Rain",
                "The Clockmaker's Map",
                "Nine Quiet Rooms",
                "Birds of the Coast",
                "The Glass Orchard",
                "Letters to a Lighthouse",
                "The Last Cartographer",
            ),
            "shelf": range(2, 40),
        },
        openings=(
            HELLO + '[do you have|can I borrow|where do I find] [the book |]"{book}"[, please|]?',
            HELLO + "[how can I|can I] [extend|renew] [a loan|my books]?",
            HELLO + "[is it possible to|can I] reserve a book [for {surname}|]?",
            '[Somebody recommended|I have heard about] "{book}" to [me|my class]. Is it [on the shelf|in the library]?',
        ),
        details={
            "book": (
                "[Which book is it?|What is the title?|Which title do you mean?]",
                '[It is |The title is |]"{book}".',
            ),
            "surname": NAME,
        },
        check='[That would be|So it is] "{book}" for {surname}, [right|correct]?',
        done=GREAT
        + '["{book}" is reserved for {surname} until {day}.|I found "{book}" on shelf {shelf}; I have noted it for '
        '{surname}.|"{book}" is now on your account, {surname}, and due back on {day}.]',
        extras=(
            (
                "[How long can I keep it|When is it due]?",
                "[Four weeks, and you may extend it twice.|Until {day}.|Three weeks, unless somebody else reserves "
                "it.]",
            ),
            (
                "[Are you open|Is the library open] on {day}?",
                "[Yes, until {time}.|From ten to {time}.|No, but the return box is always open.]",
            ),
            (
                "[What happens|What does it cost] if I am late?",
                "[A small fee, {few} coins a day.|Nothing in the first week.|We send a reminder first.]",
            ),
            (
                "Do you have [something similar|anything else by the same author]?",
                "[Yes, two shelves further on.|Try the novels on shelf {shelf}.|There is a new one, but it is out "
                "until {day}.]",
            ),
        ),
    ),
    Scenario(
        pools={
            "item": (
                "pair of boots",
                "book order",
                "birthday present",
                "coffee machine",
                "set of plates",
                "winter coat",
                "desk lamp",
                "spare part",
            ),
            "status": (
                "in the depot by the harbour",
                "on the delivery van",
                "waiting at customs",
                "at the post office around the corner",
            ),
        },
        openings=(
            HELLO + "my parcel [has not arrived|is late|seems to be lost]. [It is a {item}.|Can you check?|]",
            HELLO + "[where is|can you find] my parcel {number}?",
            "I [ordered|sent] a {item} [last week|{few} days ago] and [it still is not here|nothing has come|the "
            "tracking does not move].",
            "[Could you|Can you please] [track|look up] a [delivery|shipment] for me?",
        ),
        details={
            "number": (
                "[What is the tracking number?|Do you have the number on the receipt?|Which number is on the slip?]",
                "[It is |The number is |Yes, |]{number}.",
            ),
            "surname": NAME,
        },
        check="[I am looking for|So we are looking for] number {number}, addressed to {surname}. [Yes?|Is that right?]",
        done="[Let me see. |One moment. |Found it. |][Parcel {number} for {surname} is {status}.|Number {number} is "
        "{status} and should reach {surname} on {day}.|It is {status}, {surname}; number {number} will be delivered "
        "on {day} before {time}.]",
        extras=(
            (
                "[Can a neighbour take it|Can you leave it with a neighbour]?",
                "[Yes, just tell us which one.|Yes, I have added a note for the driver.|Only with your signature, I "
                "am afraid.]",
            ),
            (
                "[Can I|Could I] [pick it up|collect it] myself?",
                "[Yes, from {day} on, at {address}.|Of course; please bring an identity card.|Yes, the counter is "
                "open until {time}.]",
            ),
            (
                "[And what if|What if] it is [damaged|broken]?",
                "[Then take a photo and send it to us.|Then we refund it within {few} weeks.|Just refuse it, and we "
                "will send it back.]",
            ),
            (
                "Why did it take so long?",
                "[There was a storm in {town}.|A label was hard to read.|We have many parcels before the holidays; I "
                "am sorry.]",
            ),
        ),
    ),
    Scenario(
        pools={
            "room": ("single room", "double room", "family room", "quiet room", "room with a balcony"),
            "nights": ("one night", "two nights", "three nights", "four nights", "a week"),
            "hotel": ("Harbour Inn", "Hotel Linden", "Old Mill", "Station Hotel", "Villa Aurora"),
        },
        openings=(
            HELLO
            + "[[I need|I am looking for] a {room}[ from {day} on| for {nights}|], please.|do you have a {room} [for "
            "{nights}|for {nights} from {day} on]?]",
            HELLO
            + "[we would like to stay [at the {hotel}|with you] for {nights}[.|, if there is room.]|[can|could] we "
            "stay [at the {hotel}|with you] for {nights}?]",
            "[Is there|Do you still have] a {room} [free|left] on {day}?",
            "My [flight|train] was cancelled, so I need a room [right away|in {place}|tonight][.|, please.]",
        ),
        details={
            "room": (
                "[What kind of room [would you like|do you need]?|Which room do you prefer?]",
                "[A {room}, please.|I would take a {room}.|{room}, if you have one.]",
            ),
            "nights": (
                "[How long will you stay?|For how many nights?|How many nights is that?]",
                "[For {nights}.|{nights}.|We are staying {nights}.]",
            ),
            "day": (
                "[From which day on?|When do you arrive?|What day will you be here?]",
                "[From {day} on.|{day}.|We arrive {day}.]",
            ),
        },
        check="[So I have|Let me sum up:|That makes] a {room} for {nights} from {day} on. [Shall I book it?|Is that "
        "what you want?]",
        done=GREAT
        + "[The {room} is yours for {nights} from {day} on.|I have booked a {room} for {nights}, arriving {day}.|We "
        "have a {room} free for {nights} from {day} on, at {price} euros a night.]",
        extras=(
            (
                "Is breakfast included?",
                "[Yes, from seven to {time}.|It costs {few} euros more.|Yes, and on Sundays until noon.]",
            ),
            (
                "[When can we|From when can I] check in?",
                "[From three in the afternoon.|From {time} on.|Any time, the desk is always staffed.]",
            ),
            (
                "[Do you have|Is there] [a pool|a lift|wireless internet|a gym]?",
                "[Yes, free for all our guests.|There is, on the top floor.|Not here, but in the house next door.]",
            ),
            (
                "[Can I|May I] cancel [later|if something comes up]?",
                "[Free of charge until the evening before.|Yes, up to {few} days ahead.|Then you pay one night.]",
            ),
        ),
    ),
    Scenario(
        pools={
            "sky": ("sunny", "cloudy", "rainy", "windy", "foggy", "mostly clear", "stormy", "snowy"),
            "degrees": range(-5, 32),
            "dusk": ("five", "half past five", "six", "seven", "half past eight", "nine"),
            "plan": ("a hike", "a picnic", "a wedding", "a boat trip", "a barbecue", "a bike tour", "a market"),
        },
        openings=(
            HELLO
            + "[what will the weather be like|how will the weather be|what is the forecast] [on {day}|in {place}|in "
            "{place} on {day}]?",
            "[Will it rain|Is it going to rain|Does it get warm] [in {place}|on {day}|in {place} on {day}]?",
            "[We are planning|I would like to go on|We have] {plan} [in {place}|on {day}]. [What about the "
            "weather?|Will the weather be fine?]",
            "[Do I need|Should I take] [an umbrella|a warm coat|sunscreen] [on {day}|in {place}]?",
        ),
        details={
            "place": (
                "[For which place?|Where will you be?|Which town do you mean?]",
                "[In {place}.|{place}[, please|].|I will be in {place}.]",
            ),
            "day": (
                "[For which day?|Which day are you interested in?|When?]",
                "[On {day}.|{day}[, please|].|It is about {day}.]",
            ),
        },
        done="[In {place} it will be {sky} on {day}, with {degrees} degrees.|On {day}, expect {sky} weather and "
        "about {degrees} degrees in {place}.|The forecast for {place} says {sky} on {day}, around {degrees} degrees.]",
        extras=(
            (
                "[And the day after|What about the day after]?",
                "[Much the same.|A little warmer, and {sky}.|It should get {sky} then.]",
            ),
            (
                "[Is {plan} a good idea then|Would you risk {plan}]?",
                "[I would, but keep an eye on the sky.|Better wait a day.|Yes, but start early.|Only with a tent at "
                "hand.]",
            ),
            (
                "[How sure is that|Can I rely on that]?",
                "[Quite sure for the next two days.|Not very; the wind may turn.|The models agree, so yes.]",
            ),
            (
                "[When does the sun set|When will it get dark]?",
                "[At about {dusk}.|Around {dusk}, a little earlier in the hills.]",
            ),
        ),
    ),
    Scenario(
        pools={
            "car": ("a small car", "an estate car", "a van", "an electric car", "a car with a child seat"),
            "driver": ("Selim", "Marta", "Goran", "Aisha", "Pieter"),
        },
        openings=(
            HELLO
            + "[I need|I would like|please send] a taxi [to {address}|at {time}|to {address} at {time}][, please|].",
            HELLO + "[how much is|what does it cost to take] a [ride|taxi] to {place}?",
            "[Could someone|Can you] [pick me up|fetch me] at {time}[, please|]? I [have to|need to] [catch a "
            "train|get to {place}].",
            "[Taxi|A taxi|{car}] for {surname}, please, [from {address}|as soon as possible|to {place}].",
        ),
        details={
            "address": (
                "[Where should we pick you up?|Where are you?|What is the pick-up address?]",
                "[At {address}.|{address}[, please|].|I am [standing|waiting] at {address}.]",
            ),
            "place": TO,
            "time": TIME,
        },
        check="[From|Picking up at] {address} to {place} at {time}, [is that right?|correct?|yes?]",
        done=GREAT
        + "[A car will be at {address} at {time} to take you to {place}.|{driver} will pick you up at {address} at "
        "{time}; the ride to {place} costs about {price} euros.|Your taxi to {place} is ordered for {time}, at "
        "{address}.]",
        extras=(
            (
                "[Can I pay by card|Do you take cards]?",
                "[Yes, in every car.|Yes, from ten euros on.|By card or in cash, as you like.]",
            ),
            (
                "[How long does the ride take|How long is the ride]?",
                "[About {minutes} minutes.|At that hour, {minutes} minutes.|It depends on the bridge, say {minutes} "
                "minutes.]",
            ),
            (
                "[I have|We have] {few} suitcases. Is that [a problem|all right]?",
                "[Then I will send {car}.|No problem, the boot is large.|That fits.]",
            ),
            (
                "How do I recognise the [car|driver]?",
                "[It is white, with the number {number} on the door.|{driver} will call you.|It is {car} with a "
                "green sign on the roof.]",
            ),
        ),
    ),
    Scenario(
        pools={
            "cut": (
                "a haircut",
                "a beard trim",
                "a new colour",
                "a wash and cut",
                "highlights",
                "a children's haircut",
            ),
            "stylist": ("Nora", "Emil", "Saskia", "Tomás", "Ayla"),
        },
        openings=(
            HELLO + "[I would like|I need|I want] {cut} [on {day}|at {time}|with {stylist}][, please|].",
            HELLO + "[is {stylist}|does {stylist} happen to be] [free|in] on {day}?",
            "[Do you have|Is there] [time|an opening] [for {cut}|on {day}|for {cut} on {day}]?",
        ),
        details={
            "cut": (
                "[What would you like to have done?|What is it going to be?|What can we do for you?]",
                "[{cut}, please.|Just {cut}.|I would like {cut}.]",
            ),
            "day": DAY,
            "time": TIME,
        },
        check="[So that is|I am noting|That is] {cut} on {day} at {time}. [Right?|Is that correct?|Yes?]",
        done=GREAT
        + "[You are down for {cut} on {day} at {time}.|{stylist} will do {cut} for you on {day} at {time}.|{cut}, "
        "{day} at {time}: it is in the calendar.]",
        extras=(
            (
                "[How much will it be|What does it cost]?",
                "[{price} euros.|That starts at {price} euros.|Between {price} and a hundred, it depends on the "
                "length.]",
            ),
            (
                "How long will it take?",
                "[About {minutes} minutes.|Plan for an hour.|Not long, {minutes} minutes or so.]",
            ),
            (
                "[Can I|Could I] bring my [son|daughter|mother]?",
                "[Of course, there is a place to sit.|Yes, and {stylist} could even take both of you.|Sure, we have "
                "magazines and tea.]",
            ),
            (
                "[Is|Was] {stylist} there, too?",
                "[Yes, all day.|Only until {time}.|Not this week, but everybody here is good.]",
            ),
        ),
    ),
    Scenario(
        pools={
            "film": (
                "The Silent Harbour",
                "Paper Moons",
                "Night Bus North",
                "The Beekeeper's Son",
                "Seven Bridges",
                "Winter Circus",
                "The Long Intermission",
            ),
            "seats": ("two seats", "three seats", "four seats", "five seats"),
            "row": ("the back row", "row five", "the middle", "row nine", "row twelve"),
        },
        openings=(
            HELLO + "[what is on|what are you showing] [on {day}|tonight|this week]?",
            HELLO + '[I would like|we need] {seats} for "{film}"[, please|].',
            '[Is|Are you still showing] "{film}" [still on|on {day}|this week]?',
            '[Are there|Do you have] {seats} [left|together] [on {day}|for "{film}"|for the late show]?',
        ),
        details={
            "film": (
                '[We have "{film}" and two others. Which one would you like?|For which film?|What would you like to '
                "see?]",
                '["{film}", please.|I want to see "{film}".|"{film}" sounds good.]',
            ),
            "seats": (
                "[How many seats?|How many tickets do you need?|For how many?]",
                "[{seats}, please.|{seats}.|We need {seats}.]",
            ),
        },
        check='[That is|So it is|I have] {seats} for "{film}" on {day} at {time}. [Right?|Shall I reserve them?|Is '
        "that fine?]",
        done=GREAT
        + '[I have {seats} for "{film}" in {row}, {day} at {time}.|{seats} in {row} are reserved for "{film}" on '
        "{day} at {time}."
        '|"{film}" starts at {time} on {day}; I kept {seats} in {row} for you.]',
        extras=(
            (
                "[How long is the film|How long does it run]?",
                "[Two hours and {minutes} minutes.|About an hour and a half.|Long: there is a break after {minutes} "
                "minutes.]",
            ),
            (
                "[Is it suitable for|Can I take] children?",
                "[From six years on.|I would say from twelve.|Yes, it is made for families.]",
            ),
            (
                "[Is it any good|Did you like it]?",
                "[The critics are divided, but I liked it.|The music alone is worth it.|It is slow, but the end is "
                "wonderful.]",
            ),
            (
                "[When do I have to|When should we] pick up the tickets?",
                "[Half an hour before.|{minutes} minutes before it starts.|Any time, just say the number {number}.]",
            ),
        ),
    ),
    Scenario(
        pools={
            "card": ("bank card", "credit card", "card for the savings account", "company card"),
            "event": ("lost", "been stolen", "been swallowed by a machine", "stopped working", "expired"),
        },
        openings=(
            HELLO + "my {card} has {event}[. What should I do?|. Can you help me?|.]",
            "[I cannot find|I think I have lost] my {card}[.|. The name is {surname}.|, I last used it in {place}.]",
            "[Please block my {card}[. It has {event}|, quickly].|Can you block my {card}[, please|]? [It has "
            "{event}.|]]",
            HELLO + "[I am travelling in|I am in] {place} and my {card} [is not accepted|does not work].",
        ),
        details={
            "surname": NAME,
            "number": (
                "[What are the last four digits?|Can you tell me the last four digits of the card?]",
                "[{number}.|They are {number}.|The last four are {number}.]",
            ),
        },
        check="[You are|This is about] {surname}, and the card ends in {number}. [Correct?|Is that right?]",
        done="[Thank you. |Thanks for calling. |Do not worry. |][The card ending in {number} is blocked, {surname}, "
        "and a new one is on its way.|I have ordered a new card for {surname}; the one ending in {number} no longer "
        "works.|The card ending in {number} has been replaced; {surname} will get the new one on {day}.]",
        extras=(
            (
                "[How long does the new card take|When will the new one come]?",
                "[{few} working days.|By {day}.|It is sent today, so around {day}.]",
            ),
            (
                "[Will I get|Is there] a new [code|number]?",
                "[Yes, in a separate letter.|The code stays, the number changes.|Yes, you choose it in the app.]",
            ),
            (
                "[Does that cost anything|Is there a fee]?",
                "[No, it is free.|{few} euros, taken from your account.|Only for an express delivery.]",
            ),
            (
                "[How do I get|Where can I get] cash until then?",
                "[At any branch, with your identity card.|At the counter in {place}.|With the app, at all our "
                "machines.]",
            ),
        ),
    ),
    Scenario(
        pools={
            "device": ("phone", "laptop", "tablet", "camera", "printer", "radio", "watch"),
            "fault": (
                "does not turn on",
                "has a cracked screen",
                "gets very hot",
                "fell into water",
                "makes a strange noise",
                "loses its charge within an hour",
            ),
        },
        openings=(
            HELLO + "my {device} {fault}. [Can you repair it?|What can be done?|Is it worth repairing?]",
            "[Do you|Can you] [repair|fix] [a {device} that {fault}|{device}s]?",
            HELLO + "[I bought|I got] a {device} [from you|in your shop] {few} months ago, and now it {fault}.",
            "[I have a problem|Something is wrong] with [one of my devices|something I bought here|my {device}][. "
            "Can you look at it?|.]",
        ),
        details={
            "device": (
                "[Which device is it?|What is it that is broken?|What kind of device?]",
                "[It is |]my {device}.",
            ),
            "fault": (
                "[What is wrong with it?|What does it do?|What exactly is the problem?]",
                "[It {fault}.|Since {day}, it {fault}.|Well, it {fault}.]",
            ),
        },
        done=NOTED
        + "[If your {device} {fault}, it is usually the battery; bring it in on {day}.|A {device} that {fault} takes "
        "us {few} days and costs about {price} euros.|I have seen that often: the {device} {fault}. We can fix it "
        "until {day}.]",
        extras=(
            (
                "[Is that covered|Does the guarantee cover that]?",
                "[In the first two years, yes.|Only if it was not dropped.|I would have to see the receipt.]",
            ),
            (
                "[Will I lose|Are] my [photos|data] [safe|]?",
                "[We copy everything first.|Please make a copy at home, just in case.|Nothing is deleted without "
                "asking you.]",
            ),
            (
                "[Can I get|Do you have] a replacement [meanwhile|until then]?",
                "[Yes, for a deposit of {price} euros.|We have a few older ones to lend.|Sorry, they are all out.]",
            ),
            (
                "[When can I pick it up|When will it be ready]?",
                "[On {day} from {time} on.|In {few} days.|We will send you a message, probably {day}.]",
            ),
        ),
    ),
    Scenario(
        pools={
            "sport": ("swimming", "yoga", "climbing", "boxing", "rowing", "badminton", "pilates"),
            "level": ("mixed", "relaxed", "demanding", "morning", "weekend"),
            "coach": ("Ilse", "Marek", "Dalia", "Joon"),
        },
        openings=(
            HELLO + "[I would like to|I want to] [try|start|sign up for] {sport}. [Is that possible?|What do I need?|]",
            "[Do you offer|Is there] a {sport} [course|class] [on {day}|for beginners|for older people]?",
            HELLO
            + "[my doctor says|my friends say] I should [move|exercise] more. [Which courses do you have?|What do "
            "you suggest?]",
            "[How do I become a member|What does a membership cost|Are there still places in the {sport} group]?",
        ),
        details={
            "sport": (
                "[What would you like to do?|Which sport are you interested in?|We have {sport}, among others. What "
                "appeals to you?]",
                "[{sport}, I think.|I have always wanted to try {sport}.|{sport} sounds good.]",
            ),
            "day": DAY,
        },
        check="[You would like to|So you want to] come to {sport} on {day}. [Yes?|Right?|Did I understand that "
        "correctly?]",
        done=GREAT
        + "[The {sport} group meets on {day} at {time}; {coach} is looking forward to you.|There is a {level} "
        "{sport} class on {day} at {time}.|You are signed up for {sport} on {day} at {time}. The first time is free.]",
        extras=(
            (
                "[What should I bring|What do I need]?",
                "[Comfortable clothes and a towel.|Only a bottle of water, the rest is here.|Indoor shoes, please.]",
            ),
            (
                "[How much is it|What does it cost] [per month|]?",
                "[{price} euros a month.|{price} euros, with a discount for students.|Ten sessions cost {price} "
                "euros.]",
            ),
            (
                "[I have not done any sport|I have not moved much] for {few} years. Is that a problem?",
                "[Not at all, {coach} will go slowly.|Many start like that.|Just tell {coach} at the beginning.]",
            ),
            (
                "[Are there|Is there a room with] showers?",
                "[Yes, next to the entrance.|Yes, and lockers, too; bring a coin.]",
            ),
        ),
    ),
    Scenario(
        pools={
            "thing": (
                "a grey umbrella",
                "a red rucksack",
                "a set of keys",
                "a pair of glasses",
                "a blue scarf",
                "a violin case",
                "a child's shoe",
                "a black wallet",
            ),
            "where": (
                "on the tram",
                "in the reading room",
                "at the pool",
                "on platform 4",
                "in the museum café",
                "in the waiting room",
            ),
        },
        openings=(
            HELLO + "[I have lost|I am missing|I left] {thing} [somewhere|{where}|on {day}].",
            "[Has anyone|Has somebody] [handed in|found|brought] {thing}?",
            HELLO + "[is this|am I right at] the lost property office? [I forgot something {where}.|I am looking for "
            "{thing}.]",
            "[I was {where} on {day} and|On {day} I] [forgot|left behind] [{thing}|something].",
        ),
        details={
            "thing": (
                "[What did you lose?|What are you missing?|Can you describe it?]",
                "[It is {thing}.|{thing}.|I am looking for {thing}.]",
            ),
            "where": (
                "[Where did you [last have|lose] it?|Do you know where?|Where was that?]",
                "[{where}, I think.|Probably {where}.|{where}.]",
            ),
        },
        check="[So you lost|That is] {thing}, {where}. [Is that right?|Correct?]",
        done="[Let me look. |One moment, please. |I will check. |][We do have {thing} that was found "
        "{where}.|Nothing yet, but I have noted {thing}, lost {where}, under number {number}.|Somebody found {thing} "
        "{where} and brought it here on {day}.]",
        extras=(
            (
                "[When can I come|When are you open]?",
                "[Every day until {time}.|On {day} from nine to {time}.|Now, if you like.]",
            ),
            (
                "[Is there|Do I have to pay] a fee?",
                "[{few} euros for keeping it.|No, but the finder would be happy about a reward.|Only after a month.]",
            ),
            (
                "[How long do you keep things|What happens to things nobody collects]?",
                "[After {few} months they are sold.|Half a year, then they go to charity.|We keep them until the end "
                "of the year.]",
            ),
            (
                "Could you [send|post] it to me?",
                "[Yes, to {address}, if that is still right.|Yes, you only pay the postage.|I am afraid you have to "
                "come in person.]",
            ),
        ),
    ),
    Scenario(
        pools={
            "goods": (
                "bread and milk",
                "vegetables for a soup",
                "fruit and yoghurt",
                "pasta and tomatoes",
                "cheese and olives",
                "rice and beans",
                "eggs and flour",
            ),
            "missing_item": ("the tomatoes", "the brown rice", "the goat cheese", "the oranges"),
        },
        openings=(
            HELLO + "[may I|can I|could I] order {goods}[ for {day}|]?",
            "[Do you deliver|Is it possible to have groceries brought] to {address}?",
            HELLO + "[please add {goods} to my [order|list].|can you put {goods} on my [order|list]?]",
            "[I need|We are out of] {goods}. [Can you bring it|Could you deliver] [to {address}|on {day}|to "
            "{address} on {day}]?",
        ),
        details={
            "goods": (
                "[What would you like?|What should we bring?|What is on the list?]",
                "[{goods}[, please|].|Mostly {goods}.|We need {goods}.]",
            ),
            "address": ADDRESS,
            "day": DAY,
        },
        check="[So we bring|That makes] {goods} to {address} on {day}. [Is anything missing?|All right?|Does that "
        "fit?]",
        done=GREAT
        + "[We will deliver {goods} to {address} on {day}.|{goods} will be at {address} on {day} before {time}.|Your "
        "order is in: {goods}, to {address}, on {day}.]",
        extras=(
            (
                "[What does delivery cost|How much is the delivery]?",
                "[It is free from {price} euros on.|{few} euros.|Nothing on weekdays.]",
            ),
            (
                "[What if|And if] something is sold out?",
                "[Then we call you.|Then we bring something similar.|{missing_item} may be short, I will let you "
                "know.]",
            ),
            (
                "[Can I|May I] pay at the door?",
                "[Yes, by card or in cash.|Yes, the driver has a card reader.|Only in cash, please.]",
            ),
            (
                "[Can you|Could you] ring twice? The bell is [broken|quiet].",
                "[I will tell the driver.|Of course, it is noted.|No problem, we can also call.]",
            ),
        ),
    ),
    Scenario(
        pools={
            "trouble": (
                "the kitchen tap drips",
                "the heating is cold",
                "the drain is blocked",
                "the washing machine leaks",
                "there is no hot water",
                "the toilet keeps running",
            ),
            "plumber": ("Mr. Novak", "Ms. Grant", "Mr. Haddad", "Ms. Jansen"),
        },
        openings=(
            HELLO + "{trouble}. [Can someone come?|Can you send somebody?|Whom can you send?|What should I do?]",
            "[I need|We need] a plumber [at {address}|on {day}|urgently].",
            HELLO + "[this is|my name is] {surname}, I [live|am] at {address}. {trouble}.",
            "[Since {day}|All of a sudden], {trouble}[. It is getting worse|]. [Do you have time|Are you free] "
            "[soon|today]?",
        ),
        details={
            "trouble": (
                "[What is the problem?|What happened?|What is wrong?]",
                "[Well, |I think |It seems |]{trouble}.",
            ),
            "address": ADDRESS,
            "day": DAY,
        },
        done=NOTED
        + "[{plumber} will be at {address} on {day} at {time} and knows that {trouble}.|Somebody comes to {address} "
        "on {day}, a little after {time}.|I have noted that {trouble}. We can be at {address} on {day}.]",
        extras=(
            (
                "[How much will that be|What will it cost]?",
                "[The visit costs {price} euros, parts are extra.|Hard to say, but rarely more than {price} euros an "
                "hour.|That depends on what {plumber} finds.]",
            ),
            (
                "[What can I do|Should I do anything] until then?",
                "[Turn off the water under the sink.|Put a bucket there, and do not worry.|Please leave everything "
                "as it is.]",
            ),
            (
                "I am [at work|not at home] [then|on that day]. [Is that a problem|What now]?",
                "[A neighbour may let us in.|Then leave the key with the caretaker.|We can also come on a Saturday.]",
            ),
            (
                "[Do you give|Is there] a guarantee?",
                "[Two years on all our work.|Yes, on the parts.|Yes, if it drips again, we come for free.]",
            ),
        ),
    ),
    Scenario(
        pools={
            "museum": (
                "maritime museum",
                "museum of clocks",
                "gallery of modern art",
                "toy museum",
                "museum of natural history",
                "old observatory",
            ),
            "show": ("on maps", "on dinosaurs", "of young painters", "about the moon", "on the history of bread"),
        },
        openings=(
            HELLO + "[when is|on which days is] the {museum} open?",
            HELLO
            + "[is it possible to|can we|could we] [book|have] a guided tour [on {day}|of the {museum}|for a class]?",
            "[Is|Is it true that] the exhibition {show} [still on|closing soon]?",
            "[What can I see|Is it worth a visit: what is there] [in|at] the {museum}?",
        ),
        details={
            "museum": (
                "[Which museum do you mean?|Of which house?|Which one would you like to visit?]",
                "[The {museum}.|I mean the {museum}.|The {museum}, if it is open.]",
            ),
            "day": DAY,
        },
        check="[So you would like to|You want to] visit the {museum} on {day}. [Right?|Is that so?]",
        done=GREAT
        + "[On {day} the {museum} is open until {time}, with an exhibition {show}.|There is a tour of the {museum} "
        "on {day} at {time}; it takes {minutes} minutes.|I can offer you a tour of the {museum} on {day} at {time}, "
        "and the exhibition {show} is included.]",
        extras=(
            (
                "[How much is|What is] the [entrance|ticket]?",
                "[{few} euros, free for children.|Nothing on the first Sunday of the month.|{few} euros, and one "
                "more for the tower.]",
            ),
            (
                "[May I|Is it allowed to] take [photos|pictures]?",
                "[Yes, without a flash.|In all rooms but one.|Yes, but please no tripod.]",
            ),
            (
                "[Is there a café|Can one eat something there]?",
                "[A small one, with very good cake.|Only a kiosk, but you may bring your own.|Yes, on the roof, with "
                "a view of {place}.]",
            ),
            (
                "[Is it suitable|Is that something] for a wheelchair?",
                "[Yes, all floors have a lift.|All but the cellar.|Yes, please use the side entrance at {address}.]",
            ),
        ),
    ),
    Scenario(
        pools={
            "flat": ("two-room flat", "top-floor flat", "studio", "flat with a garden", "three-room flat"),
            "rent": range(480, 1450, 10),
        },
        openings=(
            HELLO + "is the {flat} [in {place}|at {address}] still [free|available]?",
            "[I saw|I have read] your advertisement for a {flat} and [would like to see it|am interested].",
            HELLO + "[can I|could we] [visit|look at|view] the {flat} on {day}?",
            "[I am|We are] moving to {place} and [looking|searching] for a [{flat}|flat].",
        ),
        details={"day": DAY, "time": TIME, "surname": NAME},
        check="[A viewing|So, a visit] on {day} at {time}, [name of|for] {surname}. [Is that correct?|Yes?]",
        done=GREAT
        + "[You can see the {flat} on {day} at {time}, {surname}.|I will show {surname} the {flat} on {day} at "
        "{time}, {minutes} minutes at most.|Then I will see you at {address} on {day} at {time}, {surname}.]",
        extras=(
            (
                "[What is the rent|How much is it a month]?",
                "[{rent} euros, with heating.|{rent} euros, plus {price} for water.|It was {rent} euros so far.]",
            ),
            (
                "[Are pets allowed|May I keep a cat]?",
                "[Cats yes, dogs on request.|The house is used to animals.|Small ones, yes.]",
            ),
            (
                "[From when|When] is it free?",
                "[From the first of the month.|At once.|As soon as the painters are done, in about {few} weeks.]",
            ),
            (
                "[Is it quiet|Is the street noisy]?",
                "[At the back it is very quiet.|There is a school next door, so only in the evening.|You hear the "
                "train at {time}, otherwise nothing.]",
            ),
        ),
    ),
    Scenario(
        pools={
            "symptom": (
                "the internet is down",
                "the connection is very slow",
                "the video calls keep freezing",
                "the router blinks red",
                "the phone line is dead",
            ),
            "ticket": range(10000, 99999),
        },
        openings=(
            HELLO + "{symptom}[ since {day}| here in {place}|]. [What can I do?|Can you help?|Is there an outage?|]",
            "[Is there|Do you have] [a problem|an outage] in {place}[ today|]? {symptom}.",
            "[I work from home and|Since this morning] {symptom}.",
            HELLO
            + "[I am a customer of yours|I have a contract with you]. [Something is wrong with my line.|I need some "
            "help.|My name is {surname}.]",
        ),
        details={
            "symptom": (
                "[What is the matter?|What do you notice?|Can you describe it?]",
                "[Well, |At the moment |As far as I can tell, |]{symptom}.",
            ),
            "number": (
                "[What is your customer number?|May I have your customer number?]",
                "[It is |That is |]{number}.",
            ),
        },
        done="[I see. |Thank you. |Let me check. |][I understand that {symptom}; please unplug the router for {few} "
        "minutes.|Customer {number}, there is work on the line in {place} until {time}.|I have opened ticket "
        "{ticket} for customer {number}; a technician calls on {day}.]",
        extras=(
            (
                "[I already did that|I tried that before]. [What next|What else can I try]?",
                "[Then please change the cable.|Then I will measure the line from here; that takes {minutes} "
                "minutes.|Then we send you a new router.]",
            ),
            (
                "[How long will it take|When will it work again]?",
                "[Until {time}, I hope.|By {day} at the latest.|Most likely {minutes} minutes.]",
            ),
            (
                "[Do I get|Is there] [money back|a refund]?",
                "[Yes, for every full day.|I will credit you {few} euros.|If it takes longer than {few} days, yes.]",
            ),
            (
                "[The red light|One light] is still on.",
                "[Press the button at the back for ten seconds.|That is normal for the first {few} minutes.|Then the "
                "fault is on our side.]",
            ),
        ),
    ),
    Scenario(
        pools={
            "meal": (
                "pumpkin soup",
                "potato gratin",
                "vegetable lasagne",
                "fish pie",
                "apple cake",
                "fried rice",
                "chickpea stew",
            ),
            "lack": ("cream", "eggs", "butter", "onions", "an oven", "much time"),
            "spice": ("nutmeg", "cumin", "thyme", "ginger", "smoked paprika", "lemon peel"),
        },
        openings=(
            "[How do I make|How does one cook|What goes into] {meal}?",
            HELLO
            + "[I want to|I am going to] cook {meal} [for {few} friends|tonight|on {day}]. [Any tips?|How do I start?]",
            "[What can I cook|I have guests on {day}. What can I make] without {lack}?",
            "[I have no {lack}|We have run out of {lack}]. Can I still make {meal}?",
        ),
        details={
            "meal": (
                "[What would you like to make?|What do you feel like?|Which dish do you have in mind?]",
                "[{meal}, perhaps.|I would love {meal}.|Maybe {meal}.]",
            ),
        },
        done="[For {meal}, take fresh ingredients and give it {minutes} minutes.|{meal} needs about {minutes} "
        "minutes and a little {spice}.|The secret of {meal} is {spice}, added at the very end.|Put everything ready "
        "first; {meal} is then done in {minutes} minutes.]",
        extras=(
            (
                "[What can I use|What works] instead of {lack}?",
                "[You can simply leave it out.|Try oat milk, or a bit more patience.|That depends, but a spoon of "
                "oil often does it.]",
            ),
            (
                "[What goes well with it|What should I serve with it]?",
                "[A green salad.|Bread and some olives.|Something sour, for example pickled beetroot.]",
            ),
            (
                "[Can I|Is it possible to] [freeze|prepare] it [in advance|]?",
                "[Yes, for up to {few} weeks.|Better eat it fresh.|Yes, it even tastes better the next day.]",
            ),
            (
                "[How much|How many portions] is that?",
                "[Enough for {few}.|It feeds {few} hungry people.|A large pot; halve it for two.]",
            ),
        ),
        bye="[Enjoy your meal|Good luck in the kitchen|Tell me how it turned out|Have a nice dinner][.|!]",
    ),
    Scenario(
        pools={
            "activity": (
                "went hiking",
                "painted the fence",
                "visited my sister",
                "slept late",
                "baked bread",
                "watched birds",
                "repaired a chair",
                "went to a flea market",
            ),
            "feeling": ("tired", "happy", "a bit bored", "relaxed", "sunburnt", "proud"),
        },
        openings=(
            "[My weekend was lovely|What a weekend|That was a short weekend]: I {activity}[ in {place}|].",
            HELLO + "[how was your weekend|did you have a good weekend|how are you today]?",
            "[I {activity} on {day}|On {day} I {activity}] and now I am {feeling}.",
            "[It is Monday again|The holidays are over], and I am [still |]{feeling}.",
        ),
        details={
            "activity": (
                "[And what did you do?|Tell me, what have you been up to?|How did you spend the time?]",
                "[I {activity}.|Not much, I {activity}.|On Saturday I {activity}.]",
            ),
            "feeling": (
                "[How was it?|How do you feel now?|And how are you?]",
                "[I am {feeling}.|To be honest, {feeling}.|{feeling}, but in a good way.]",
            ),
        },
        done="[That sounds like time well spent.|No wonder you are {feeling}.|I envy you a little.|It is good to do "
        "something with your hands for once.|Being {feeling} is part of it.] [Will you do it again?|Were you "
        "alone?|What comes next?|]",
        extras=(
            (
                "[I went with|It was the idea of] [my brother|an old friend|my neighbour].",
                "[It is nice to share such days.|Good company is half of it.|And did [he|she] enjoy it, too?]",
            ),
            (
                "[Next time|Next week] I [want to|would like to] [go to {place}|do nothing at all|start earlier].",
                "[A good plan.|{place} is lovely at this time of the year.|You have earned it.]",
            ),
            (
                "[What would you|What do you] recommend for a rainy day?",
                "[A museum, or a long bath.|A book you have read before.|Inviting somebody for tea.]",
            ),
        ),
        bye=CHAT_BYE,
    ),
    Scenario(
        pools={
            "genre": (
                "jazz",
                "folk songs",
                "piano music",
                "choir music",
                "old soul records",
                "electronic music",
                "film scores",
                "tango",
            ),
            "tool": ("the cello", "the drums", "the accordion", "the trumpet", "the harp", "the ukulele"),
        },
        openings=(
            "[I have been listening to|I cannot stop listening to|Lately I like] {genre}.",
            HELLO + "[what kind of music do you like|can you recommend some music|do you know good {genre}]?",
            "[I am learning|I want to learn|My daughter plays] {tool}. [Any advice?|It is harder than I thought.|]",
            "[Is it too late|Am I too old] to [learn|start with] {tool}?",
        ),
        details={
            "genre": (
                "[What do you usually listen to?|And what music do you like?|Which music moves you?]",
                "[Mostly {genre}.|{genre}, above all.|I grew up with {genre}.]",
            ),
        },
        done="[Then try {genre} from the sixties; it is full of life.|With {genre}, small concerts are the "
        "best.|{genre} goes well with a long train ride.|If you love {genre}, you may like {tool}, too.|I find that "
        "{genre} needs to be heard loud, once at least.]",
        extras=(
            (
                "[How often should one|How long should I] practise?",
                "[{minutes} minutes every day beat three hours on Sunday.|As long as it is fun.|Daily, but never "
                "with cold hands.]",
            ),
            (
                "[Is there|Do you know] a concert [in {place}|on {day}]?",
                "[The town hall in {place} has one on {day}.|Look at the posters near the station.|There is a small "
                "one on {day} at {time}.]",
            ),
            (
                "[My neighbours complain|The neighbours hear everything].",
                "[Offer them a concert.|A carpet helps a lot.|Agree on hours, say until {time}.]",
            ),
        ),
        bye=CHAT_BYE,
    ),
    Scenario(
        pools={
            "pet": ("cat", "puppy", "rabbit", "parrot", "tortoise", "guinea pig", "hamster"),
            "habit": (
                "hides under the sofa",
                "is awake all night",
                "chews everything",
                "does not eat much",
                "is afraid of visitors",
                "follows everybody around",
            ),
        },
        openings=(
            "[My {pet} {habit}|We have a {pet} that {habit}]. [Is that normal?|What can I do?|]",
            HELLO
            + "[we are getting|I would like to get|my children want] a {pet}. [What should we know?|Is that a good "
            "idea?|]",
            "[I need advice|I have a question] about my [pet|{pet}].",
            "Do you [like|know much about] [animals|{pet}s]? [Mine {habit}.|I have just got one.]",
        ),
        details={
            "pet": (
                "[What kind of animal is it?|Which animal do you have?|What pet is it?]",
                "[A {pet}.|It is a {pet}.|A young {pet}.]",
            ),
            "habit": (
                "[What does it do?|How does it behave?|Is anything unusual?]",
                "[It {habit}.|Well, it {habit}.|At the moment, it {habit}.]",
            ),
        },
        done="[If a {pet} {habit}, it mostly needs time and a quiet corner.|Many a {pet} does that: it {habit} until "
        "it knows the house.|Your {pet} {habit} because something is new. Keep the same hours every day.|That a "
        "{pet} {habit} is common. Play with it for {minutes} minutes before the meal.]",
        extras=(
            (
                "[How old do they get|How old can it get]?",
                "[That depends, but often ten years and more.|With good care, older than you would think.]",
            ),
            (
                "[Should I see|Do I need] a vet?",
                "[Only if it lasts longer than {few} days.|A check once a year is enough.|If it stops drinking, yes, "
                "at once.]",
            ),
            (
                "[What about|What do I do] [the holidays|when we travel]?",
                "[A neighbour is better than a long trip.|Ask friends early, animals like to know people.|There is a "
                "good place in {place}.]",
            ),
            (
                "[How much|How often] should [it|I feed it] [eat|a day]?",
                "[Twice a day, small portions.|A little and often.|Ask the vet for a table by weight.]",
            ),
        ),
        bye=CHAT_BYE,
    ),
    Scenario(
        pools={
            "crop": ("tomatoes", "strawberries", "roses", "courgettes", "basil", "beans", "apple trees"),
            "spot": ("a balcony", "a small garden", "a window sill", "an allotment", "a shady yard"),
            "pest": ("snails", "aphids", "yellow leaves", "moles", "mildew"),
        },
        openings=(
            "[When do I plant|Is it too early to plant|How do I grow] {crop}[ on {spot}|]?",
            HELLO + "[there are|I keep finding] {pest} on my {crop}. [What helps?|Are they lost?]",
            "[I only have|We have] {spot}. [What can I grow there?|Will {crop} grow there?]",
            "[My {crop} look sad|Something is wrong with my {crop}].",
        ),
        details={
            "crop": (
                "[What would you like to grow?|Which plants do you like?]",
                "[{crop}, if possible.|I was hoping for {crop}.|{crop}.]",
            ),
            "spot": (
                "[Where do they stand?|Where would you grow them?|How much room do you have?]",
                "[I have {spot}.|On {spot}.|Only {spot}.]",
            ),
        },
        done="[For {crop} on {spot}, good soil is half of the work.|{crop} like it warm; {spot} is fine if it gets "
        "{few} hours of sun.|Water your {crop} early in the morning, most of all on {spot}.|Give {crop} room: on "
        "{spot}, {few} plants are plenty.]",
        extras=(
            (
                "[And what about|What helps against] {pest}?",
                "[Collect them in the evening.|Garlic between the {crop} helps a little.|Cut off what is affected, "
                "and be patient.]",
            ),
            (
                "[How often|When] should I [water|feed] them?",
                "[Every {few} days, but then thoroughly.|When the soil feels dry.|Rarely, they do not like wet feet.]",
            ),
            (
                "When can I [harvest|expect flowers]?",
                "[In {few} months, with luck.|Late in summer.|Sooner than you think.]",
            ),
        ),
        bye="[Happy gardening|Good luck with it|May everything grow well|Send me a picture in summer][.|!]",
    ),
    Scenario(
        pools={
            "tongue": ("Portuguese", "Finnish", "Turkish", "Japanese", "Polish", "Swahili", "Greek"),
            "reason": (
                "for my work",
                "because of my grandparents",
                "for a journey",
                "just for fun",
                "for a new neighbour",
            ),
            "hard": ("the grammar", "the pronunciation", "the writing", "speaking without fear", "remembering words"),
        },
        openings=(
            "[I am learning|I have started to learn|I would like to learn] {tongue}[ {reason}|].",
            HELLO + "[how do I|what is the best way to] learn [{tongue}|a language] [{reason}|quickly|alone]?",
            "[I have trouble with|I struggle with] {hard}[ in {tongue}|].",
            "[How long does it take|Is it hard] to learn {tongue}?",
        ),
        details={
            "tongue": (
                "[Which language is it?|What language are you learning?]",
                "[{tongue}.|It is {tongue}.|I have chosen {tongue}.]",
            ),
            "hard": (
                "[What do you find hardest?|Where do you struggle?|What is the biggest problem so far?]",
                "[{hard}.|Mainly {hard}.|For me it is {hard}.]",
            ),
        },
        done="[With {tongue}, {hard} gets easier after {few} months.|Do not worry about {hard}; everybody who learns "
        "{tongue} does.|If it is {hard}, read {tongue} aloud for {minutes} minutes a day.|Find somebody who speaks "
        "{tongue}: {hard} comes with talking.]",
        extras=(
            (
                "[Are there|Is there a place with] courses[ in {place}|]?",
                "[There is one on {day} at {time}.|The evening school in {place} has a good one.|Yes, but a partner "
                "to talk with is cheaper.]",
            ),
            (
                "[Should I|Does it help to] watch films?",
                "[Yes, with subtitles in the same language.|Yes, the same one {few} times.|Children's films are a "
                "good start.]",
            ),
            (
                "[How many words|How much] do I need?",
                "[A thousand words go a long way.|For a market, two hundred.|Fewer than you fear.]",
            ),
        ),
        bye=CHAT_BYE,
    ),
)
