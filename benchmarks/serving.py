"""A real server over a small mixture, under load, disconnects, overload and swaps; and what a decision costs.

Every claim of the page is a bar: what was asked, what was found, and whether it was reached.
"""

import json
import random
import shutil
import socket
import statistics
import struct
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import moesaic
from benchmarks.deciding import measured
from benchmarks.engine import expert
from benchmarks.page import Bar, Options, Page, Section
from benchmarks.served import HEADERS, NAME, Client, Reply, Served, served
from moesaic.artefacts.adapter import save_expert
from moesaic.artefacts.base import load_base
from moesaic.compose.mixture import save_mixture
from moesaic.data.demo import rows
from moesaic.runs.machine import machine
from moesaic.tokenizer import Conversation, Message

DOMAINS = ("code", "dialogue", "math", "prose")
ROWS = 16
"""Answers that the server writes at once, by default."""

Messages = list[dict[str, str]]


@dataclass(frozen=True)
class Sizes:
    """How often things are asked; by default as the bars say."""

    requests: int = 10_000
    warmup: int = 1_000
    disconnects: int = 5_000
    calm: int = 400
    overload_seconds: float = 30.0
    swaps: int = 12
    alike: int = 1_000
    misspelt: int = 500
    rounds: int = 500
    first_tokens: int = 25


QUICK = Sizes(60, 20, 40, 32, 1.0, 2, 30, 20, 5, 2)

Measure = Callable[[Path, Path, list[Messages], Sizes], Section]
"""The mixture, a new folder, prompts and sizes -> a section of the page."""


def page(options: Options) -> Page:
    """All sections; those that are finished in the folder of runs are taken from there."""
    sizes, asked, found = QUICK if options.quick else Sizes(), prompts(), {}
    for measure in (soak, disconnects, overload, swaps, alike, turns, deciding):
        found[measure.__name__] = kept(measure, options, asked, sizes)
    about = (
        "The server is a process of `moesaic serve` with a key and a trace of texts. Its mixture: four experts of "
        "random weights over the shipped base, and a router on `hidden_mean` with a guard, which `adopt` trains on the "
        "demo's prompts. The clients run on the same cores."
    )
    text = "\n".join([f"{about}\n", *(one["text"] for one in found.values())])
    return Page(text, {name: one["machine"] for name, one in found.items()})


def kept(measure: Measure, options: Options, asked: list[Messages], sizes: Sizes) -> dict[str, Any]:
    """The text of a section and the machine that it was measured on, of a run that is made unless it is finished."""
    folder = options.runs / f"serving{'-quick' * options.quick}"
    finished = folder / f"{measure.__name__}.json"
    if not finished.is_file():
        mixture = folder / "adopted" / "made" / "mixture"
        if not mixture.exists():
            adopted(folder / "adopted", options.quick)
        with tempfile.TemporaryDirectory() as place:
            section = measure(mixture.resolve(), Path(place, measure.__name__), asked, sizes)
        finished.write_text(json.dumps({"text": str(section), "machine": machine()}), encoding="utf-8")
    found: dict[str, Any] = json.loads(finished.read_text(encoding="utf-8"))
    return found


def adopted(folder: Path, quick: bool) -> None:
    """Make a mixture of experts that change what is written, and of a router trained on the demo's prompts."""
    shutil.rmtree(folder, ignore_errors=True)
    place = Path(moesaic.__file__).parent / "shipped" / "tiny"
    base, experts, files = load_base(place), {}, {}
    for seed, name in enumerate(DOMAINS):
        experts[name], files[name] = folder / name, folder / f"{name}.jsonl"
        experts[name].mkdir(parents=True)
        save_expert(experts[name], expert(base, seed), base.fingerprint, {"name": name})
        some = rows(name, "train")[: 12 if quick else 150]
        files[name].write_text("".join(f"{json.dumps(row)}\n" for row in some), encoding="utf-8")
    moesaic.adopt(experts, place, folder / "made", prompts=files, name=NAME, embed=True)


def prompts() -> list[Messages]:
    """The conversations of all domains' test rows up to their last answer, mixed."""
    found = []
    for name in DOMAINS:
        for row in rows(name, "test"):
            turns = row["messages"][:-1] if "messages" in row else [{"role": "user", "content": row["prompt"]}]
            if sum(len(turn["content"]) for turn in turns) < 400:
                found.append(turns)
    random.Random(0).shuffle(found)
    return found


# --- memory -----------------------------------------------------------------------------------------------------------


def soak(mixture: Path, folder: Path, asked: list[Messages], sizes: Sizes) -> Section:
    """Small requests, half of them as streams: does the memory of the process grow with their number?"""

    def ask(client: Client, number: int) -> int:
        return client.chat(asked[number % len(asked)], stream=number % 2 == 0).status

    parts = 9
    with served(mixture, folder) as server:
        statuses = server.spread(sizes.warmup, 8, ask)
        server.rest()
        resident = [server.resident]
        for _ in range(parts):
            statuses += server.spread((sizes.requests - sizes.warmup) // parts, 8, ask)
            server.rest()
            resident.append(server.resident)
    counted = (sizes.requests - sizes.warmup) // parts * parts
    growth, answered = (resident[-1] - resident[0]) / counted, Counter(statuses)[200]
    series = ", ".join(f"{size / 2**20:.1f}" for size in resident)
    return Section(
        "Soak",
        f"{len(statuses):,} requests of at most 4 tokens on 8 connections, half of them as streams. Resident memory "
        f"after the first {sizes.warmup:,} and after each ninth of the others, MiB: {series}.",
        [
            Bar("growth of resident memory", "under 200 bytes a request", f"{growth:.0f} bytes", growth < 200),
            Bar("requests answered", f"{len(statuses):,}", f"{answered:,}", answered == len(statuses)),
        ],
    )


# --- clients that leave -----------------------------------------------------------------------------------------------


def disconnects(mixture: Path, folder: Path, asked: list[Messages], sizes: Sizes) -> Section:
    """Clients that leave streams at random: are their slots free, and are their tokens counted?"""

    def leave(number: int) -> None:
        dice = random.Random(number)
        body = {"model": NAME, "messages": dice.choice(asked), "max_tokens": dice.choice([8, 64]), "stream": True}
        data = json.dumps(body | {"n": dice.choice([1, 1, 2])}).encode()
        fields = {**HEADERS, "content-length": len(data), "connection": "close"}  # the end of a stream is seen at once
        head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        with socket.create_connection(server.address, timeout=60) as connection:
            connection.sendall(f"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\n{head}\r\n".encode() + data)
            left = dice.choice([0, 1, 500, 2000, 8000])
            while left > 0 and (read := connection.recv(left)):
                left -= len(read)
            if dice.random() < 0.5:  # with a reset instead of an orderly end
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    with served(mixture, folder, "--rows", str(ROWS)) as server:
        with ThreadPoolExecutor(ROWS) as pool:
            list(pool.map(leave, range(sizes.disconnects)))
        server.rest()
        busy, written = server.busy, server.total("moesaic_generated_tokens_total")
        with server.client() as client:
            after = client.chat(asked[0]).status
        found = [*server.decisions().values()]
    ends = Counter(one.finish for one in found[:-1])
    made = sum(one.tokens_made or 0 for one in found[:-1])
    middle = sum(one.finish == "aborted" and bool(one.tokens_made) for one in found[:-1])
    held = ", ".join(f"{name} {value:.0f}" for name, value in busy.items())
    open_ = sum(one.finish is None for one in found)
    told = ", ".join(f"{count:,} {name}" for name, count in ends.most_common())
    return Section(
        "Disconnects",
        f"{sizes.disconnects:,} streams of 8 or 64 tokens, up to {ROWS} at a time, whose clients close the connection "
        f"after 0, 1, 500, 2,000 or 8,000 bytes, half of them with a reset. {len(found) - 1:,} were decided; they "
        f"ended as {told}; {middle:,} were left in the middle of their text.",
        [
            Bar("under way afterwards", "nothing", held, not any(busy.values()) and after == 200),
            Bar("tokens in the trace", f"{written:,.0f} as in /metrics", f"{made:,}", made == written),
            Bar("decisions without an end in the trace", "0", str(open_), open_ == 0),
        ],
    )


# --- more than it can do ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sent:
    """A request with a nonce in its prompt, and the only response to it."""

    nonce: str
    messages: Messages
    reply: Reply


def overload(mixture: Path, folder: Path, asked: list[Messages], sizes: Sizes) -> Section:
    """Five times as many requests as the server answers: is each answered or refused, once, soon and as itself?"""
    new, dice = 24, random.Random(1)
    nonces = [f"{dice.getrandbits(40):010x}" for _ in range(100_000)]

    def nonced(number: int) -> tuple[str, Messages]:
        nonce, turns = nonces[number], asked[number % len(asked)]
        return nonce, [*turns[:-1], {"role": "user", "content": f"{turns[-1]['content']} ({nonce})"}]

    def send(client: Client, number: int) -> Sent:
        nonce, messages = nonced(number)
        return Sent(nonce, messages, client.chat(messages, max_tokens=new))

    def alone(number: int) -> Sent:
        with server.client() as client:
            return send(client, number)

    with served(mixture, folder) as server:
        server.spread(sizes.calm // 4, ROWS, send)
        started = time.perf_counter()
        server.spread(sizes.calm, ROWS, send)
        rate = sizes.calm / (time.perf_counter() - started)
        server.rest()
        before = len(server.decisions())
        numbers = range(sizes.calm, sizes.calm + round(5 * rate * sizes.overload_seconds))
        with Probe(server) as probe, ThreadPoolExecutor(256) as pool:
            found = paced(pool, alone, numbers, 5 * rate)
        server.rest()
        decided = server.decisions()
        answered = [one for one in found if one.reply.status == 200]
        refused = [one.reply.seconds for one in found if one.reply.status == 429]
        crossed = sum(wrong(server, decided[one.reply.routing["id"]], one, new) for one in answered)
        ids = {one.reply.routing["id"] for one in answered}
    others = len(found) - len(answered) - len(refused)
    doubled = len(decided) - before - len(ids)
    late = centile(refused, 99) * 1e3
    healthy = centile(probe.seconds, 99) * 1e3
    return Section(
        "Overload",
        f"Answers of {new} tokens. {ROWS} clients in a closed loop get {rate:.0f} answers a second; then "
        f"{len(found):,} requests come at {5 * rate:.0f} a second for {sizes.overload_seconds:.0f} s, each on a new "
        f"connection. {len(answered):,} were answered, {len(refused):,} refused with 429. Time to a 429: median "
        f"{centile(refused, 50) * 1e3:.1f} ms, longest {max(refused) * 1e3:.0f} ms; of /health meanwhile "
        f"({len(probe.seconds):,} times): median {centile(probe.seconds, 50) * 1e3:.1f} ms, longest "
        f"{max(probe.seconds) * 1e3:.0f} ms. The clients run on the same cores.",
        [
            Bar("lost: neither answered nor refused", "0", str(others), others == 0),
            Bar("doubled: more decisions than answers", "0", str(doubled), doubled == 0),
            Bar("crossed: a nonce or a text of another request", "0", str(crossed), crossed == 0),
            Bar("time to a 429, 99 in 100", "under 50 ms", f"{late:.1f} ms", late < 50),
            Bar("time of /health, 99 in 100", "under 50 ms", f"{healthy:.1f} ms", healthy < 50),
        ],
    )


def paced(pool: ThreadPoolExecutor, ask: Callable[[int], Sent], numbers: range, rate: float) -> list[Sent]:
    """Begin `rate` calls a second, however long each takes."""
    started, begun = time.perf_counter(), []
    for place, number in enumerate(numbers):
        time.sleep(max(0.0, started + place / rate - time.perf_counter()))
        begun.append(pool.submit(ask, number))
    return [one.result() for one in begun]


def wrong(server: Served, row: Any, sent: Sent, new: int) -> bool:
    """Whether an answer belongs to another request: by its row in the trace, or by the text of the request alone."""
    with server.client() as client:
        alone = client.chat(sent.messages, max_tokens=new)
    same = alone.text == sent.reply.text and alone.routing["expert"] == sent.reply.routing["expert"]
    return not same or row.messages != conversation(sent.messages) or sent.nonce not in row.messages[-1].content


def conversation(messages: Messages) -> Conversation:
    return tuple(Message(one["role"], one["content"]) for one in messages)


class Probe:
    """Asks for /health every 20 ms until the end of the block. `seconds`: the time of each answer."""

    def __init__(self, server: Served):
        self.server, self.seconds = server, list[float]()
        self.stopped, self.thread = threading.Event(), threading.Thread(target=self.ask)

    def __enter__(self) -> "Probe":
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopped.set()
        self.thread.join()

    def ask(self) -> None:
        with self.server.client() as client:
            while not self.stopped.wait(0.02):
                reply = client.get("/health")
                if reply.status != 200:
                    raise RuntimeError(f"/health says {reply.status}")
                self.seconds.append(reply.seconds)


def centile(times: Sequence[float], share: int) -> float:
    return statistics.quantiles(times, n=100, method="inclusive")[share - 1]


# --- another version --------------------------------------------------------------------------------------------------


def swaps(mixture: Path, folder: Path, asked: list[Messages], sizes: Sizes) -> Section:
    """Streams while the served folder is exchanged: does any fail, and is each of one version from end to end?"""
    new, some = 32, asked[:8]
    names = [NAME, *(f"{NAME}:{one}" for one in DOMAINS)]
    folder.mkdir()
    versions = [folder / "one", folder / "other"]
    for at, shift in zip(versions, (0, 1), strict=True):
        exchanged(mixture, at, shift)
    expected = {}
    for at in versions:
        with moesaic.load(at) as model:
            for number, messages in enumerate(some):
                for name in names:
                    expert = name.partition(":")[2] or None
                    made = model.generate(conversation(messages), max_new_tokens=new, expert=expert)
                    expected[model.writer.identity, number, name] = made.text
    link, stopped, answers, failures = folder / "served", threading.Event(), list[tuple[Any, ...]](), list[str]()
    link.symlink_to(versions[0])

    def stream(first: int) -> None:
        dice = random.Random(first)
        with server.client() as client:
            while not stopped.is_set():
                number, name = dice.randrange(len(some)), dice.choice(names)
                try:
                    reply = client.chat(some[number], model=name, max_tokens=new, stream=True)
                    answers.append((reply.routing["mixture"], number, name, reply.text))
                except Exception as error:
                    failures.append(repr(error))
                    return

    with served(link, folder / "server") as server:
        threads = [threading.Thread(target=stream, args=[number]) for number in range(ROWS)]
        for thread in threads:
            thread.start()
        for count in range(1, sizes.swaps + 1):
            draft = folder / "draft"
            draft.symlink_to(versions[count % 2])
            draft.replace(link)
            server.wait(lambda count=count: server.total("moesaic_swaps_total") >= count)
            seen = len(answers)
            server.wait(lambda seen=seen: len(answers) > seen + ROWS or bool(failures))
        stopped.set()
        for thread in threads:
            thread.join()
        outcomes = server.figures("moesaic_swaps_total")
    mixed = sum(expected[one[:3]] != one[3] for one in answers)
    by_version = " and ".join(f"{count:,}" for count in Counter(one[0] for one in answers).values())
    different = sum(
        len({text for (_, *key), text in expected.items() if key == [number, name]}) > 1
        for number in range(len(some))
        for name in names
    )
    done = outcomes.get('{outcome="done"}', 0)
    return Section(
        "Swaps",
        f"{ROWS} clients stream answers of {new} tokens, of the mixture and of each expert, while the folder is "
        f"exchanged {done:.0f} times for one whose experts have changed places, and back. {len(answers):,} streams, "
        f"{by_version} of either version. Of {len(some) * len(names)} pairs of prompt and name, {different} have "
        "other texts in the other version.",
        [
            Bar("failed streams", "0", str(len(failures)), not failures and done == sizes.swaps),
            Bar("streams that are not the text of their version alone", "0", str(mixed), mixed == 0),
        ],
    )


def exchanged(mixture: Path, at: Path, shift: int) -> None:
    """A mixture of the same parts, in which each expert's name has the weights of another."""
    at.mkdir()
    names = sorted(path.name for path in (mixture / "experts").iterdir())
    experts = {name: mixture / "experts" / names[(place + shift) % len(names)] for place, name in enumerate(names)}
    save_mixture(at, mixture / "base", experts, mixture / "router", {"name": f"shift-{shift}"})


# --- what it says -----------------------------------------------------------------------------------------------------


def alike(mixture: Path, folder: Path, asked: list[Messages], sizes: Sizes) -> Section:
    """Does every answer say the same everywhere, and does a misspelt name never get an answer?"""
    names = [NAME, NAME, NAME, *(f"{NAME}:{one}" for one in (*DOMAINS, "base"))]

    def ask(client: Client, number: int) -> tuple[dict[str, Any], list[str]]:
        dice = random.Random(number)
        body: dict[str, Any] = {"model": dice.choice(names), "messages": dice.choice(asked)}
        if body["model"] == NAME and dice.random() < 0.3:
            body["routing"] = {"exclude": dice.sample(DOMAINS, 2)}
        told = client.post("/v1/route", body).body["routing"]
        more = {"max_tokens": 3, "temperature": 0, "stream": number % 3 == 0, "session_id": f"of {number}"}
        reply = client.post("/v1/chat/completions", body | more)
        found = reply.routing
        recorded = client.get(f"/v1/route/{found['id']}").body["routing"]
        own = ("id", "router_ms")
        wrong = [f"route: {key}" for key in found if key not in own and found[key] != told[key]]
        wrong += [f"recorded: {key}" for key in found if found[key] != recorded[key]]
        headers = {"decision": found["id"], "expert": found["expert"], "reason": found["reason"]}
        wrong += [f"header: {key}" for key, value in headers.items() if reply.headers[f"x-moesaic-{key}"] != value]
        shown = reply.headers.get("x-moesaic-confidence")
        wrong += ["header: confidence"] * ((None if shown is None else json.loads(shown)) != found["confidence"])
        if reply.streamed and reply.events[-1]["routing"] != found:
            wrong.append("last chunk")
        return found, wrong

    with served(mixture, folder) as server:
        answers = server.spread(sizes.alike, 4, ask)
        server.rest()
        rows_, counted = server.decisions(), server.figures("moesaic_decisions_total")
        refused = server.spread(sizes.misspelt, 4, misspell)
        server.rest()
        silent = len(server.decisions()) - len(rows_)
    differ = [one for _, some in answers for one in some]
    for found, _ in answers:
        row = rows_[found["id"]]
        told = (row.chosen, row.reason, row.mixture, row.probabilities, row.weights)
        own = [found[key] for key in ("expert", "reason", "mixture", "probabilities", "weights")]
        differ += ["trace"] * ([*told] != own)
    counts = Counter(f'{{expert="{one["expert"]}",reason="{one["reason"]}"}}' for one, _ in answers)
    differ += ["metrics"] * (counts != {labels: count for labels, count in counted.items() if count})
    differ += ["rows of the trace"] * (len(rows_) != len(answers))
    right = sum(refused)
    reasons = Counter(one["reason"] for one, _ in answers)
    told_reasons = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common())
    kinds = ", ".join(f"{count} of {what}" for what, count in Counter(differ).most_common())
    return Section(
        "Alike everywhere",
        f"{len(answers):,} requests, a third of them as streams ({told_reasons}): the `routing` object of the body, of "
        "the first and the last chunk, four headers, `POST /v1/route` before, `GET /v1/route/ID` after, the row of the "
        "trace, and the counts of /metrics. Names of experts with a letter too few, too many, changed or exchanged, as "
        "model or in a list.",
        [
            Bar("differences", "0", f"{len(differ)} {kinds}".strip(), not differ),
            Bar("misspelt names refused with the nearest", f"{sizes.misspelt}", f"{right}", right == sizes.misspelt),
            Bar("decisions about misspelt names", "0", f"{silent}", silent == 0),
        ],
    )


def misspell(client: Client, number: int) -> bool:
    """Whether a name with one error is refused, and the right one is named."""
    dice = random.Random(number)
    name = dice.choice(DOMAINS)
    at, letter = dice.randrange(len(name) - 1), dice.choice("xyzw")
    changed = [name[:at] + name[at + 1 :], name[:at] + letter + name[at:], name[:at] + letter + name[at + 1 :]]
    wrong = dice.choice([*changed, name[:at] + name[at + 1] + name[at] + name[at + 2 :]])
    if wrong == name:
        wrong = f"{name}{letter}"
    messages = [{"role": "user", "content": "2 + 2"}]
    if number % 2:
        reply, near = client.chat(messages, model=f"{NAME}:{wrong}"), f"did you mean '{NAME}:{name}'?"
        return reply.status == 404 and near in reply.body["error"]["message"]
    reply = client.chat(messages, routing={"allow": [wrong]})
    return reply.status == 400 and f"did you mean '{name}'?" in reply.body["error"]["message"]


def turns(mixture: Path, folder: Path, asked: list[Messages], sizes: Sizes) -> Section:
    """One prompt under all experts in turn: is each answer that of a server which has seen nothing else?"""
    experts = [*DOMAINS, "base"]
    cold, messages = {}, asked[1]
    for name in experts:
        with served(mixture, folder / name) as server, server.client() as client:
            cold[name] = client.chat(messages, model=f"{NAME}:{name}", max_tokens=16).text

    def ask(client: Client, number: int) -> bool:
        name = experts[number % len(experts)]
        return client.chat(messages, model=f"{NAME}:{name}", max_tokens=16).text == cold[name]

    with served(mixture, folder / "all") as server:
        same = server.spread(sizes.rounds * len(experts), 1, ask)
    return Section(
        "In turn",
        f"One prompt under each of {len(experts)} experts in turn, {sizes.rounds} rounds; {len({*cold.values()})} "
        "different texts. Each is compared with the first answer of a server of its own.",
        [Bar("answers other than those of a cold server", "0", str(len(same) - sum(same)), all(same))],
    )


# --- what a decision costs --------------------------------------------------------------------------------------------


def deciding(_: Path, __: Path, ___: list[Messages], sizes: Sizes) -> Section:
    """In this process, without the server."""
    return measured(sizes.first_tokens)
